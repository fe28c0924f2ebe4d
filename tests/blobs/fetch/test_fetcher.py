"""Fetching over real brokers and a bridge as it is rendered."""

from __future__ import annotations

import asyncio

from tests.blobs.conftest import PATIENCE_S, Estate, content_of, made_manifest, noise


async def test_a_site_pays_once_for_twenty_nodes_that_fetch_at_the_same_time(estate: Estate) -> None:
    file = estate.repository.add("model.onnx", noise(3 << 20, 1))
    names = [f"n{number}" for number in range(20)]
    async with estate.served() as server, estate.fetchers(*names) as fetchers:
        before = estate.wan_bytes
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(fetcher.fetch([file]) for fetcher in fetchers))
        used = estate.wan_bytes - before

    print(used / file.size, server.counts, [f.counts for f in fetchers][:3])
    assert used <= 1.05 * file.size
    manifest = made_manifest([file])
    for fetcher in fetchers:
        assert content_of(fetcher._store, manifest, file) == file.digest


async def test_a_late_node_is_served_by_its_peers(estate: Estate) -> None:
    file = estate.repository.add("model.onnx", noise(2 << 20, 2))
    async with estate.served(), estate.fetchers("n1", "n2", "n3") as (first, second, late):
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(first.fetch([file]), second.fetch([file]))
            before = estate.wan_bytes
            await late.fetch([file])

        assert estate.wan_bytes - before < 64 << 10
        assert late.counts.lan_bytes == file.size
