"""Examples for tests of the planner: a node that is good after a change, and a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.region.responders import digest, ref

from hedgerow.region.rollouts.planning.gate import (
    Assignment,
    GateFinding,
    GateVerdict,
    Listening,
    ObservedNode,
    Presence,
    evaluate,
)
from hedgerow.region.rollouts.planning.health_samples import HealthSample, ModelSample, NodeBaseline, PipelineSample
from hedgerow.region.rollouts.planning.spec import GateSection, RolloutPlan
from hedgerow.region.rollouts.planning.state import Phase, Rollout, Task
from hedgerow.topics import Address
from hedgerow.wire.fleet import Reported

NOW = 1_800_000_000.0
SILENT_AFTER_S = 35.0
OLD = ref("1.0.0")
NEW = ref("2.0.0")
FILE = digest("file2.0.0")
ASSIGNMENT = Assignment(
    {"faces": NEW}, {"faces": frozenset([FILE])}, 7, NOW - 100, NOW + 3500, NodeBaseline({"doors": 5.0}, 100 << 20)
)
ERROR = {"code": "golden-failed", "message": "numbers are off", "remedy": "Mend it."}
A, B, C, D, E = (Address("r", "s", node) for node in "abcde")


def sample(at: float, n: int, **changes: Any) -> HealthSample:
    """Return a health report after `n` hundred frames."""
    pipeline = PipelineSample(
        100 * n, changes.pop("dead", 0), changes.pop("dropped", 0), changes.pop("p99_ms", 5.0), ("faces",)
    )
    example = HealthSample(at, "run-1", "ok", "", {"doors": pipeline}, {"faces": ModelSample(FILE, 100 * n)}, 120 << 20)
    return replace(example, **changes)


def reported(**fields: Any) -> Reported:
    """Return the report of a node that serves the new version; `serving` changes fields of the model."""
    serving = {"model": NEW, "file_digest": FILE, "backend": "b", "device": "CPU", "since": NOW - 90, "results": 300}
    serving |= fields.pop("serving", {})
    return Reported.model_validate(
        {"node": "r/s/n", "session": "run-1", "at": NOW, "generation": 7, "models": {"faces": serving}, **fields}
    )


def observed(samples: list[HealthSample] | None = None, **fields: Any) -> ObservedNode:
    """Return the observed state of that node; `fields` change its report."""
    example = [sample(NOW - 30 + 10 * n, n + 1) for n in range(3)] if samples is None else samples
    return ObservedNode(True, NOW - 5, reported(**fields), example)


def judged(
    known: ObservedNode, since: float | None = NOW - 1000, assignment: Assignment = ASSIGNMENT, **limits: Any
) -> GateFinding:
    """Return the finding for a node."""
    return evaluate(
        assignment, known, GateSection(**{"slow_reports": 2, **limits}), Listening(since, SILENT_AFTER_S), NOW
    )


def rollout(
    name: str, nodes: Mapping[str, Task], phase: Phase = Phase.RUNNING, target: str = "", **changes: Any
) -> Rollout:
    """Return a rollout of the new version to some nodes; `plan` changes its file."""
    plan = {"rollout": name, "models": {"faces": {"version": "2.0.0"}}, "target": target, **changes.pop("plan", {})}
    tasks = {Address("r", "s", node): task for node, task in nodes.items()}
    example = Rollout(name, RolloutPlan.model_validate(plan), {"faces": NEW}, ("all",), tasks, phase=phase)
    return replace(example, **changes)


GOOD = GateFinding(GateVerdict.GOOD, "succeeded")


def unknown(code: str = "", reason: str = "", presence: Presence = Presence.PRESENT) -> GateFinding:
    """Return a finding that is neither good nor bad."""
    return GateFinding(GateVerdict.UNKNOWN, "in-progress", code, reason, presence)


def bad(code: str, reason: str = "", presence: Presence = Presence.PRESENT, state: Any = "failed") -> GateFinding:
    """Return a finding of failure."""
    return GateFinding(GateVerdict.BAD, state, code, reason, presence)
