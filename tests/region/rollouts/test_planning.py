"""Properties of the planning modules: windows, waves, gates, membership."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.region.examples import ASSIGNMENT, ERROR, FILE, NOW, A, judged, observed, rollout, sample
from tests.region.responders import digest, ref

from hedgerow.region.rollouts.planning.gate import GateVerdict, ObservedNode, Presence
from hedgerow.region.rollouts.planning.health_samples import ModelSample, NodeBaseline, baseline
from hedgerow.region.rollouts.planning.membership import conflict, joins
from hedgerow.region.rollouts.planning.spec import DAYS, RolloutPlan, WindowSection, stored_plan
from hedgerow.region.rollouts.planning.state import Phase, Task
from hedgerow.region.rollouts.planning.waves import Member, assign
from hedgerow.region.rollouts.planning.windows import opens_at
from hedgerow.topics import Address

clocks = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.integers(0, 59))
windows = st.builds(
    WindowSection, days=st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(tuple), begin=clocks, end=clocks
)
times = st.integers(1_700_000_000, 1_900_000_000).map(float)


def is_open(window: WindowSection, at: float) -> bool:
    """Whether a window is open, by the wall clock."""
    now = datetime.fromtimestamp(at, UTC)
    today, yesterday = DAYS[now.weekday()] in window.days, DAYS[now.weekday() - 1] in window.days
    clock = now.time()
    if window.opens < window.closes:
        return today and window.opens <= clock < window.closes
    return (today and clock >= window.opens) or (yesterday and clock < window.closes)


@given(st.lists(windows, min_size=1, max_size=3), times)
def test_a_window_is_open_by_the_clock_and_opens_no_earlier_than_computed(
    nodes: list[WindowSection], now: float
) -> None:
    at = opens_at(nodes, now)

    assert (at <= now) == any(is_open(window, now) for window in nodes)
    if at > now:
        assert any(is_open(window, at) for window in nodes)
        steps = min(200, math.ceil((at - now) / 60))
        assert not any(is_open(window, now + n * (at - now) / steps) for n in range(steps) for window in nodes)


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        ("2026-03-28T20:00+00:00", "2026-03-28T21:00+00:00"),  # winter: 22:00 in Berlin is 21:00 UTC
        ("2026-03-29T19:00+00:00", "2026-03-29T20:00+00:00"),  # daylight saving time began that morning
        ("2026-03-29T01:30+00:00", "2026-03-29T01:30+00:00"),  # the short night: still open
        ("2026-10-25T04:30+00:00", "2026-10-25T04:30+00:00"),  # the long night
    ],
)
def test_a_window_follows_daylight_saving_time(now: str, opens: str) -> None:
    night = WindowSection(begin="22:00", end="06:00", time_zone="Europe/Berlin")
    at = datetime.fromisoformat(now).timestamp()

    assert max(at, opens_at([night], at)) == datetime.fromisoformat(opens).timestamp()


members = st.lists(
    st.builds(
        lambda site, number, present, ring: Member(Address("r", f"s{site}", f"n{number}"), {"ring": ring}, present),
        st.integers(0, 4),
        st.integers(0, 30),
        st.booleans(),
        st.sampled_from(["early", "late"]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda member: member.address,
)
wave_lists = st.lists(
    st.one_of(
        st.integers(1, 10), st.integers(0, 100).map(lambda n: f"{n}%"), st.sampled_from(["2 sites", "each site", "ring=early"])
    ),
    max_size=5,
)  # fmt: skip


@given(wave_lists, members, st.randoms())
def test_each_node_is_in_one_wave_and_the_order_is_reproducible(
    waves: list[int | str], nodes: list[Member], random: Any
) -> None:
    assigned = assign("faces-2", waves, nodes)
    mixed = list(nodes)
    random.shuffle(mixed)

    assert sorted(node for wave in assigned for node in wave.nodes) == sorted(member.address for member in nodes)
    assert all(wave.nodes for wave in assigned)
    assert assign("faces-2", waves, mixed) == assigned


@given(st.integers(1, 100), members)
def test_a_first_wave_by_percentage_has_its_size_and_prefers_present_nodes(share: int, nodes: list[Member]) -> None:
    first = assign("faces-2", [f"{share}%"], nodes)[0]
    present = {member.address for member in nodes if member.present}

    assert len(first.nodes) == max(1, math.ceil(share * len(nodes) / 100))
    assert len(present & set(first.nodes)) == min(len(present), len(first.nodes))


@given(st.sampled_from(["1 site", "2 sites", "each site"]), members)
def test_a_wave_by_site_has_all_nodes_of_the_site(wave: str, nodes: list[Member]) -> None:
    for one in assign("faces-2", [wave], nodes)[:-1]:
        sites = {node.site for node in one.nodes}
        assert set(one.nodes) == {member.address for member in nodes if member.address.site in sites}


plans = st.fixed_dictionaries(
    {"rollout": st.just("r"), "models": st.just({"faces": {"version": "1.0.0"}})},
    optional={
        "waves": wave_lists, "max_failed": st.one_of(st.integers(0, 9), st.just("12.5%")), "soak_s": st.integers(0, 9999),
        "target": st.sampled_from(["", "site=a", "x in (a, b), !y"]), "windows": st.lists(windows.map(lambda w: w.model_dump())),
    },
)  # fmt: skip


@given(plans)
def test_a_stored_plan_round_trips(content: dict[str, Any]) -> None:
    plan = RolloutPlan.model_validate(content)

    assert stored_plan(plan.model_dump(mode="json", exclude_unset=True)) == plan
    assert 0 <= plan.allowed_failures(8) <= 9


@pytest.mark.parametrize(
    ("known", "code"),
    [
        (observed(state="failed", error=ERROR, serving={"model": ref("1.0.0")}), "golden-failed"),
        (
            observed(state="failed", error=ERROR, rolled_back=["faces"], serving={"model": ref("1.0.0")}),
            "golden-failed",
        ),
        (observed(generation=8, rolled_back=["faces"], serving={"model": ref("1.0.0")}), "rolled-back"),
        (observed(state="rejected"), "rejected"),
        (observed(state="timed-out"), "timed-out"),
        (observed(serving={"file_digest": digest("another")}), "wrong-file"),
        (observed([sample(NOW - 20, 1), sample(NOW - 10, 2, dead=60)]), "error-rate"),
        (observed([sample(NOW - 20, 1, p99_ms=15.0), sample(NOW - 10, 2, p99_ms=16.0)]), "latency"),
        (observed([sample(NOW - 20, 1), sample(NOW - 10, 2, memory_bytes=900 << 20)]), "memory-growth"),
        (observed([sample(NOW - 10, 1, state="failing", reasons="a stage hangs")]), "failing"),
        (observed([sample(NOW - 40 + 10 * n, 1, session=f"run-{n}") for n in range(4)]), "restarts"),
        (observed([sample(NOW - 10, 1, models={"faces": ModelSample(FILE, 100, drift=0.9)})]), "drift"),
        (observed([sample(NOW - 20, 1), sample(NOW - 10, 2, dropped=90)]), "dropped"),
    ],
)
def test_a_bad_node_is_found_with_a_code_and_reason(known: ObservedNode, code: str) -> None:
    finding = judged(known, max_drift=0.5, max_dropped_share=0.5)

    assert (finding.verdict, finding.code) == (GateVerdict.BAD, code)
    assert finding.reason


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        (ObservedNode(True, NOW - 1), "has not reported"),
        (observed(generation=6), "generation 6, not 7"),
        (observed(state="in-progress", step="fetch faces"), "in-progress: fetch faces"),
        (observed(models={}), "not served"),
        (observed(serving={"model": ref("1.0.0")}), "faces is faces 1.0.0"),
        (observed(serving={"model": None}), "the node's own file"),
        (observed(serving={"stage": "probation"}), "still in stage probation"),
        (observed([]), "no health report since"),
        (observed([sample(NOW - 95, 3)]), "no health report since"),
        (
            observed([sample(NOW - 10, 3, models={"faces": ModelSample(digest("file1.0.0"))})]),
            "still shows another file",
        ),
        (observed([sample(NOW - 10, 0)], serving={"results": 3}), "3 of 20 frames"),
    ],
)
def test_without_proof_a_node_is_unknown_and_times_out_when_due(known: ObservedNode, missing: str) -> None:
    early = judged(known)
    overdue = judged(known, assignment=replace(ASSIGNMENT, due=NOW - 1))

    assert (early.verdict, missing in early.reason) == (GateVerdict.UNKNOWN, True), early
    assert (overdue.verdict, overdue.code, overdue.state) == (GateVerdict.BAD, "timed-out", "timed-out")


def test_a_model_is_not_judged_by_the_drift_of_another() -> None:
    models = {"faces": ModelSample(FILE, 100, drift=0.4), "doors": ModelSample(digest("doors"), 100, drift=0.9)}

    assert judged(observed([sample(NOW - 10, 1, models=models)]), max_drift=0.5).verdict is GateVerdict.GOOD


def test_frames_counted_in_health_are_proof_too() -> None:
    """The frames in a node's report are as old as its last change of state."""
    assert judged(observed(serving={"results": 1})).verdict is GateVerdict.GOOD


