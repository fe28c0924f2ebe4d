"""What holds for every rollout, whatever happens to nodes, people and the region's process meanwhile."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tests.region.world import PLAN, SILENT_AFTER_S, World

from hedgerow.region.rollouts.planning.state import Phase, Rollout

OLD, NEW = "1.0.0", "2.0.0"
NAME = f"faces-{NEW}"
BAD = ("refuses", "returns", "errors", "slow", "leaks", "drifts", "restarts", "hangs", "dies")

plans = st.fixed_dictionaries(
    {
        "waves": st.sampled_from([[], [1], ["20%", "60%"], ["1 site"], ["each site"], [1, 2, "50%"]]),
        "max_failed": st.sampled_from([0, 1, "30%"]),
        "on_failure": st.sampled_from(["roll-back", "roll-back-wave", "pause"]),
        "offline": st.sampled_from(["catch-up", "catch-up", "fail"]),
    }
)
does = st.dictionaries(st.integers(0, 7), st.sampled_from(BAD), max_size=3)
happenings = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "time",
                "time",
                "kill",
                "away",
                "back",
                "new",
                "deaf",
                "hearing",
                "pause",
                "resume",
                "abort",
                "keep",
                "reboot",
            ]
        ),
        st.integers(0, 40),
    ),
    max_size=40,
)


class Onlooker:
    """Knows what every node really does, and checks each turn against it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines = 0
        self.before: Rollout | None = None

    def look(self) -> None:
        """See what the last turn has done."""
        world = self.world
        audit = world.audit()
        new, self.lines = audit[self.lines :], len(audit)
        for at, who, action, name, detail in new:
            if name == NAME and action == "wave-started":
                self.wave_may_start(detail["wave"], [line for line in audit if line[0] <= at])
            if name == NAME and action == "nodes-settled":
                self.good_is_proved(detail["nodes"])
            assert who in ("eve", "service")

    def wave_may_start(self, wave: int, audit: list[Any]) -> None:
        """The wave before is good and has soaked, and no more have failed than may."""
        rollout = self.world.rollout(NAME)
        reached = [task for task in rollout.tasks.values() if task.reached]
        assert rollout.failed - rollout.forgiven <= rollout.plan.allowed_failures(max(1, len(reached)))
        if wave == 0:
            return
        earlier = {node: task for node, task in rollout.tasks.items() if task.wave < wave}
        for address, task in earlier.items():
            if not task.late:
                assert task.state in ("succeeded", "failed", "timed-out", "rejected", "removed"), (address, task)
            if task.state == "succeeded":
                assert self.world.nodes[address].told == NEW
        if any(task.wave == wave - 1 and task.state == "succeeded" for task in earlier.values()):
            (*_, soaked) = (
                at for at, _, action, _, detail in audit if action == "soak-started" and detail["wave"] == wave - 1
            )
            assert self.world.now - soaked >= PLAN["soak_s"]

    def good_is_proved(self, updates: dict[str, list[str]]) -> None:
        """Who counts as good is heard, and serves what it was given."""
        for address, node in self.world.nodes.items():
            if updates.get(str(address), [""])[0] == "succeeded":
                assert node.told == NEW
                assert self.world.now - node.told_at <= SILENT_AFTER_S


def happen(world: World, what: str, number: int) -> None:
    """Let something happen, and a turn pass."""
    nodes = list(world.nodes.values())
    node = nodes[number % len(nodes)]
    killed_at = None
    match what:
        case "kill":
            killed_at = number
        case "away":
            node.online = False
        case "back":
            node.online = True
        case "reboot":
            node.restart()
        case "new" if len(nodes) < 12:
            world.add()
        case "deaf" | "hearing":
            world.deaf = what == "deaf"
        case "pause" | "resume" | "abort":
            world.ask(f"rollout-{what}", rollout=NAME)
        case "keep":
            world.ask("rollout-abort", rollout=NAME, keep=True)
    world.turn(killed_at=killed_at)


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans, does, happenings)
def test_whatever_happens_no_rule_of_a_rollout_is_broken(
    plan: dict[str, Any], does: dict[int, str], happenings: list[tuple[str, int]]
) -> None:
    """No wave begins too early, good is proved, no step is lost or repeated, and in the end everybody is where it should."""
    with tempfile.TemporaryDirectory() as folder, World(str(Path(folder) / "region.db"), 8) as world:
        for number, what in does.items():
            list(world.nodes.values())[number].does[NEW] = what
        onlooker = Onlooker(world)
        world.start(NEW, **plan)
        for what, number in happenings:
            happen(world, what, number)
            onlooker.look()
        world.deaf = False
        for _ in range(120):  # everything is mended, and somebody looks after what is paused
            for node in world.nodes.values():
                node.online = True
            world.turn()
            onlooker.look()
            if world.rollout(NAME).phase is Phase.PAUSED:
                world.ask("rollout-resume", rollout=NAME)
            elif world.rollout(NAME).phase.ended and not world.busy():
                break
        rollout = world.rollout(NAME)
        assert rollout.phase.ended, (rollout.phase, world.waits())
        world.no_step_is_lost_or_repeated()
        everybody_is_where_it_should(world, rollout)


def everybody_is_where_it_should(world: World, rollout: Rollout) -> None:
    """What failed or was taken back serves what it did before, what succeeded the new one."""
    kept = any(action == "rollout-aborted" and detail["keep"] for _, _, action, _, detail in world.audit())
    for address, node in world.nodes.items():
        task = rollout.tasks.get(address)
        if task is None:
            assert rollout.phase in (Phase.FAILED, Phase.CANCELED)
            assert node.version == OLD
        elif task.state == "succeeded":
            assert node.version == NEW
            assert rollout.phase is Phase.SUCCEEDED or kept or rollout.plan.on_failure == "roll-back-wave"
        elif not kept:
            assert node.version == OLD, (address, task)
            assert task.rollback != "asked" or rollout.phase is not Phase.SUCCEEDED
