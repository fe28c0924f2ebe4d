"""Fetching over real brokers and a rendered bridge."""

from __future__ import annotations

import asyncio

from tests.blobs.conftest import TIMEOUT_S, Testbed, installed_digest, manifest_of, noise


async def test_a_site_pays_once_for_twenty_nodes_that_fetch_at_the_same_time(testbed: Testbed) -> None:
    file = testbed.repository.add("model.onnx", noise(3 << 20, 1))
    names = [f"n{number}" for number in range(20)]
    async with testbed.served() as server, testbed.fetchers(*names) as fetchers:
        before = testbed.wan_bytes
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(fetcher.fetch([file]) for fetcher in fetchers))
        used = testbed.wan_bytes - before

    print(used / file.size, server.counts, [f.counts for f in fetchers][:3])
    assert used <= 1.05 * file.size
    manifest = manifest_of([file])
    for fetcher in fetchers:
        assert installed_digest(fetcher._store, manifest, file) == file.digest


async def test_a_late_node_is_served_by_its_peers(testbed: Testbed) -> None:
    file = testbed.repository.add("model.onnx", noise(2 << 20, 2))
    async with testbed.served(), testbed.fetchers("n1", "n2", "n3") as (first, second, late):
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(first.fetch([file]), second.fetch([file]))
            before = testbed.wan_bytes
            await late.fetch([file])

        assert testbed.wan_bytes - before < 64 << 10
        assert late.counts.lan_bytes == file.size
