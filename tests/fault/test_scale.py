"""Many sites and nodes, one region: each result is stored once and acknowledged to its node."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.fleet.messages import Fleet
from benchmarks.fleet.stolen import SITE_PER_S, Role, measure

from hedgerow.region.collector.site_rates import BURST_S, OWN_SHARE


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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ["node", "sensor", "viewer", "site"])
@pytest.mark.parametrize(
    ("sites", "nodes", "seconds", "messages", "share"),
    [
        # Over seconds, a single pause of a loaded machine counts for much; the share is a target at full size only.
        pytest.param(2, 2, 4.0, 2000, 0.5, id="short", marks=pytest.mark.long),
        pytest.param(10, 5, 60.0, 100_000, 0.95, id="long", marks=pytest.mark.slow),
    ],
)
async def test_one_stolen_client_at_full_speed_leaves_the_others_their_results(
    tmp_path: Path, role: Role, sites: int, nodes: int, seconds: float, messages: int, share: float
) -> None:
    """The others are offered half of what was measured; the thief's rows and the service's memory are bounded."""
    cost = await measure(role, sites=sites, nodes=nodes, seconds=seconds, messages=messages, folder=tmp_path)

    assert cost.sent > 0
    assert cost.share >= share, cost
    assert cost.rows <= (BURST_S * OWN_SHARE + 2 * seconds) * SITE_PER_S, cost
    assert cost.grown_bytes <= 512 << 20, cost
    assert all(refusal.startswith("s0 ") for refusal in cost.refused), cost
