"""The node's outbox and its link: publishes durable results and gaps, receives the region's acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from hedgerow import tasks, topics
from hedgerow.bus.client import Client
from hedgerow.bus.identity.client_ids import client_id, client_token
from hedgerow.bus.message import Message
from hedgerow.bus.outbox import Ack, Outbox
from hedgerow.bus.outbox.kept import KeepLimits
from hedgerow.bus.outbox.store import MachineAndKey
from hedgerow.bus.set_aside import messages as set_aside
from hedgerow.config import NodeConfig
from hedgerow.node.link.instance import key_hash, machine_hash
from hedgerow.node.link.options import link_options
from hedgerow.topics import Channel
from hedgerow.wire.messages import OutboxHealth, RegionStoreHealth

log = structlog.get_logger(__name__)

FILE: Final = "outbox.db"
_GAP: Final = "gap"
_LARGEST_ACK: Final = 64 << 10


class NodeOutbox:
    """Opens the outbox when a pipeline first needs it, or at start if an earlier run left one.

    The outbox has its own link, so a backlog delays neither health nor commands.

    Args:
        config: the broker, the node's address and the outbox's limits.
        folder: the outbox file's folder.
        on_event: called with each event's kind and detail.
    Attributes:
        bad_acks: number of unreadable acknowledgements.
    """

    def __init__(self, config: NodeConfig, folder: Path, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self.bad_acks = 0
        self._limits = config.outbox
        self._path = folder / FILE
        self._address = config.node.address
        self._options = link_options(
            config.broker,
            client_id(self._address, client_token(folder), "outbox"),
            max_payload_bytes=_LARGEST_ACK,
            keep_session=False,
            set_aside_folder=folder / set_aside.FOLDER,
        )
        self._runs_on = MachineAndKey(machine_hash(), key_hash(config.broker.tls.cert_file))
        self._on_event = on_event
        self._opening = asyncio.Lock()
        self._outbox: Outbox | None = None
        self._client: Client | None = None
        self._closed = False

    @property
    def exists(self) -> bool:
        """Whether there is an outbox file, e.g. from an earlier run."""
        return self._path.exists()

    @property
    def client(self) -> Client | None:
        """The outbox's link; None until it is open."""
        return self._client

    async def open(self) -> Outbox:
        """Return the outbox; open it if it is not open yet.

        Raises: OutboxError: it is in use, or of another version. A full or failing disk does not raise: it may recover.
        """
        async with self._opening:  # opening takes the file's lock, so it may not stop half-way
            if self._outbox is None:
                return await tasks.run_to_end(self._open(), "opening of the outbox")
            return self._outbox

    async def _open(self) -> Outbox:
        client = Client(self._options, self._receive, self._link_changed, self._on_event)
        limits = self._limits
        outbox = Outbox(
            self._path,
            gap_topic=self._address.topic(Channel.EVENT, _GAP),
            late=topics.late,
            readdress=self._address.present,
            publish=client.publish,
            on_event=self._on_event,
            max_bytes=limits.max_bytes,
            when_full=limits.when_full,
            window=limits.window,
            window_bytes=limits.window_bytes,
            backlog_share=limits.backlog_share,
            commit_every_s=limits.commit_every_s,
            runs_on=self._runs_on,
            keep=KeepLimits(limits.keep_acknowledged_s, limits.keep_acknowledged_bytes),
        )
        outbox.max_packet_bytes = limits.max_packet_bytes
        await outbox.__aenter__()
        self._outbox, self._client = outbox, client
        client.resume()
        await client.subscribe({self._address.topic(Channel.ACK): 1})
        log.info("outbox-open", path=str(self._path), waiting=outbox.status.entries)
        return outbox

    async def renew_link(self) -> None:
        """Reconnect with the current certificate files."""
        if self._client is not None:
            await self._client.renew()

    def hurry(self) -> None:
        """Write what waits, and from now on everything at once: the node stops."""
        if self._outbox is not None and not self._closed:
            self._outbox.hurry()

    async def close(self) -> None:
        """Write pending results to disk. Results that the region has not acknowledged stay for the next run."""
        async with self._opening:
            if self._outbox is not None and self._client is not None and not self._closed:
                self._closed = True
                await tasks.run_to_end(self._close(self._outbox, self._client), "closing of the outbox")

    async def _close(self, outbox: Outbox, client: Client) -> None:
        await outbox.close()
        await client.close(forget_session=True, timeout_s=1.0)

    def health(self) -> OutboxHealth | None:
        """Return the outbox's part of the health report; None if it is not open."""
        if self._outbox is None:
            return None
        status = self._outbox.status
        return OutboxHealth(
            epoch=status.epoch,
            entries=status.entries,
            used_bytes=status.used_bytes,
            max_bytes=self._limits.max_bytes,
            under_way=status.in_flight,
            stuck=status.stuck,
            lost=status.lost,
            failure=status.failure,
            moved=status.moved,
            kept_bytes=status.kept_bytes,
            region=RegionStoreHealth(
                mark=status.region.mark, resent=status.region.resent, complete=status.region.complete
            ),
        )

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield metrics: name, help, labels, value."""
        if self._outbox is None or self._client is None:
            return
        status = self._outbox.status
        yield "hedgerow_connected", "Whether the link to the broker is up.", {"link": "outbox"}, self._client.connected
        refused = self._client.refused_publishes
        yield "hedgerow_refused_publishes", "QoS 1 messages that the broker refused.", {"link": "outbox"}, refused
        yield "hedgerow_outbox_entries", "Results and gaps that the region has not acknowledged.", {}, status.entries
        yield "hedgerow_outbox_bytes", "Bytes of the outbox on disk.", {}, status.used_bytes
        yield (
            "hedgerow_outbox_kept_bytes",
            "Bytes of acknowledged results that are kept in case the region's store is put back to a backup.",
            {},
            status.kept_bytes,
        )
        yield "hedgerow_outbox_max_bytes", "Maximum size of the outbox on disk, in bytes.", {}, self._limits.max_bytes
        yield "hedgerow_outbox_under_way", "Results sent and not yet acknowledged by the region.", {}, status.in_flight
        yield (
            "hedgerow_outbox_stuck",
            "Results that the region does not acknowledge, unlike later ones.",
            {},
            status.stuck,
        )
        yield "hedgerow_outbox_failing", "Whether the outbox cannot store results.", {}, status.failure is not None
        yield "hedgerow_outbox_bad_acks", "Unreadable acknowledgements.", {}, self.bad_acks
        for reason, count in status.lost.items():
            yield "hedgerow_outbox_lost", "Durable results given up, by reason.", {"reason": reason}, count

    def _receive(self, messages: list[Message]) -> None:
        assert self._outbox is not None and self._client is not None  # noqa: S101, PT018 - set before the link opens
        for message in messages:
            try:
                self._outbox.acknowledge(Ack.decode(message.payload))
            except ValueError as error:
                self.bad_acks += 1
                log.warning("bad-ack", error=str(error)[:200])
            self._client.ack(message)

    def _link_changed(self, connected: bool, reason: str) -> None:
        if self._outbox is None or self._client is None:
            return
        if connected:
            limits = self._limits.max_packet_bytes, self._client.max_packet_bytes
            self._outbox.max_packet_bytes = min(limit for limit in limits if limit is not None)
        self._outbox.link_changed(up=connected)
