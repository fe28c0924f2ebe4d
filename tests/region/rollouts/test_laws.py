"""Invariants of every rollout, whatever happens to nodes, operators and the region's process."""

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
events = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "time",
                "time",
                "kill",
                "offline",
                "online",
                "new",
                "disconnect",
                "reconnect",
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


class Checker:
    """Checks each turn against what every node really runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines = 0
        self.before: Rollout | None = None

    def check(self) -> None:
        """Check the last turn."""
        world = self.world
        audit = world.audit()
        new, self.lines = audit[self.lines :], len(audit)
        for at, who, action, name, detail in new:
            if name == NAME and action == "wave-started":
                self.check_wave_start(detail["wave"], [line for line in audit if line[0] <= at])
            if name == NAME and action == "nodes-settled":
                self.check_proof(detail["nodes"])
            assert who in ("eve", "service")

    def check_wave_start(self, wave: int, audit: list[Any]) -> None:
        """Check that the wave before is good and has soaked, and that failures are within the limit."""
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
                assert self.world.nodes[address].reported_version == NEW
        if any(task.wave == wave - 1 and task.state == "succeeded" for task in earlier.values()):
            (*_, soaked) = (
                at for at, _, action, _, detail in audit if action == "soak-started" and detail["wave"] == wave - 1
            )
            assert self.world.now - soaked >= PLAN["soak_s"]

    def check_proof(self, updates: dict[str, list[str]]) -> None:
        """Check that nodes counted as good are present and serve the version."""
        for address, node in self.world.nodes.items():
            if updates.get(str(address), [""])[0] == "succeeded":
                assert node.reported_version == NEW
                assert self.world.now - node.reported_at <= SILENT_AFTER_S


def apply_event(world: World, what: str, number: int) -> None:
    """Let something happen, then take a turn."""
    nodes = list(world.nodes.values())
    node = nodes[number % len(nodes)]
    killed_at = None
    match what:
        case "kill":
            killed_at = number
        case "offline":
            node.online = False
        case "online":
            node.online = True
        case "reboot":
            node.restart()
        case "new" if len(nodes) < 12:
            world.add()
        case "disconnect" | "reconnect":
            world.disconnected = what == "disconnect"
        case "pause" | "resume" | "abort":
            world.ask(f"rollout-{what}", rollout=NAME)
        case "keep":
            world.ask("rollout-abort", rollout=NAME, keep=True)
    world.turn(killed_at=killed_at)


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans, does, events)
def test_whatever_happens_the_invariants_of_a_rollout_hold(
    plan: dict[str, Any], does: dict[int, str], events: list[tuple[str, int]]
) -> None:
    """No wave starts early, good is proved, no step is lost or repeated, and every node ends with the right version."""
    with tempfile.TemporaryDirectory() as folder, World(str(Path(folder) / "region.db"), 8) as world:
        for number, what in does.items():
            list(world.nodes.values())[number].does[NEW] = what
        checker = Checker(world)
        world.start(NEW, **plan)
        for what, number in events:
            apply_event(world, what, number)
            checker.check()
        world.disconnected = False
        for _ in range(120):  # everything recovers, and paused rollouts are resumed
            for node in world.nodes.values():
                node.online = True
            world.turn()
            checker.check()
            if world.rollout(NAME).phase is Phase.PAUSED:
                world.ask("rollout-resume", rollout=NAME)
            elif world.rollout(NAME).phase.ended and not world.busy():
                break
        rollout = world.rollout(NAME)
        assert rollout.phase.ended, (rollout.phase, world.waits())
        world.no_step_is_lost_or_repeated()
        check_final_versions(world, rollout)


def check_final_versions(world: World, rollout: Rollout) -> None:
    """Check that failed and rolled back nodes serve the old version, and the others the new one."""
    aborted_with_keep = any(action == "rollout-aborted" and detail["keep"] for _, _, action, _, detail in world.audit())
    for address, node in world.nodes.items():
        task = rollout.tasks.get(address)
        if task is None:
            assert rollout.phase in (Phase.FAILED, Phase.CANCELED)
            assert node.version == OLD
        elif task.state == "succeeded":
            assert node.version == NEW
            assert rollout.phase is Phase.SUCCEEDED or aborted_with_keep or rollout.plan.on_failure == "roll-back-wave"
        elif not aborted_with_keep:
            assert node.version == OLD, (address, task)
            assert task.rollback != "asked" or rollout.phase is not Phase.SUCCEEDED
