"""Counters and gauges of fetching and of the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hedgerow.blobs.store.store import BlobStore

Gauge = tuple[str, str, dict[str, str], float]
"""Name, help, labels, value."""


@dataclass(slots=True)
class FetchCounts:
    """Counters of a fetcher.

    Attributes:
        wan_bytes, lan_bytes: bytes of chunks received from the region, and from peers.
        requested: chunks requested from the region.
        bad: chunks received whose content did not match their digest.
        duplicate_chunks: chunks received that were already stored.
        unreadable: messages that could not be decoded.
        ignored: chunks received from peers that are left out.
        left_out: times that a peer was left out, by reason.
    """

    wan_bytes: int = 0
    lan_bytes: int = 0
    requested: int = 0
    bad: int = 0
    duplicate_chunks: int = 0
    unreadable: int = 0
    ignored: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def gauges(self, fetched: Mapping[str, int], failures: Mapping[str, int]) -> Iterator[Gauge]:
        """Yield the counters as gauges.

        Args:
            fetched, failures: bytes fetched from each mirror, and how often it failed and was paused.
        """
        text = "Bytes of models fetched, by source."
        yield "hedgerow_fetched_bytes", text, {"from": "wan"}, self.wan_bytes
        yield "hedgerow_fetched_bytes", text, {"from": "neighbours"}, self.lan_bytes
        for url, size in fetched.items():
            yield "hedgerow_fetched_bytes", text, {"from": url}, size
        for url, times in failures.items():
            yield (
                "hedgerow_source_failures",
                "Times that a source failed and was skipped for a while.",
                {"source": url},
                times,
            )
        yield "hedgerow_fetch_bad_chunks", "Chunks received whose content did not match their digest.", {}, self.bad
        yield "hedgerow_fetch_unreadable", "Messages about chunks that cannot be decoded.", {}, self.unreadable
        yield "hedgerow_fetch_ignored_chunks", "Chunks received from peers that are left out.", {}, self.ignored
        for reason, times in self.left_out.items():
            text = "Times that a peer was left out, because it claims, offers or sends what it should not."
            yield "hedgerow_fetch_peers_left_out", text, {"reason": reason}, times
        yield "hedgerow_fetch_duplicate_chunks", "Chunks received that were already stored.", {}, self.duplicate_chunks
        text = "Deprecated: use hedgerow_fetch_duplicate_chunks."
        yield "hedgerow_fetch_twice", text, {}, self.duplicate_chunks


def store_gauges(store: BlobStore) -> Iterator[Gauge]:
    """Yield the gauges of a store."""
    yield "hedgerow_model_store_bytes", "Bytes used by fetched models.", {}, store.used_bytes
    yield "hedgerow_model_store_max_bytes", "Quota of the model store in bytes.", {}, store.max_bytes
    yield "hedgerow_model_store_evicted", "Models and unfinished files evicted.", {}, store.evicted
    yield "hedgerow_model_store_damaged", "Chunks found damaged on disk.", {}, store.damaged