def test_the_dead_share_before_the_change_is_not_held_against_the_version() -> None:
    """A camera that sends one broken picture in three did so before the change, too."""
    before = [sample(NOW - 200 + 10 * n, n, dead=33 * n) for n in range(8)]
    after = observed([sample(NOW - 20, 20, dead=660), sample(NOW - 10, 21, dead=693)])

    assert baseline(before, ["faces"]).dead_share == pytest.approx(0.33)
    assert judged(after).code == "error-rate"
    assert judged(after, assignment=replace(ASSIGNMENT, was=baseline(before, ["faces"]))).verdict is GateVerdict.GOOD


def test_latency_that_is_negligible_or_a_single_outlier_does_not_count() -> None:
    once = observed([sample(NOW - 20, 1), sample(NOW - 10, 2, p99_ms=50.0)])
    small = replace(ASSIGNMENT, was=NodeBaseline({"doors": 0.1}))

    assert judged(once).verdict is GateVerdict.GOOD
    assert (
        judged(observed([sample(NOW - 20, 1, p99_ms=0.9), sample(NOW - 10, 2, p99_ms=0.9)]), assignment=small).verdict
        is GateVerdict.GOOD
    )


@given(
    online=st.sampled_from([True, False, None]),
    last_seen_s=st.one_of(st.none(), st.floats(0, 1000)),
    since_s=st.one_of(st.none(), st.floats(0, 1000)),
)
def test_a_silent_node_is_never_good_and_no_node_is_bad_while_the_region_does_not_listen(
    online: bool | None, last_seen_s: float | None, since_s: float | None
) -> None:
    known = replace(observed(), online=online, last_seen=None if last_seen_s is None else NOW - last_seen_s)
    finding = judged(known, since=None if since_s is None else NOW - since_s)
    present = online is not False and last_seen_s is not None and last_seen_s <= 35

    if finding.verdict is GateVerdict.GOOD:
        assert present
        assert since_s is not None
    if since_s is None or since_s <= 35:
        assert finding.verdict is not GateVerdict.BAD
        assert finding.presence is not Presence.ABSENT or online is False


def test_a_node_is_in_one_rollout_at_a_time() -> None:
    in_progress = rollout("one", {"a": Task(0), "b": Task(0, state="removed")})

    assert conflict([A], [in_progress]) == "one is in-progress and includes r/s/a"
    assert conflict([Address("r", "s", "b"), Address("r", "s", "c")], [in_progress]) is None
    assert conflict([A], [replace(in_progress, phase=Phase.FAILED)]) is None
    assert joins(A, {}, [], None, [rollout("two", {}), in_progress]) == []


def test_a_new_node_joins_the_newest_rollout_that_selects_it() -> None:
    older = rollout("older", {}, Phase.SUCCEEDED)
    newer = rollout("newer", {}, Phase.SUCCEEDED, "ring=early")
    failed = rollout("failed", {}, Phase.FAILED)

    assert joins(A, {"ring": "early"}, [], None, [failed, newer, older]) == [newer]
    assert joins(A, {"ring": "late"}, [], None, [failed, newer, older]) == [older]
    assert joins(A, {"ring": "late"}, ["faces"], None, [failed, newer, older]) == []
    assert joins(A, {"ring": "early"}, [], None, [replace(newer, phase=Phase.ROLLING_BACK), older]) == []
