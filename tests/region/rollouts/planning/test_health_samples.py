"""Health reports against limits: each exactly at, just below and just above its value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hedgerow.region.rollouts.planning.health_samples import (
    MAX_SAMPLES,
    HealthSample,
    ModelSample,
    NodeBaseline,
    PipelineSample,
    baseline,
    count_restarts,
    violated_limit,
)
from hedgerow.region.rollouts.planning.spec import GateSection

FILE, OTHER = "sha256:new", "sha256:old"


def report(at: float, pipelines: dict[str, PipelineSample] | None = None, **more: Any) -> HealthSample:
    """Return a health report of a node that runs the new file."""
    fields: dict[str, Any] = {"session": "run-1", "state": "ok", "models": {"faces": ModelSample(FILE, 1000)}, **more}
    return HealthSample(at, pipelines=pipelines or {}, **fields)


def doors(received: int, dead: int = 0, dropped: int = 0, p99_ms: float | None = None) -> dict[str, PipelineSample]:
    return {"doors": PipelineSample(received, dead, dropped, p99_ms, ("faces",))}


def found(
    samples: list[HealthSample], was: NodeBaseline | None = None, since: float = 100.0, **limits: Any
) -> tuple[str, str] | None:
    """Return the violated limit, with all limits off except those given."""
    wide = {
        "max_error_share": 1.0, "max_dropped_share": None, "max_slowdown": None, "max_growth_bytes": None,
        "max_drift": None, "min_frames": 20, "slow_reports": 2,
    }  # fmt: skip
    return violated_limit(samples, since, ["faces"], was or NodeBaseline(), GateSection(**{**wide, **limits}))


# Baseline


def test_a_baseline_has_the_medians_of_the_reports() -> None:
    samples = [
        report(1, {"doors": PipelineSample(0, p99_ms=1.0016), "gates": PipelineSample(0)}, memory_bytes=10),
        report(2, {"doors": PipelineSample(0, p99_ms=9.0), "gates": PipelineSample(0, p99_ms=0.0)}, memory_bytes=0),
        report(3, {"doors": PipelineSample(0, p99_ms=1.0016), "gates": PipelineSample(0, p99_ms=4.0)}, memory_bytes=40),
        report(4, {"halls": PipelineSample(0)}, memory_bytes=31),
    ]

    assert baseline(samples, ["faces"]) == NodeBaseline({"doors": 1.002, "gates": 2.0}, 31, 0.0)
    assert baseline(samples[:2], ["faces"]) == NodeBaseline({"doors": 5.001, "gates": 0.0}, 10, 0.0)


def test_a_baseline_without_reports_is_empty() -> None:
    assert baseline([], ["faces"]) == NodeBaseline({}, 0, 0.0) == NodeBaseline()
    assert baseline([report(1)], ["faces"]) == NodeBaseline()
    assert ModelSample(FILE) == ModelSample(FILE, 0, None)


def test_the_dead_share_of_a_baseline_is_over_the_reports_of_one_session() -> None:
    first, last = report(1, doors(1000, dead=500)), report(9, doors(1300, dead=600))
    other_run = report(1, doors(1000, dead=500), session="run-0")

    assert baseline([first, report(5, doors(7777)), last], ["faces"]).dead_share == 0.3333
    assert baseline([other_run, last], ["faces"]).dead_share == 0.4615, "since it started"
    assert baseline([last], ["faces"]).dead_share == 0.4615, "since it started"


def test_only_pipelines_with_the_model_count_unless_none_has_it() -> None:
    pipelines = {"doors": PipelineSample(100, 50, models=("faces",)), "gates": PipelineSample(300, 0, models=("cars",))}

    assert baseline([report(9, pipelines)], ["faces"]).dead_share == 0.5
    assert baseline([report(9, pipelines)], ["plates"]).dead_share == 0.125


# Restarts


def test_restarts_are_sessions_with_these_files() -> None:
    runs = [
        report(1, session="a"),
        report(2, session="a"),
        report(3, session="b", models={"faces": ModelSample(OTHER)}),
        report(4, session="c", models={"cars": ModelSample(OTHER), "faces": ModelSample(FILE)}),
        report(5, session="d"),
    ]

    assert count_restarts(runs, [FILE]) == 2
    assert count_restarts(runs[:1], [FILE]) == 0
    assert count_restarts(runs, ["sha256:none"]) == 0
    assert count_restarts(runs, [FILE, OTHER]) == 3


def test_slow_reports_is_limited_to_the_reports_that_are_kept() -> None:
    assert GateSection(slow_reports=MAX_SAMPLES).slow_reports == 12
    with pytest.raises(ValidationError):
        GateSection(slow_reports=MAX_SAMPLES + 1)


# Limits


def test_only_reports_since_the_change_count() -> None:
    failing = report(100, state="failing", reasons="a stage hangs")

    assert found([failing]) == ("failing", "its health is failing: a stage hangs")
    assert found([failing], since=100.5) is None
    assert found([failing, failing, report(110)]) is None, "the last report counts"
    assert found([]) is None
    assert found([report(100, state="degraded")]) is None


def test_memory_growth_is_limited() -> None:
    was = NodeBaseline(memory_bytes=5000)

    assert found([report(100, memory_bytes=6000)], was, max_growth_bytes=1000) is None
    assert found([report(100, memory_bytes=6001)], was, max_growth_bytes=1000) == (
        "memory-growth",
        "its memory grew by 1,001 bytes; 1,000 allowed",
    )
    assert found([report(100, memory_bytes=9000)], was) is None
    assert found([report(100, memory_bytes=9000)], NodeBaseline(), max_growth_bytes=1000) is None, (
        "the baseline is unknown"
    )
    assert found([report(100, memory_bytes=1)], NodeBaseline(), max_growth_bytes=0) is None
    assert found([report(100, memory_bytes=2)], NodeBaseline(memory_bytes=1), max_growth_bytes=0) is not None


def test_drift_is_limited() -> None:
    def drifted(drift: float | None) -> list[HealthSample]:
        return [report(100, models={"faces": ModelSample(FILE, 1, drift)})]

    assert found(drifted(0.5), max_drift=0.5) is None
    assert found(drifted(0.501), max_drift=0.5) == ("drift", "drift of faces is 0.501; 0.5 allowed")
    assert found(drifted(9.0)) is None
    assert found(drifted(None), max_drift=0.5) is None
    assert found([report(100, models={})], max_drift=0.5) is None


def test_the_drift_of_each_model_counts() -> None:
    models = {"faces": ModelSample(FILE, 1, 0.1), "cars": ModelSample(OTHER, 1, 0.9)}
    limits = GateSection(max_drift=0.5)

    for names in (["faces", "cars"], ["cars", "faces"], ["plates", "cars"]):
        assert violated_limit([report(100, models=models)], 100, names, NodeBaseline(), limits) == (
            "drift",
            "drift of cars is 0.9; 0.5 allowed",
        )


def test_the_dead_share_is_limited_relative_to_the_baseline() -> None:
    def died(dead: int, was: float = 0.0) -> tuple[str, str] | None:
        samples = [report(90, doors(1000, dead=100)), report(110, doors(2000, dead=100 + dead))]
        return found(samples, NodeBaseline(dead_share=was), max_error_share=0.25)

    assert died(250) is None
    assert died(251) == ("error-rate", "25.1% of 1,000 frames were dead-lettered; 25.0% allowed")
    assert died(500, was=0.25) is None
    assert died(501, was=0.25) == ("error-rate", "50.1% of 1,000 frames were dead-lettered; 50.0% allowed")


def test_the_dropped_share_is_limited() -> None:
    def dropped(frames: int, share: float | None = 0.25) -> tuple[str, str] | None:
        samples = [report(90, doors(1000, dropped=100)), report(110, doors(2000, dropped=100 + frames))]
        return found(samples, max_dropped_share=share)

    assert dropped(250) is None
    assert dropped(251) == ("dropped", "25.1% of 1,000 frames were dropped; 25.0% allowed")
    assert dropped(1000, share=None) is None


def test_shares_of_fewer_than_min_frames_do_not_count() -> None:
    def died(received: int, min_frames: int) -> bool:
        samples = [report(90, doors(0)), report(110, doors(received, dead=received))]
        return found(samples, max_error_share=0.0, min_frames=min_frames) is not None

    assert (died(19, 20), died(20, 20)) == (False, True)
    assert (died(0, 0), died(1, 0)) == (False, True)


def test_frames_count_from_the_last_report_before_the_change_in_the_same_session() -> None:
    def died(samples: list[HealthSample]) -> str | None:
        violation = found(samples, max_error_share=0.0)
        return None if violation is None else violation[1].split(" frames")[0]

    last = report(110, doors(400, dead=40))
    earliest, before = report(80, doors(0)), report(99.9, doors(300))

    assert died([earliest, report(85, doors(9)), before, last]) == "40.0% of 100"
    assert died([report(80, doors(0), session="run-0"), before, last]) == "40.0% of 100"
    assert died([report(99, doors(350), session="run-0"), last]) == "10.0% of 400", "it has restarted since"
    assert died([report(100, doors(350), session="run-0"), last]) == "10.0% of 400"
    ran = [report(at, doors(300), session="run-0") for at in (90, 101, 105)]
    assert died([*ran, last]) == "10.0% of 400"
    assert died([report(90, doors(200)), report(100, doors(300)), last]) == "20.0% of 200", (
        "a report at that very moment is not before it"
    )
    assert died([report(100, doors(300)), report(105, doors(9)), last]) == "40.0% of 100", (
        "from the first report since then"
    )
    assert died([report(100, doors(300)), last]) == "40.0% of 100"
    assert died([last]) is None, "the baseline is unknown"


def test_a_new_pipeline_counts_from_0_and_counts_never_go_negative() -> None:
    before = report(90, {"gates": PipelineSample(50, 20, 20, models=("faces",))})
    after = {
        "doors": PipelineSample(80, 40, 8, models=("faces",)),
        "gates": PipelineSample(70, 10, 10, models=("faces",)),
        "halls": PipelineSample(900, 900, 900),
    }

    assert found([before, report(110, after)], max_error_share=0.39) == (
        "error-rate",
        "40.0% of 100 frames were dead-lettered; 39.0% allowed",
    )
    assert found([before, report(110, after)], max_dropped_share=0.07) == (
        "dropped",
        "8.0% of 100 frames were dropped; 7.0% allowed",
    )
    restarted = report(
        110, {"gates": PipelineSample(20, 20, 0, models=("faces",)), "doors": PipelineSample(30, 3, models=("faces",))}
    )
    assert found([before, restarted], max_error_share=0.09) == (
        "error-rate",
        "10.0% of 30 frames were dead-lettered; 9.0% allowed",
    )


def slow(*p99_ms: float | None, was: float | None = 10.0, **limits: Any) -> tuple[str, str] | None:
    samples = [report(100 + at, doors(0, p99_ms=value)) for at, value in enumerate(p99_ms)]
    before = {} if was is None else {"doors": was}
    return found(samples, NodeBaseline(before), **{"max_slowdown": 2.0, "slow_reports": 2, **limits})


def test_latency_is_limited_relative_to_the_baseline() -> None:
    assert slow(20.0, 20.0) is None
    assert slow(20.1, 20.2) == ("latency", "p99 of doors is 20.2 ms, was 10.0 ms; 20.0 ms allowed")
    assert slow(99.0, 20.0) is None
    assert slow(99.0, 99.0, max_slowdown=None) is None
    assert slow(99.0, 99.0, was=None) is None
    assert slow(99.0, 99.0, was=0.0) is None


def test_latency_counts_only_in_consecutive_reports() -> None:
    assert slow(99.0) is None
    assert slow(99.0, slow_reports=1) is not None
    assert slow(5.0, 99.0, 99.0) is not None
    assert slow(99.0, 99.0, 5.0) is None
    assert slow(99.0, None) is None
    assert slow(97.0, 98.0, 99.0, slow_reports=3) == (
        "latency",
        "p99 of doors is 99.0 ms, was 10.0 ms; 20.0 ms allowed",
    )
    assert slow(99.0, 99.0, slow_reports=3) is None


def test_a_latency_below_a_millisecond_is_never_too_slow() -> None:
    assert slow(1.0, 1.0, was=0.1) is None
    assert slow(1.1, 1.1, was=0.1) == ("latency", "p99 of doors is 1.1 ms, was 0.1 ms; 1.0 ms allowed")


def test_the_latency_of_each_pipeline_with_the_model_counts() -> None:
    def pipelines(**p99_ms: float) -> dict[str, PipelineSample]:
        return {name: PipelineSample(0, p99_ms=value, models=("faces",)) for name, value in p99_ms.items()}

    limits = GateSection(max_slowdown=2.0, slow_reports=2)
    was = NodeBaseline({"b": 10.0, "c": 10.0})

    def latency(*reports: dict[str, PipelineSample]) -> tuple[str, str] | None:
        samples = [report(100 + at, one) for at, one in enumerate(reports)]
        return violated_limit(samples, 100, ["faces"], was, limits)

    late = ("latency", "p99 of c is 30.0 ms, was 10.0 ms; 20.0 ms allowed")
    assert latency(pipelines(a=99, b=1, c=30), pipelines(a=99, b=1, c=30)) == late, "a is new, b is quick"
    assert latency(pipelines(a=99, c=5), pipelines(a=99, c=30)) is None
    assert latency(pipelines(a=99), pipelines(a=99, c=30)) is None, "one report is not enough"
    others = {"d": PipelineSample(0, p99_ms=99.0, models=("cars",)), **pipelines(c=5)}
    assert violated_limit([report(100, others)] * 2, 100, ["faces"], NodeBaseline({"d": 1.0}), limits) is None


def test_the_most_serious_violation_is_reported() -> None:
    """If memory grows, latency is no longer the point."""
    was = NodeBaseline({"doors": 1.0}, 1000)
    bad = report(110, doors(100, 100, 100, 99.0), memory_bytes=5000, models={"faces": ModelSample(FILE, 1, 9.0)})
    first = report(100, doors(0, p99_ms=99.0))
    limits = {
        "max_error_share": 0.1,
        "max_dropped_share": 0.1,
        "max_slowdown": 2.0,
        "max_growth_bytes": 10,
        "max_drift": 0.1,
    }

    order = []
    for off in ("max_growth_bytes", "max_drift", "max_error_share", "max_dropped_share", "max_slowdown"):
        violation = found([first, bad], was, **limits)
        order.append(violation[0] if violation else "")
        limits |= {off: 1.0 if off == "max_error_share" else None}
    assert order == ["memory-growth", "drift", "error-rate", "dropped", "latency"]
    assert found([first, bad], was, **limits) is None
