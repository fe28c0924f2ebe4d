"""What /metrics shows of fetching and of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hedgerow.blobs.store.store import BlobStore

Gauge = tuple[str, str, dict[str, str], float]
"""Name, help, labels, value."""


@dataclass(slots=True)
class FetchCounts:
    """What a fetcher has done.

    Attributes:
        wan_bytes, lan_bytes: bytes of chunks that came from beyond the site, and from neighbours.
        asked: chunks that the region was asked for.
        bad: chunks that came and were not what they should be.
        duplicate_chunks: chunks received that were already stored.
        notes: what could not be read.
    """

    wan_bytes: int = 0
    lan_bytes: int = 0
    asked: int = 0
    bad: int = 0
    duplicate_chunks: int = 0
    notes: int = 0

    def gauges(self, brought: Mapping[str, int], failures: Mapping[str, int]) -> Iterator[Gauge]:
        """As gauges.

        Args:
            brought, failures: bytes that came from other sources than the region, and times that one was left alone.
        """
        text = "Bytes of models that came, by where from."
        yield "hedgerow_fetched_bytes", text, {"from": "wan"}, self.wan_bytes
        yield "hedgerow_fetched_bytes", text, {"from": "neighbours"}, self.lan_bytes
        for url, size in brought.items():
            yield "hedgerow_fetched_bytes", text, {"from": url}, size
        for url, times in failures.items():
            yield "hedgerow_source_failures", "Times that a source was left alone for a while.", {"source": url}, times
        yield "hedgerow_fetch_bad_chunks", "Chunks that were not what they should be.", {}, self.bad
        yield "hedgerow_fetch_duplicate_chunks", "Chunks received that were already stored.", {}, self.duplicate_chunks
        text = "Deprecated: use hedgerow_fetch_duplicate_chunks."
        yield "hedgerow_fetch_twice", text, {}, self.duplicate_chunks


def store_gauges(store: BlobStore) -> Iterator[Gauge]:
    """Gauges of a store."""
    yield "hedgerow_model_store_bytes", "Bytes that fetched models take.", {}, store.used_bytes
    yield "hedgerow_model_store_max_bytes", "Bytes that they may take.", {}, store.max_bytes
    yield "hedgerow_model_store_evicted", "Models and unfinished files that made room.", {}, store.evicted
    yield "hedgerow_model_store_damaged", "Chunks that were damaged on the disk.", {}, store.damaged
