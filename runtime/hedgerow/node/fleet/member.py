"""Runs the agent, its link and its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from hedgerow import tasks
from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.node.fleet.agent import Agent
from hedgerow.node.fleet.verify import Verifier


class FleetMember:
    """Runs an agent and its link: call `agent.restore`, then `open`, and `close` at the end.

    Args:
        agent: applies desired documents.
        fetcher: owns the link for models.
        verifier: provides metrics.
    """

    def __init__(self, agent: Agent, fetcher: BlobFetcher, verifier: Verifier) -> None:
        self.agent = agent
        self._fetcher = fetcher
        self._verifier = verifier
        self._work: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and start the agent."""
        await self._fetcher.__aenter__()
        self._work = tasks.supervise(self.agent.run, "agent")

    async def renew_link(self) -> None:
        """Reconnect with the current certificate files."""
        await self._fetcher.client.renew()

    async def close(self) -> None:
        """Stop the agent; the next run resumes its document."""
        try:
            if self._work is not None:
                await tasks.cancel(self._work)
        finally:
            self._verifier.close()
            await self._fetcher.__aexit__(None, None, None)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield metrics: name, help, labels, value."""
        yield from self._fetcher.gauges()
        yield from self._verifier.gauges()
        for what, count in self.agent.counts.items():
            yield (
                "hedgerow_desired",
                "Desired documents taken, refused, and taken but not carried out.",
                {"what": what},
                count,
            )
