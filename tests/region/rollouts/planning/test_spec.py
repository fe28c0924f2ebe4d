"""Schema of a rollout's file: defaults, limits and what is refused."""

from __future__ import annotations

from datetime import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hedgerow.configfile import BadConfigFile, explain
from hedgerow.region.rollouts.planning.spec import (
    DAYS,
    GateSection,
    RolloutPlan,
    SwapSection,
    WindowSection,
    load_plan,
    percent,
    sites,
    stored_plan,
)

MODELS = {"faces": {"version": "2.0.0"}}


def plan(**fields: Any) -> RolloutPlan:
    return RolloutPlan.model_validate({"rollout": "faces-2", "models": MODELS, **fields})


def errors(**fields: Any) -> list[tuple[str, str]]:
    """Return the messages of an invalid plan, with their advice."""
    with pytest.raises(ValidationError) as refused:
        plan(**fields)
    return [explain(error) for error in refused.value.errors()]


def test_defaults_of_a_plan() -> None:
    one = plan()

    assert (one.why, one.target, one.waves, one.soak_s, one.max_failed) == ("", "", ("5%", "25%"), 600, 0)
    assert (one.on_failure, one.offline, one.windows) == ("roll-back", "catch-up", ())
    assert (one.gate, one.swap) == (GateSection(), SwapSection())
    assert (one.models["faces"].model, one.models["faces"].digest) == (None, None)
    assert one.selector.matches({})


def test_defaults_of_a_gate() -> None:
    assert GateSection().model_dump() == {
        "min_frames": 20,
        "max_error_share": 0.01,
        "max_dropped_share": None,
        "max_slowdown": 2.0,
        "slow_reports": 3,
        "max_growth_bytes": 512 * 2**20,
        "max_restarts": 2,
        "max_drift": None,
        "max_silence_s": 300,
        "timeout_s": 3600,
    }


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("0%", 0.0),
        ("5%", 0.05),
        ("12.5%", 0.125),
        ("99%", 0.99),
        ("100%", 1.0),
        ("101%", None),
        ("5", None),
        ("", None),
    ],
)
def test_a_percentage_is_parsed_or_not_one(text: str, share: float | None) -> None:
    assert percent(text) == share


@pytest.mark.parametrize(
    ("text", "count"),
    [("1 site", 1), ("3 sites", 3), ("12345 sites", 12345), ("0 sites", None), ("123456 sites", None), ("sites", None)],
)
def test_a_number_of_sites_is_parsed_or_not_one(text: str, count: int | None) -> None:
    assert sites(text) == count


def test_a_wave_is_a_number_a_percentage_sites_or_a_selector() -> None:
    waves = (1, "0%", "100%", "1 site", "3 sites", "each site", "ring=early", "!spare")

    assert plan(waves=waves).waves == waves
    assert plan(waves=["5%"] * 100).waves == ("5%",) * 100
    assert errors(waves=["5%"] * 101) == [
        ("must list at most 100; got ['5%', '5%', '5%', '5%', '5%', '5%', '5%', '5%', '5%', '5…", "")
    ]


@pytest.mark.parametrize("wave", ["", " ", "101%", "a=(", "0 sites"])
def test_an_invalid_wave_is_refused(wave: str) -> None:
    (error, *_), *_ = errors(waves=[wave])

    assert error.startswith("must not be empty" if not wave.strip() else f"{wave!r} is not a label selector"), error


def test_a_wave_must_have_a_node() -> None:
    assert plan(waves=[1]).waves == (1,)
    ((message, _),) = errors(waves=[0])
    assert message.startswith("a wave must have at least 1 node")


def test_an_invalid_target_is_refused_with_a_remedy() -> None:
    ((message, advice),) = errors(target="a=(")

    assert message.startswith("'a=(' is not a label selector")
    assert advice


@pytest.mark.parametrize(
    ("max_failed", "reached", "allowed"),
    [(0, 9, 0), (3, 9, 3), ("0%", 9, 0), ("100%", 9, 9), ("34%", 3, 1), ("33%", 3, 0), ("10%", 30, 3), ("12.5%", 8, 1)],
)
def test_allowed_failures_are_a_number_or_a_share_of_the_nodes_reached(
    max_failed: int | str, reached: int, allowed: int
) -> None:
    assert plan(max_failed=max_failed).allowed_failures(reached) == allowed


