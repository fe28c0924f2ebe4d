"""The gate: each limit exactly at, just below and just above its value."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.region.examples import (
    ASSIGNMENT,
    ERROR,
    FILE,
    GOOD,
    NEW,
    NOW,
    OLD,
    SILENT_AFTER_S,
    bad,
    judged,
    observed,
    reported,
    sample,
    unknown,
)
from tests.region.responders import digest, ref

from hedgerow.region.rollouts.planning.gate import (
    UNPROVED,
    GateFinding,
    GateVerdict,
    Listening,
    ObservedNode,
    Presence,
    evaluate,
    evaluate_rollback,
)
from hedgerow.region.rollouts.planning.health_samples import ModelSample, NodeBaseline
from hedgerow.region.rollouts.planning.spec import GateSection
from hedgerow.wire.fleet import ModelRef

DOORS = ref("3.0.0", "doors")
TWO = replace(ASSIGNMENT, models={"faces": NEW, "doors": DOORS}, files={})


def two(**doors: Any) -> dict[str, Any]:
    """Return the reported models of a node that was assigned two."""
    faces = {"model": NEW, "file_digest": FILE, "backend": "b", "device": "CPU", "since": NOW - 90, "results": 300}
    return {"faces": faces, "doors": {**faces, "model": DOORS, "file_digest": digest("doors"), **doors}}


# Presence


@pytest.mark.parametrize(
    ("online", "last_seen_s", "since_s", "presence"),
    [
        (True, 35.0, 1000.0, Presence.PRESENT),
        (None, 35.0, 1000.0, Presence.PRESENT),
        (True, 35.1, 1000.0, Presence.ABSENT),
        (True, 35.1, 35.0, Presence.UNKNOWN),
        (True, 35.1, 35.1, Presence.ABSENT),
        (True, None, 35.0, Presence.UNKNOWN),
        (None, None, 35.1, Presence.ABSENT),
        (False, 0.0, 1.0, Presence.ABSENT),
        (True, 0.0, None, Presence.UNKNOWN),
        (False, 0.0, None, Presence.UNKNOWN),
    ],
)
def test_presence_follows_from_silence_and_from_how_long_the_region_has_listened(
    online: bool | None, last_seen_s: float | None, since_s: float | None, presence: Presence
) -> None:
    known = ObservedNode(online, None if last_seen_s is None else NOW - last_seen_s)
    listening = Listening(None if since_s is None else NOW - since_s, SILENT_AFTER_S)

    assert listening.presence(known, NOW) is presence


def test_defaults_of_an_observed_node() -> None:
    known = ObservedNode()

    assert (known.online, known.last_seen, known.reported, list(known.samples)) == (None, None, None, [])


# Reported failures


def test_a_node_with_full_proof_is_good() -> None:
    assert judged(observed()) == GOOD


def test_while_the_region_is_disconnected_every_node_is_unknown() -> None:
    failed = observed(state="failed", error=ERROR)

    assert judged(failed, since=None) == unknown(
        "not-listening", "the region is not connected to its broker", Presence.UNKNOWN
    )


@pytest.mark.parametrize("state", ["failed", "timed-out", "rejected", "removed", "canceled"])
def test_a_node_that_reports_a_failure_is_bad(state: str) -> None:
    assert judged(observed(state=state, error=ERROR)) == bad("golden-failed", "numbers are off", state=state)
    assert judged(observed(state=state)) == bad(state, "no reason given", state=state)


def test_a_failure_with_another_generation_does_not_count() -> None:
    earlier = observed(state="failed", error=ERROR, generation=6, rolled_back=["faces"], serving={"model": OLD})

    assert judged(earlier) == unknown(UNPROVED, "it is at generation 6, not 7")
    assert judged(observed(state="failed", error=ERROR, generation=8)) == GOOD


def test_a_rollback_counts_in_any_generation() -> None:
    rollback = {"rolled_back": ["faces"], "serving": {"model": OLD}}

    assert judged(observed(generation=8, **rollback)) == bad("rolled-back", "no reason given")
    assert judged(observed(error=ERROR, **rollback)) == bad("golden-failed", "numbers are off")
    assert judged(observed(rolled_back=["faces"])) == GOOD, "it serves the version: a second try succeeded"
    assert judged(observed(rolled_back=["doors"], serving={"model": OLD})).verdict is GateVerdict.UNKNOWN, (
        "another model was rolled back"
    )
    assert judged(observed(rolled_back=["faces"], models={})) == bad("rolled-back", "no reason given")


def test_a_quarantined_version_is_bad_and_other_quarantined_versions_do_not_matter() -> None:
    entry = {"name": "faces", "version": "2.0.0", "code": "crashed", "reason": "it crashed twice", "at": NOW}
    this, other = {**entry, "digest": NEW.digest}, {**entry, "digest": OLD.digest}

    assert judged(observed(quarantined=[other, this])) == bad(
        "crashed", "faces 2.0.0 is in quarantine: it crashed twice"
    )
    assert judged(observed(quarantined=[other])) == GOOD


def test_each_of_two_models_is_checked() -> None:
    entry = {"name": "doors", "version": "3.0.0", "code": "crashed", "reason": "it crashed", "at": NOW}
    quarantined = observed(models=two(), quarantined=[{**entry, "digest": DOORS.digest}])

    assert judged(quarantined, assignment=TWO) == bad("crashed", "doors 3.0.0 is in quarantine: it crashed")
    assert judged(observed(models=two(model=OLD), rolled_back=["doors"]), assignment=TWO).code == "rolled-back"
    assert judged(observed(models=two(model=OLD)), assignment=TWO).reason == "doors is faces 1.0.0"
    assert (
        judged(observed(models=two()), assignment=replace(TWO, files={"doors": frozenset([FILE])})).code == "wrong-file"
    )


def test_a_file_that_is_not_of_the_version_is_bad_unless_no_files_are_listed() -> None:
    wrong = observed(serving={"file_digest": digest("another")})

    assert judged(wrong) == bad(
        "wrong-file", f"faces runs {digest('another')[:19]}…, which is not a file of faces 2.0.0"
    )
    assert (
        judged(wrong, assignment=replace(ASSIGNMENT, files={})).reason
        == "its health still shows another file for faces"
    )
    assert judged(wrong, assignment=replace(ASSIGNMENT, files={"faces": frozenset()})).code == UNPROVED
    assert judged(observed(serving={"model": OLD, "file_digest": digest("another")})).code == UNPROVED, (
        "it still serves the old version"
    )
    assert judged(observed(models={})).code == UNPROVED


# Silence


@pytest.mark.parametrize(
    ("last_seen_s", "since_s", "assigned_s"),
    [(300, 1000, 1000), (1000, 300, 1000), (1000, 1000, 300), (None, 300, 1000)],
)
def test_silence_counts_from_the_last_message_the_connection_or_the_assignment(
    last_seen_s: float | None, since_s: float, assigned_s: float
) -> None:
    def silent_for_longer_by(seconds: float) -> GateFinding:
        now = NOW + seconds
        known = replace(observed(), last_seen=None if last_seen_s is None else NOW - last_seen_s)
        assignment = replace(ASSIGNMENT, at=NOW - assigned_s, due=math.inf)
        return evaluate(assignment, known, GateSection(), Listening(NOW - since_s, SILENT_AFTER_S), now)

    assert silent_for_longer_by(0).verdict is not GateVerdict.BAD
    assert silent_for_longer_by(0.5) == bad("silent", "nothing received for 5 min", Presence.ABSENT, "timed-out")


def test_a_silent_node_is_not_good_even_with_full_proof() -> None:
    quiet = replace(observed(), last_seen=NOW - 36)

    assert judged(quiet) == unknown("not-heard", "nothing received from it recently", Presence.ABSENT)
    assert judged(quiet, since=NOW - 20) == unknown("not-heard", "nothing received from it recently", Presence.UNKNOWN)


# Health


def test_restarts_are_limited() -> None:
    sessions = [sample(NOW - 40 + 10 * n, 1, session=f"run-{n}") for n in range(4)]

    assert judged(observed(sessions), max_restarts=3).code != "restarts"
    assert judged(observed(sessions), max_restarts=2) == bad("restarts", "it restarted 3 times recently; 2 allowed")
    assert judged(observed(sessions), max_restarts=None).code != "restarts"
    assert judged(observed(sessions), max_restarts=0).code == "restarts"


def test_restarts_with_another_file_do_not_count() -> None:
    other = {"faces": ModelSample(digest("file1.0.0"))}
    sessions = [sample(NOW - 40 + 10 * n, 1, session=f"run-{n}", models=other) for n in range(3)]

    assert judged(observed([*sessions, sample(NOW - 10, 1, session="run-3")]), max_restarts=0).code != "restarts"


def test_health_does_not_count_before_all_models_serve() -> None:
    failing = [sample(NOW - 10, 3, state="failing")]

    assert judged(observed(failing)) == bad("failing", "its health is failing")
    assert judged(observed(failing, serving={"model": OLD})) == unknown(UNPROVED, "faces is faces 1.0.0")
    assert judged(observed(failing, models=two(model=OLD)), assignment=TWO).code == UNPROVED
    assert judged(ObservedNode(True, NOW, None, failing)) == unknown(UNPROVED, "it has not reported what it runs")


def test_health_counts_once_the_last_model_serves() -> None:
    failing = [sample(NOW - 50, 3, state="failing")]

    assert judged(observed(failing, models=two(since=NOW - 50)), assignment=TWO).code == "failing"
    assert judged(observed(failing, models=two(since=NOW - 49)), assignment=TWO).code == UNPROVED


# Missing proof


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        (observed(state="in-progress"), "in-progress"),
        (observed(state="queued", step="verify faces"), "queued: verify faces"),
        (observed(models={}), "faces is not served"),
        (observed(serving={"model": None}), f"faces is the node's own file ({FILE[:19]}…)"),
        (observed(serving={"stage": "split"}), "faces is still in stage split"),
        (observed([]), "no health report since faces began to serve"),
        (observed([sample(NOW - 91, 3)]), "no health report since faces began to serve"),
        (observed([sample(NOW - 10, 0)], serving={"results": 19}), "19 of 20 frames went through faces"),
        (observed([sample(NOW - 10, 0, models={})], serving={"results": 19}), "19 of 20 frames went through faces"),
        (
            observed([sample(NOW - 10, 3, models={"faces": ModelSample(FILE, 19)})], serving={"results": 0}),
            "19 of 20 frames went through faces",
        ),
    ],
)
def test_missing_proof_is_named(known: ObservedNode, missing: str) -> None:
    assert judged(known) == unknown(UNPROVED, missing)


@pytest.mark.parametrize(
    "known",
    [
        observed([sample(NOW - 90, 3)]),  # at the very moment it began to serve
        observed([sample(NOW - 10, 0)], serving={"results": 20}),
        observed([sample(NOW - 10, 0, models={})], serving={"results": 20}),
        observed([sample(NOW - 10, 3, models={"faces": ModelSample(FILE, 20)})], serving={"results": 0}),
        observed([sample(NOW - 95, 0), sample(NOW - 94, 0), sample(NOW - 10, 3)]),
        observed(generation=8, state="in-progress"),  # with a later document
    ],
)
def test_minimal_proof_is_enough(known: ObservedNode) -> None:
    assert judged(known) == GOOD


def test_a_gate_requires_min_frames() -> None:
    none = observed([sample(NOW - 10, 0)], serving={"results": 0})

    assert judged(none, min_frames=0) == GOOD
    assert judged(none, min_frames=1) == unknown(UNPROVED, "0 of 1 frames went through faces")
    assert judged(observed(), min_frames=301) == unknown(UNPROVED, "300 of 301 frames went through faces")


@pytest.mark.parametrize(("due_s", "since_s"), [(0, 1000), (1000, 35)])
def test_a_node_times_out_once_it_is_due_and_the_region_has_listened_long_enough(due_s: float, since_s: float) -> None:
    def late_by(seconds: float) -> GateFinding:
        assignment = replace(ASSIGNMENT, at=NOW - 600, due=NOW - due_s)
        known = replace(observed(models={}), last_seen=NOW)
        return evaluate(assignment, known, GateSection(), Listening(NOW - since_s, SILENT_AFTER_S), NOW + seconds)

    assert late_by(0) == unknown(UNPROVED, "faces is not served")
    assert late_by(0.5) == bad("timed-out", "not good after 10 min: faces is not served", state="timed-out")


# Rollback


BEFORE: dict[str, ModelRef | None] = {"faces": OLD}


def rollback(known: ObservedNode, before: dict[str, ModelRef | None] = BEFORE, **changes: Any) -> GateFinding:
    listening = Listening(changes.get("since", NOW - 1000), SILENT_AFTER_S)
    return evaluate_rollback({"faces": NEW}, before, 8, changes.get("due", NOW + 60), known, listening, NOW)


def rolled_back_node(**fields: Any) -> ObservedNode:
    fields = {"generation": 8, "serving": {"model": OLD}, **fields}
    return ObservedNode(True, NOW - 5, reported(**fields))


def test_a_rollback_is_complete_when_the_node_serves_the_previous_version() -> None:
    assert rollback(rolled_back_node()) == GOOD
    assert rollback(rolled_back_node(generation=9)) == GOOD
    assert rollback(rolled_back_node(state="failed", error=ERROR)) == GOOD, "other failures do not matter"
    assert rollback(rolled_back_node(generation=9, state="in-progress")) == GOOD, "a later document is in progress"
    assert rollback(rolled_back_node(models={}), before={"faces": None}) == GOOD, "its previous version is unknown"
    assert rollback(rolled_back_node(), before={"faces": None}) == GOOD, "it serves another version"
    assert rollback(replace(rolled_back_node(), online=False)) == replace(GOOD, presence=Presence.ABSENT)


def test_a_node_without_an_earlier_version_that_serves_the_new_one_on_is_not_called_rolled_back() -> None:
    known = rolled_back_node(serving={"model": NEW})

    assert rollback(known, before={"faces": None}) == GateFinding(
        GateVerdict.GOOD,
        "succeeded",
        "no-earlier-version",
        "faces is still faces 2.0.0: the node had no version before, and its file names none",
    )


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        (ObservedNode(True, NOW - 5), "its report does not show the rollback yet"),
        (rolled_back_node(generation=7), "its report does not show the rollback yet"),
        (rolled_back_node(state="in-progress", step="load faces"), "in-progress: load faces"),
        (rolled_back_node(state="queued"), "queued"),
        (rolled_back_node(serving={"model": NEW}), "faces is faces 2.0.0"),
        (rolled_back_node(models={}), "faces is not served"),
    ],
)
def test_an_incomplete_rollback_times_out(known: ObservedNode, missing: str) -> None:
    late = bad("timed-out", missing, state="timed-out")

    assert rollback(known) == unknown(UNPROVED, missing)
    assert rollback(known, due=NOW) == unknown(UNPROVED, missing)
    assert rollback(known, due=NOW - 1) == late
    assert rollback(known, due=NOW - 1, since=NOW - 35) == unknown(UNPROVED, missing)
    assert rollback(known, due=NOW - 1, since=NOW - 36) == late
    assert rollback(known, due=NOW - 1, since=None) == unknown(UNPROVED, missing, Presence.UNKNOWN)


def test_every_model_must_be_rolled_back() -> None:
    first = rolled_back_node(models=two())
    models = {"doors": DOORS, "faces": OLD}

    assert rollback(first, before=models).reason == "faces is faces 2.0.0"
    assert rollback(first, before=dict(reversed(models.items()))).reason == "faces is faces 2.0.0"
    assert rollback(first, before={"faces": None, "doors": OLD}).reason == "doors is doors 3.0.0"


def test_default_limits_of_a_gate() -> None:
    """By nodes just within and just beyond each limit."""
    baseline = replace(ASSIGNMENT, was=NodeBaseline({"doors": 5.0}, 100 << 20))

    def found(known: ObservedNode) -> str:
        return evaluate(baseline, known, GateSection(), Listening(NOW - 1000, SILENT_AFTER_S), NOW).code

    def grown(more: int) -> ObservedNode:
        return observed([sample(NOW - 10, 3, memory_bytes=(100 << 20) + more)])

    def slow(p99_ms: float, times: int = 3) -> ObservedNode:
        return observed([sample(NOW - 50 + 10 * n, 3, p99_ms=p99_ms if n >= 4 - times else 5.0) for n in range(4)])

    def dead(frames: int) -> ObservedNode:
        return observed([sample(NOW - 20, 0), sample(NOW - 10, 10, dead=frames)])

    def restarted(times: int) -> ObservedNode:
        return observed([sample(NOW - 60 + 10 * n, 1, session=f"run-{n}") for n in range(times + 1)])

    assert (found(grown(512 << 20)), found(grown((512 << 20) + 1))) == ("", "memory-growth")
    assert (found(slow(10.0)), found(slow(10.01))) == ("", "latency")
    assert (found(slow(100.0, times=2)), found(slow(100.0))) == ("", "latency")
    assert (found(dead(10)), found(dead(11))) == ("", "error-rate")
    assert (found(restarted(2)), found(restarted(3))) == ("", "restarts")
    assert found(observed([sample(NOW - 20, 0), sample(NOW - 10, 10, dropped=1000)])) == ""
    assert found(observed([sample(NOW - 10, 3, models={"faces": ModelSample(FILE, 100, drift=1e9)})])) == ""
