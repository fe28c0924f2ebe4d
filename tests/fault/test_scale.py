"""Many sites and nodes, one region: each result is stored once and acknowledged to its node."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.fleet.messages import Fleet


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sites", "nodes", "results", "per_s"),
    [
        pytest.param(3, 4, 300, 300, id="short"),
        pytest.param(50, 20, 30_000, 500, id="long", marks=pytest.mark.slow),
    ],
)
async def test_a_region_keeps_up_with_all_its_nodes(
    tmp_path: Path, sites: int, nodes: int, results: int, per_s: float
) -> None:
    """Real sessions, brokers and bridges; the nodes are simulated."""
    async with Fleet(sites, nodes, tmp_path) as fleet:
        await fleet.send(results, per_s)

        assert fleet.count("node") == sites * nodes
        assert fleet.count("result") == results
        assert fleet.count("gap") == 0
