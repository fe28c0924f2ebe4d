"""Which rollouts a node belongs in: every kind of rollout, and every state of a node's part."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.region.examples import NEW, A, B, C, D, E, rollout

from hedgerow.region.rollouts.planning.membership import PINNED, SUPERSEDED, conflict, joins, relevant, superseded
from hedgerow.region.rollouts.planning.state import Phase, Rollout, Task

ENDED = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED)
UNDER_WAY = (Phase.RUNNING, Phase.PAUSED, Phase.ROLLING_BACK)


def of_models(one: Rollout, *names: str) -> Rollout:
    return replace(one, models=dict.fromkeys(names, NEW))


# Which matter still


def test_what_is_under_way_and_the_newest_success_for_the_same_nodes_and_models_matter() -> None:
    newest = rollout("newest", {}, Phase.SUCCEEDED)
    older = rollout("older", {}, Phase.SUCCEEDED)

    assert relevant([newest, older]) == [newest]
    assert relevant([newest, rollout("elsewhere", {}, Phase.SUCCEEDED, "ring=early"), older]) == [
        newest,
        rollout("elsewhere", {}, Phase.SUCCEEDED, "ring=early"),
    ]
    cars = of_models(older, "cars")
    assert relevant([newest, cars]) == [newest, cars]
    for phase in UNDER_WAY:
        under_way = rollout("under-way", {}, phase)
        assert relevant([newest, under_way, older]) == [newest, under_way]
        assert relevant([under_way, newest]) == [under_way, newest]


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.CANCELED])
def test_what_came_to_nothing_does_not_matter_nor_cover_what_was_before(phase: Phase) -> None:
    older = rollout("older", {}, Phase.SUCCEEDED)

    assert relevant([rollout("bad", {}, phase), older]) == [older]


# Which collide


def test_a_collision_names_the_first_three_nodes_in_order() -> None:
    five = rollout("one", {node: Task(0) for node in "edcba"})

    assert conflict([C, A, B], [five]) == "one is in-progress and includes r/s/a, r/s/b, r/s/c"
    assert conflict([D, C, A, B], [five]) == "one is in-progress and includes r/s/a, r/s/b, r/s/c and 1 more"
    assert conflict([E, D, C, A, B], [five]) == "one is in-progress and includes r/s/a, r/s/b, r/s/c and 2 more"
    assert conflict([], [five]) is None


def test_only_rollouts_that_are_under_way_collide_and_all_of_them_are_looked_at() -> None:
    for phase in Phase:
        collides = conflict([A], [rollout("other", {"b": Task(0)}), rollout("one", {"a": Task(0)}, phase)])
        assert collides == (None if phase in ENDED else f"one is {phase} and includes r/s/a")


# Which a node joins


@pytest.mark.parametrize("phase", list(Phase))
def test_a_node_joins_what_is_under_way_or_succeeded(phase: Phase) -> None:
    one = rollout("one", {}, phase)

    wanted = phase in (Phase.RUNNING, Phase.PAUSED, Phase.SUCCEEDED)
    assert joins(A, {}, [], [one]) == ([one] if wanted else [])


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_a_node_that_has_a_part_in_one_under_way_joins_no_other(phase: Phase) -> None:
    other = of_models(rollout("other", {}, Phase.SUCCEEDED), "cars")

    assert joins(A, {}, [], [other, rollout("one", {"a": Task(0)}, phase)]) == []
    assert joins(A, {}, [], [other, rollout("one", {"a": Task(0, state="removed")}, phase)]) == [other]
    assert joins(A, {}, [], [other, rollout("one", {"b": Task(0)}, Phase.ROLLING_BACK)]) == [other]


def test_a_node_joins_one_for_each_model_and_none_after_one_that_is_under_way() -> None:
    cars, plates = (of_models(rollout(name, {}, Phase.SUCCEEDED), name) for name in ("cars", "plates"))
    under_way = rollout("faces", {})

    assert joins(A, {}, [], [cars, under_way, plates]) == [cars, under_way]
    assert joins(A, {}, [], [cars, plates, under_way]) == [cars, plates, under_way]
    assert joins(A, {}, ["cars"], [cars, plates]) == [plates]


def test_a_rollout_of_two_models_is_joined_only_when_both_are_free() -> None:
    both = of_models(rollout("both", {}, Phase.SUCCEEDED), "faces", "cars")
    cars = of_models(rollout("cars", {}, Phase.SUCCEEDED), "cars")

    assert joins(A, {}, [], [both, cars]) == [both]
    assert joins(A, {}, [], [cars, both]) == [cars]
    assert joins(A, {}, ["faces"], [both]) == []
    assert joins(A, {}, ["faces"], [both, cars]) == [], (
        "what it would have brought of cars is not passed over for an older one"
    )


@pytest.mark.parametrize(
    ("task", "again"),
    [
        (Task(0, "removed", code=SUPERSEDED), True),
        (Task(0, "removed", code=PINNED), True),
        (Task(0, "removed", code="left"), False),
        (Task(0, "canceled", code=SUPERSEDED), False),
        (Task(0, "succeeded"), False),
        (Task(0, "failed"), False),
        (Task(0, "queued"), False),
    ],
)
def test_a_node_joins_again_what_others_have_made_pointless(task: Task, again: bool) -> None:
    one = rollout("one", {"a": task}, Phase.SUCCEEDED)

    assert joins(A, {}, [], [one]) == ([one] if again else [])
    older = rollout("older", {}, Phase.SUCCEEDED)
    assert joins(A, {}, [], [one, older]) == ([one] if again else []), "an older one is not joined instead"


def test_a_model_that_goes_back_is_not_taken_from_an_older_rollout() -> None:
    older = rollout("older", {}, Phase.SUCCEEDED)

    assert joins(A, {}, [], [rollout("bad", {}, Phase.FAILED), older]) == [older]
    assert joins(A, {}, [], [rollout("bad", {}, Phase.CANCELED), older]) == [older]
    assert joins(A, {}, [], [rollout("bad", {}, Phase.ROLLING_BACK), older]) == []
    assert joins(A, {"ring": "late"}, [], [rollout("x", {}, Phase.ROLLING_BACK, "ring=early"), older]) == [older]


# Whose part is pointless


@pytest.mark.parametrize(
    ("task", "pointless"),
    [
        (Task(0, "queued"), True),
        (Task(0, "in-progress"), True),
        (Task(0, "succeeded"), False),
        (Task(0, "failed"), True),
        (Task(0, "timed-out"), True),
        (Task(0, "failed", rollback="asked"), True),
        (Task(0, "failed", rollback="proved"), False),
        (Task(0, "canceled", rollback="asked"), True),
        (Task(0, "canceled", rollback="proved"), False),
        (Task(0, "canceled"), False),
        (Task(0, "removed"), False),
    ],
)
def test_what_is_not_settled_in_a_rollout_that_ended_is_pointless(task: Task, pointless: bool) -> None:
    for phase in ENDED:
        assert superseded(rollout("one", {"a": task}, phase), ["faces"], [A, B]) == ([A] if pointless else [])


def test_what_is_under_way_is_pointless_only_if_that_is_meant() -> None:
    for phase in UNDER_WAY:
        one = rollout("one", {"a": Task(0, "succeeded"), "b": Task(0), "c": Task(0, "removed")}, phase)

        assert superseded(one, ["faces"], [A, B, C]) == []
        assert superseded(one, ["faces"], [A, B, C], also_in_progress=True) == [A, B]


def test_only_rollouts_of_the_same_models_are_pointless() -> None:
    one = rollout("one", {"a": Task(0)}, Phase.FAILED)

    assert superseded(one, ["cars"], [A]) == []
    assert superseded(one, ["cars", "faces"], [A]) == [A]
    assert superseded(replace(one, phase=Phase.RUNNING), ["cars"], [A], also_in_progress=True) == []
