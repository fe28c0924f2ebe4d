"""The alerts in the documentation, as Prometheus evaluates them on what nodes and regions export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hedgerow.testing import processes

DOCS = Path(__file__).parents[2] / "docs" / "operator"

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)

NODE = 'hedgerow_region_node_status{node="gate",site="s1",'
STATUSES = {
    "ok": ([(f'{NODE}status="ok",needs_help="no"}}', "1x10")], []),
    "stopped": ([(f'{NODE}status="stopped",needs_help="no"}}', "1x10")], []),
    "offline": ([(f'{NODE}status="offline",needs_help="yes"}}', "1x10")], ["NodeNeedsHelp"]),
    "one-way": ([(f'{NODE}status="one-way",needs_help="yes"}}', "1x10")], ["NodeNeedsHelp"]),
    "a crash, and a restart at once": (
        [
            (f'{NODE}status="ok",needs_help="no"}}', "1x10"),
            ('hedgerow_region_node_crashes_total{node="gate",site="s1"}', "0 0 0 1x7"),
        ],
        ["NodeCrashed"],
    ),
    "two machines of one name": (
        [('hedgerow_region_node_twins{node="gate",site="s1",kind="name"}', "1x10")],
        ["NodeIdentityUsedTwice"],
    ),
    "a service with a store of its own": ([("hedgerow_region_other_services", "1x10")], ["AnotherServiceCollects"]),
    "results lost": ([("hedgerow_region_lost_total", "0 0 0 5x7")], ["ResultsLost"]),
    "the store fails": ([("hedgerow_region_store_works", "0x10")], ["RegionDoesNotCollect"]),
    "a standby": (
        [
            ('hedgerow_region_store_works{instance="a"}', "1x10"),
            ('hedgerow_region_leader{instance="a"}', "1x10"),
            ('hedgerow_region_connected{instance="a"}', "1x10"),
            ('hedgerow_region_store_works{instance="b"}', "0x10"),
            ('hedgerow_region_leader{instance="b"}', "0x10"),
            ('hedgerow_region_connected{instance="b"}', "0x10"),
        ],
        [],
    ),
    "nobody leads": (
        [("hedgerow_region_connected", "0x10"), ("hedgerow_region_leader", "0x10")],
        ["RegionDoesNotCollect"],
    ),
    "the service is gone": ([("hedgerow_region_connected", "stale")], ["RegionDoesNotCollect"]),
}
NODES = {
    "ok": ([('hedgerow_node_status{node="a",status="ok"}', "1x10")], []),
    "failing": (
        [
            ('hedgerow_node_status{node="a",status="ok"}', "0x10"),
            ('hedgerow_node_status{node="a",status="failing"}', "1x10"),
        ],
        ["NodeNotWell"],
    ),
    "without its broker": ([('hedgerow_connected{instance="a",link="node"}', "0x10")], ["NodeCannotReachItsBroker"]),
}


@pytest.fixture
def fired(tmp_path: Path, blocks: Callable[[Path], list[Any]]) -> Callable[..., list[str]]:
    """Runs the rules of a document on series of one value a minute; returns the alerts that fire after ten."""

    def run(document: str, series: list[tuple[str, str]]) -> list[str]:
        (rules,) = [block.text for block in blocks(DOCS / document) if block.info.startswith("prometheus:")]
        (tmp_path / "rules.yaml").write_text(rules)
        names = [line.partition("alert:")[2].strip() for line in rules.splitlines() if "alert:" in line]
        firing = []
        for name in names:
            test = {
                "rule_files": ["rules.yaml"],
                "evaluation_interval": "1m",
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [{"series": one, "values": values} for one, values in series],
                        "alert_rule_test": [{"eval_time": "10m", "alertname": name, "exp_alerts": []}],
                    }
                ],
            }
            (tmp_path / "test.yaml").write_text(json.dumps(test))
            ended = processes.run(["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True)
            assert ended.returncode == 0 or f"alertname: {name}" in ended.stdout + ended.stderr, ended.stderr
            if ended.returncode:
                firing.append(name)
        return firing

    return run


@pytest.mark.parametrize(("series", "expected"), STATUSES.values(), ids=STATUSES)
def test_the_regions_alerts_fire_for_what_needs_help_and_for_nothing_else(
    fired: Callable[..., list[str]], series: list[tuple[str, str]], expected: list[str]
) -> None:
    alive = [] if "stale" in series[0][1] else [("hedgerow_region_connected", "1x10")]

    assert fired("region.md", [*alive, *series]) == expected


@pytest.mark.parametrize(("series", "expected"), NODES.values(), ids=NODES)
def test_the_nodes_alerts_fire_for_what_needs_help_and_for_nothing_else(
    fired: Callable[..., list[str]], series: list[tuple[str, str]], expected: list[str]
) -> None:
    assert fired("health-and-metrics.md", series) == expected
