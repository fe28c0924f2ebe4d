"""What makes a node one of a fleet: its agent, and what that works with, put together from the node's configuration.

desired ─▶ agent ─▶ trust (who signed it) ─▶ blobs (fetch, store) ─▶ swaps (try, serve, keep or take back) ─▶ reported
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.origins.origins import OriginDocuments, open_sources, web_of
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.client import Client
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.config import NodeConfig
from hedgerow.errors import ConfigError, HedgerowError
from hedgerow.node.agent import Agent
from hedgerow.node.labels import backends_in_use, device_labels, own_labels
from hedgerow.node.link import link_options
from hedgerow.node.memory import Memory
from hedgerow.node.overlay import overlaid
from hedgerow.node.reconcile import Overlay
from hedgerow.node.supply import Supply
from hedgerow.node.verify import Verifier
from hedgerow.topics import Channel
from hedgerow.trust.client import TrustClient
from hedgerow.trust.https import HttpsDocuments
from hedgerow.wire.fleet import Reported
from hedgerow.wire.messages import JSON

if TYPE_CHECKING:
    from hedgerow.node.swaps import Swaps

log = structlog.get_logger(__name__)

FOLDER = "fleet"
_JSON = encode_properties([(Property.CONTENT_TYPE, JSON)])


class FleetMember:
    """A node's part in a fleet. `restore`, then `open`, then `run`; `close` at the end.

    Args:
        config: as the node's file says.
        session: this run of the node.
        cores: cores the node owns.
        client: the node's own link.
        swaps: takes its models from version to version.
        reload: puts another configuration into force.
        states: how each pipeline is.
        clock_doubtful: whether the clock may be wrong.
        on_event: takes what operators should know.
    Raises: ConfigError: the root of trust cannot be read.
    """

    def __init__(
        self,
        config: NodeConfig,
        session: str,
        cores: int,
        client: Client,
        swaps: Swaps,
        reload: Callable[[NodeConfig], Any],
        states: Callable[[], dict[str, str]],
        clock_doubtful: Callable[[], bool],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        address, fleet = config.node.address, config.fleet
        assert fleet.root_file is not None  # noqa: S101 - without it there is no member
        folder = config.node.state_dir / FOLDER
        self._config = config
        self._address = address
        self._client = client
        self._reload = reload
        self._event = on_event
        self._loop = asyncio.get_running_loop()
        self._states = states
        self._clock_doubtful = clock_doubtful
        self._overlay: Overlay = {}
        store, sources = BlobStore(folder / "store", fleet.store_max_bytes), open_sources(fleet.sources)
        self._fetcher = BlobFetcher(
            link_options(config.broker, f"hedgerow/{address}/blobs", keep_session=False),
            address,
            store,
            max_bytes_per_s=fleet.fetch_bytes_per_s,
            serve_neighbours=fleet.serve_neighbours,
            sources=sources,
            on_event=on_event,
        )
        documents = OriginDocuments(self._fetcher.documents, sources)
        copies = [HttpsDocuments(web_of(source)) for source in fleet.sources if source.url.startswith("https:")]
        trust = TrustClient(folder / "trust", _root(fleet.root_file), documents, *copies)
        self._verifier = Verifier(trust, on_event)
        self._own_labels = own_labels(address, cores)
        supply = Supply(self._verifier, self._fetcher, store)
        self.agent = Agent(address, session, self, Memory(folder), supply, swaps)
        self._work: asyncio.Task[None] | None = None

    # What the node does with it

    def restore(self) -> NodeConfig:
        """Let the versions serve that were kept; blocks. Returns: the configuration to start with."""
        self._overlay = self.agent.restore()
        try:
            return overlaid(self._config, self._overlay)
        except HedgerowError as error:  # it was right when it came; the file has changed since
            log.warning("overlay-refused", error=str(error), remedy=error.remedy)
            self.event("overlay-refused", {"error": str(error)})
            self.agent.refuse_overlay()
            self._overlay = {}
            return self._config

    def overlaid(self, config: NodeConfig) -> NodeConfig:
        """What is to be in force if the node's file says this. Raises: DesiredError: the overlay does not fit it."""
        return overlaid(config, self._overlay)

    def adopt(self, config: NodeConfig) -> None:
        """The node's file says this now."""
        self._config = config

    @property
    def topic(self) -> str:
        """Where desired documents come."""
        return self._address.topic(Channel.DESIRED)

    async def open(self) -> None:
        """Connect, and begin with what there is to do."""
        await self._fetcher.__aenter__()
        self._work = asyncio.create_task(self.agent.run(), name="agent")

    async def renew_link(self) -> None:
        """Make the link anew, with certificate files as they are now."""
        await self._fetcher.client.renew()

    async def close(self) -> None:
        """Leave all as it is, for the next run."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            await self._fetcher.__aexit__(None, None, None)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """What /metrics shows of it: name, help, labels, value."""
        yield from self._fetcher.gauges()
        yield from self._verifier.gauges()
        for what, count in self.agent.counts.items():
            yield "hedgerow_desired", "Desired documents, by what became of them.", {"what": what}, count

    # What the agent asks of the node

    def labels(self) -> dict[str, str]:
        """See `Host`."""
        devices = device_labels(backends_in_use(self._config.models))
        return self._own_labels | devices | self._config.node.labels

    @property
    def models(self) -> Mapping[str, str]:
        """See `Host`."""
        return {name: model.path for name, model in self._config.models.items()}

    @property
    def pipelines(self) -> frozenset[str]:
        """See `Host`."""
        return frozenset(self._config.pipelines)

    @property
    def clock_doubtful(self) -> bool:
        """See `Host`."""
        return self._clock_doubtful()

    async def overlay(self, pipelines: Overlay) -> None:
        """See `Host`."""
        await self._reload(overlaid(self._config, pipelines))
        self._overlay = pipelines

    def states(self) -> dict[str, str]:
        """See `Host`."""
        return self._states()

    def publish(self, reported: Reported) -> None:
        """See `Host`."""
        topic = self._address.topic(Channel.REPORTED)
        self._client.publish(topic, reported.encode(), qos=1, retain=True, properties=_JSON)

    def event(self, kind: str, detail: dict[str, Any]) -> None:
        """See `Host`; for any thread, since restoring has one of its own."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._event, kind, detail)


def _root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The root of trust {path} cannot be read: {error.strerror}",
            remedy="Copy the repository's `metadata/1.root.json` there, which `hedgerow trust init` made; or remove `fleet: root_file`.",
        ) from error