@pytest.mark.parametrize(
    ("max_failed", "message"),
    [
        (-1, "`max_failed` must be at least 0"),
        ("3 sites", "must be a number of nodes, or a percentage like 5%"),
        ("101%", "must be a number of nodes, or a percentage like 5%"),
    ],
)
def test_an_invalid_number_of_failures_is_refused(max_failed: int | str, message: str) -> None:
    assert any(error.startswith(message) for error, _ in errors(max_failed=max_failed))


def test_a_plan_has_1_to_20_models() -> None:
    models = {f"m{number}": {"version": "1.0.0"} for number in range(21)}

    assert len(plan(models=dict(list(models.items())[:20])).models) == 20
    with pytest.raises(ValidationError):
        plan(models=models)
    with pytest.raises(ValidationError):
        plan(models={})


def test_a_reason_has_at_most_500_characters() -> None:
    assert plan(why="x" * 500).why == "x" * 500
    with pytest.raises(ValidationError):
        plan(why="x" * 501)


def test_the_soak_may_be_0_but_not_negative() -> None:
    assert plan(soak_s=0).soak_s == 0
    with pytest.raises(ValidationError):
        plan(soak_s=-0.5)


@pytest.mark.parametrize(
    ("name", "smallest", "too_small"),
    [
        ("min_frames", 0, -1),
        ("max_error_share", 0, -0.001),
        ("max_dropped_share", 0, -0.001),
        ("max_slowdown", 0.001, 0),
        ("slow_reports", 1, 0),
        ("max_growth_bytes", 0, -1),
        ("max_restarts", 0, -1),
        ("max_drift", 0.001, 0),
        ("max_silence_s", 0.001, 0),
        ("timeout_s", 0.001, 0),
    ],
)
def test_lower_limits_of_a_gate(name: str, smallest: float, too_small: float) -> None:
    assert getattr(GateSection.model_validate({name: smallest}), name) == smallest
    with pytest.raises(ValidationError):
        GateSection.model_validate({name: too_small})


@pytest.mark.parametrize(
    ("name", "largest", "too_large"),
    [("max_error_share", 1, 1.001), ("max_dropped_share", 1, 1.001), ("slow_reports", 12, 13)],
)
def test_upper_limits_of_a_gate(name: str, largest: float, too_large: float) -> None:
    assert getattr(GateSection.model_validate({name: largest}), name) == largest
    with pytest.raises(ValidationError):
        GateSection.model_validate({name: too_large})


@pytest.mark.parametrize("section", [GateSection, SwapSection, WindowSection])
def test_unknown_keys_are_refused(section: Any) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        section.model_validate({"begin": "10:00", "end": "11:00", "max_errors": 1})


def test_a_window_has_every_day_and_utc_by_default() -> None:
    window = WindowSection(begin="09:30", end="17:05")

    assert (window.days, window.time_zone) == (DAYS, "UTC")
    assert DAYS == ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    assert (window.opens, window.closes) == (time(9, 30), time(17, 5))
    assert WindowSection(days=("mon",), begin="09:30", end="17:05").days == ("mon",)
    with pytest.raises(ValidationError):
        WindowSection(days=(), begin="09:30", end="17:05")


def test_a_swap_section_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SwapSection().shadow_s = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("clock", ["24:00", "25:00", "9:30", "09:60", "09:30:00", "noon"])
def test_an_invalid_time_of_day_is_refused(clock: str) -> None:
    with pytest.raises(ValidationError, match="must be a time of day, 00:00 to 23:59"):
        WindowSection(begin=clock, end="17:00")
    for valid in ("00:00", "19:59", "23:59"):
        assert WindowSection(begin=valid, end="17:00").begin == valid


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "../UTC", ""])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValidationError, match="is not a time zone known to this machine"):
        WindowSection(begin="09:00", end="17:00", time_zone=zone)


def test_a_file_is_loaded_or_refused_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "rollout.yaml"
    file.write_text("rollout: faces-2\nmodels: {faces: {version: 2.0.0}}\n")
    assert load_plan(file) == plan() == stored_plan({"rollout": "faces-2", "models": MODELS})
    file.write_text("rollout: faces-2\nmodels: {faces: {version: 2.0.0}}\nsoak_s: -1\n")

    with pytest.raises(BadConfigFile, match="must be at least 0") as refused:
        load_plan(file)
    assert [problem.line for problem in refused.value.problems] == [3]
    assert refused.value.remedy == f"Fix the file, then run `hedgerow rollout check {file}`."
