"""Which unsigned changes of a pipeline a node accepts, exactly up to which limit."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hedgerow.config import NodeConfig
from hedgerow.node.pipelines.adjustments import MOST_CHANGES, AdjustmentRefused, adjusted, nested

MIB = 2**20


def node(remote: dict[str, Any] | None = None, **fields: Any) -> NodeConfig:
    pipeline = {"subscribe": "a", "stages": [{"trial": {"level": 0.5}}, "parse"], **fields}
    return NodeConfig.model_validate({"pipelines": {"p": pipeline}, "remote": remote or {}})


def value(config: NodeConfig, path: str) -> Any:
    found: Any = config.pipelines["p"]
    if path.startswith("stages."):
        return found.stages[0].config.get(path.rpartition(".")[2])
    for key in path.split("."):
        found = getattr(found, key)
    return found


@pytest.mark.parametrize(
    ("path", "least", "most", "below", "above"),
    [
        ("batch", 1, 256, 0, 257),
        ("lanes", 1, 16, 0, 17),
        ("queue.max_age_s", 0.1, 604_800, 0.09, 604_801),
        ("queue.deadline_s", 0.01, 86_400, 0.009, 86_401),
        ("queue.max_rate_per_stream", 0.01, 1e6, 0.009, 1_000_001),
        ("queue.max_frames_per_stream", 1, 1024, 0, 1025),
        ("queue.max_frames", 1, 65_536, 0, 65_537),
        ("queue.max_bytes", 32 * MIB, 1024 * MIB, 32 * MIB - 1, 1024 * MIB + 1),
    ],
)
def test_a_setting_may_go_to_its_bounds_and_no_further(
    path: str, least: float, most: float, below: float, above: float
) -> None:
    for allowed in (least, most):
        assert value(adjusted(node(), {"p": {path: allowed}}), path) == allowed
        assert value(adjusted(node(), {"p": nested({path: allowed})}), path) == allowed
    for refused in (below, above):
        with pytest.raises(AdjustmentRefused) as caught:
            adjusted(node(), {"p": {path: refused}})
        assert caught.value.code == "out-of-limits"


@pytest.mark.parametrize(
    ("fields", "path", "least", "most"),
    [
        ({"batch": 300}, "batch", 1, 300),
        ({"lanes": 0}, "lanes", 0, 16),
        ({"queue": {"max_age_s": 0.01}}, "queue.max_age_s", 0.01, 604_800),
        ({"queue": {"max_frames": 70_000}}, "queue.max_frames", 1, 70_000),
        ({"max_payload_bytes": 1024}, "queue.max_bytes", MIB, 1024 * MIB),
    ],
)
def test_a_setting_may_go_as_far_as_the_file(fields: dict[str, Any], path: str, least: float, most: float) -> None:
    for allowed in (least, most):
        assert value(adjusted(node(**fields), {"p": {path: allowed}}), path) == allowed


@pytest.mark.parametrize(
    ("remote", "path", "allowed", "refused"),
    [
        ({"limits": {"batch": {"max": 8}}}, "batch", (1, 8), (9,)),
        ({"limits": {"batch": {"min": 4}}}, "batch", (4, 256), (3, 257)),
        ({"limits": {"batch": {"min": 4, "max": 1000}}}, "batch", (256,), (3, 257)),
        ({"limits": {"queue.policy": "fixed"}}, "queue.policy", (), ("fifo",)),
        ({"limits": {"lanes": "fixed"}}, "lanes", (), (2,)),
        ({"thresholds": {"p": {"trial.level": {"min": 0.4, "max": 0.6}}}}, "stages.trial.level", (0.4, 0.6), (0.39, 0.61)),
        ({"thresholds": {"p": {"*": "fixed"}}}, "stages.trial.level", (), (0.5,)),
        ({"thresholds": {"p": {"*": "fixed", "trial.level": {}}}}, "stages.trial.level", (0, 1), (1.1, -0.1)),
        ({"keep_running": ["p"]}, "queue.max_age_s", (), (5,)),
        ({"keep_running": ["p"]}, "queue.deadline_s", (), (5,)),
        ({"keep_running": ["p"]}, "queue.max_rate_per_stream", (), (5,)),
        ({"keep_running": ["p"]}, "queue.policy", (), ("fifo", "latest")),
        ({"keep_running": ["p"]}, "queue.max_frames", (4096, 5000), (1, 4095)),
        ({"keep_running": ["p"]}, "queue.max_frames_per_stream", (8, 9), (1, 7)),
        ({"keep_running": ["p"]}, "queue.max_bytes", (256 * MIB, 257 * MIB), (32 * MIB, 256 * MIB - 1)),
    ],
)  # fmt: skip
def test_the_file_narrows_what_is_allowed(
    remote: dict[str, Any], path: str, allowed: tuple[Any, ...], refused: tuple[Any, ...]
) -> None:
    for each in allowed:
        assert value(adjusted(node(remote), {"p": {path: each}}), path) == each
    for each in refused:
        with pytest.raises(AdjustmentRefused):
            adjusted(node(remote), {"p": {path: each}})


@pytest.mark.parametrize("path", ["queue.max_age_s", "queue.deadline_s", "queue.max_rate_per_stream"])
def test_what_drops_frames_is_fixed_where_results_are_durable(path: str) -> None:
    with pytest.raises(AdjustmentRefused, match="cannot be changed from outside"):
        adjusted(node(publish={"durable": True}), {"p": {path: 5}})


@pytest.mark.parametrize(
    ("fields", "remote"), [({"publish": {"durable": True}}, {}), ({}, {"keep_running": ["p"]})], ids=["durable", "kept"]
)
def test_no_frame_is_dropped_for_less_room_than_the_file_gives(fields: dict[str, Any], remote: dict[str, Any]) -> None:
    file = node(remote, queue={"max_frames": 100, "max_frames_per_stream": 10}, **fields)
    for change in ({"max_frames": 99}, {"max_frames_per_stream": 9}, {"max_frames": 1, "max_frames_per_stream": 1}):
        with pytest.raises(AdjustmentRefused, match="as in the node's file") as caught:
            adjusted(file, {"p": {"queue": change}})
        assert "QoS 0 frames would be dropped" in caught.value.remedy
    adjusted(file, {"p": {"queue": {"max_frames": 100, "max_frames_per_stream": 10}}})


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"queue.policy": {"min": 1}}, "has neither `min` nor `max`"),
        ({"queue.policy": {}}, "has neither `min` nor `max`"),
        ({"batch": {}}, "has neither `min` nor `max`"),
        ({"queue.max_age_s": {"max": 0}}, "can never be 0 or less"),
        ({"queue.max_frames": {"min": -5, "max": -1}}, "can never be -1 or less"),
        ({"batch": {"min": "fixed"}}, "valid number"),
        ({"batch": {"min": float("nan")}}, "finite number"),
    ],
)
def test_a_limit_that_limits_nothing_is_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        node({"limits": limits})


def test_null_means_as_in_the_file() -> None:
    """So a limit of the file cannot be taken away."""
    file = node(batch=7, queue={"max_rate_per_stream": 10})
    changes = {"batch": None, "queue": {"max_rate_per_stream": None}, "stages": {"trial": {"level": None}}}

    assert adjusted(file, {"p": changes}).pipelines == file.pipelines


@pytest.mark.parametrize("count", [MOST_CHANGES, MOST_CHANGES + 1])
def test_the_number_of_changes_is_limited(count: int) -> None:
    changes = {"p": {"queue": {f"k{number}": 1 for number in range(count)}}}

    with pytest.raises(AdjustmentRefused, match="More than" if count > MOST_CHANGES else "k0|k99"):
        adjusted(node(), changes)


def test_a_stage_that_occurs_twice_has_no_threshold_of_its_own() -> None:
    with pytest.raises(AdjustmentRefused, match="does not name a threshold of one stage"):
        adjusted(node(stages=["trial", "trial"]), {"p": {"stages": {"trial": {"level": 0.5}}}})


def test_a_stages_time_limit_stays_when_its_threshold_changes() -> None:
    stage = {"name": "trial", "config": {"tag": "t"}, "timeout_s": 9}
    (changed,) = adjusted(node(stages=[stage]), {"p": {"stages.trial.level": 0.7}}).pipelines["p"].stages

    assert (changed.config, changed.timeout_s) == ({"tag": "t", "level": 0.7}, 9)


def test_a_pipeline_stops_unless_it_has_to_keep_running() -> None:
    assert adjusted(node(), {"p": None}).pipelines == {}
    with pytest.raises(AdjustmentRefused) as caught:
        adjusted(node({"keep_running": ["p"]}), {"p": None})
    assert caught.value.code == "must-keep-running"
