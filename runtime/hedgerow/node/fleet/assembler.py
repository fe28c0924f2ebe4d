"""Builds the agent and its dependencies from the node's configuration.

desired ─▶ agent ─▶ verifier (signatures) ─▶ fetcher, store (content) ─▶ swaps (test, serve, keep) ─▶ reported
"""

from __future__ import annotations

from pathlib import Path

from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.origins.origins import OriginDocuments, open_origins, web_client
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.identity.client_ids import client_id, client_token
from hedgerow.config import NodeConfig
from hedgerow.errors import ConfigError
from hedgerow.node.fleet.agent import Agent
from hedgerow.node.fleet.agent_host import AgentHost
from hedgerow.node.fleet.member import FleetMember
from hedgerow.node.fleet.model_provider import ModelProvider
from hedgerow.node.fleet.signed_pipelines import PipelinesFolder
from hedgerow.node.fleet.state import AgentState
from hedgerow.node.fleet.verify import Verifier
from hedgerow.node.link.options import link_options
from hedgerow.node.swap.swaps import Swaps
from hedgerow.trust.client import TrustClient
from hedgerow.trust.https import HttpsDocuments

FOLDER = "fleet"


def assemble(config: NodeConfig, root_file: Path, host: AgentHost, swaps: Swaps) -> FleetMember:
    """Build the agent and its dependencies.

    Args:
        config: the node's configuration.
        root_file: file with the root of trust.
        host: the node, for its agent.
        swaps: swaps the node's model versions.
    Raises: ConfigError: the root of trust cannot be read.
    """
    address, fleet = config.node.address, config.fleet
    folder = config.node.state_dir / FOLDER
    store, origins = BlobStore(folder / "store", fleet.store_max_bytes), open_origins(fleet.origins)
    fetcher = BlobFetcher(
        link_options(
            config.broker, client_id(address, client_token(config.node.state_dir), "blobs"), keep_session=False
        ),
        address,
        store,
        max_bytes_per_s=fleet.fetch_bytes_per_s,
        serve_neighbours=fleet.serve_neighbours,
        sources=origins,
        on_event=host.announcer.event,
    )
    documents = OriginDocuments(fetcher.documents, origins, host.announcer.warn)
    mirrors = [HttpsDocuments(web_client(origin)) for origin in fleet.origins if origin.url.startswith("https:")]
    trust = TrustClient(folder / "trust", _root(root_file), documents, *mirrors, on_event=host.announcer.warn)
    verifier = Verifier(trust, host.announcer.event)
    provider = ModelProvider(verifier, fetcher, store, PipelinesFolder(folder / "pipelines"))
    return FleetMember(Agent(host, AgentState(folder), provider, swaps), fetcher, verifier)


def _root(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The root of trust {path} cannot be read: {error.strerror}",
            remedy="Copy the repository's `metadata/1.root.json` there, or remove `fleet: root_file`.",
        ) from error
