"""Metrics of fetching."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.blobs.conftest import SITE_ADDRESS

from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.connect import ClientOptions


@pytest.mark.parametrize(
    ("name", "deprecated", "value"),
    [
        ("hedgerow_fetch_duplicate_chunks", "hedgerow_fetch_twice", 3),
        ("hedgerow_blobs_sent_bytes", "hedgerow_given_bytes", 700),
    ],
)
async def test_renamed_metrics_are_exported_under_both_names(
    tmp_path: Path, name: str, deprecated: str, value: int
) -> None:
    fetcher = BlobFetcher(ClientOptions(), SITE_ADDRESS, BlobStore(tmp_path, 1 << 20))
    fetcher.counts.duplicate_chunks = 3
    fetcher._peers.bytes_sent = 700  # type: ignore[union-attr]
    gauges = {name: (text, value) for name, text, _, value in fetcher.gauges()}

    assert gauges[name][1] == gauges[deprecated][1] == value
    assert gauges[deprecated][0] == f"Deprecated: use {name}."
