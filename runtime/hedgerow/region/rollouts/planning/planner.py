"""Plans the next step of a rollout. Pure: no clock, store or broker, so a restarted process decides the same.

Rules:
- A node gets the change only once its wave has started and the node is present. An absent node does not hold up its wave:
  it is late, and catches up when it returns. While it is not known whether a node is present, the wave waits.
- A wave is good when all its nodes that are not late are good, and at least one node of the rollout is.
- More failures than allowed end the rollout. Failed nodes are rolled back at once, whatever happens to the rest.
- Good is not final: a node whose reports no longer prove it must prove itself again, and the current wave soaks again.
- A paused rollout starts nothing new, but still handles failures.
- A rollout that has ended does not change, except that late nodes of a successful one catch up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hedgerow.region.rollouts.planning.gate import (
    NO_EARLIER_VERSION,
    UNPROVED,
    Assignment,
    GateFinding,
    GateVerdict,
    Listening,
    ObservedNode,
    Presence,
    evaluate,
    evaluate_rollback,
)
from hedgerow.region.rollouts.planning.state import (
    CatchUp,
    Finish,
    Pause,
    Phase,
    RollBack,
    Rollout,
    Soak,
    StartWave,
    Step,
    Task,
    TaskUpdate,
    UpdateTasks,
    Wait,
)
from hedgerow.region.rollouts.planning.windows import opens_at
from hedgerow.topics import Address
from hedgerow.wire.messages import clean


def next_step(rollout: Rollout, findings: Mapping[Address, GateFinding], now: float) -> Step:
    """Return the next step.

    Args:
        rollout: the rollout.
        findings: of all known nodes; see `evaluate_nodes`.
        now: Unix seconds.
    """
    if rollout.phase in (Phase.FAILED, Phase.CANCELED):
        return Wait("it has ended")
    if updates := dict(_task_updates(rollout, findings)):
        return UpdateTasks(updates)
    if rollout.phase is Phase.SUCCEEDED:
        return _roll_back_failed(rollout) or _catch_up(rollout, findings, now) or Wait("it has ended")
    if rollout.phase is Phase.ROLLING_BACK:
        return _roll_back_failed(rollout) or _await_rollback(rollout, findings)
    return _handle_failures(rollout) or _proceed(rollout, findings, now)


def evaluate_nodes(
    rollout: Rollout, observed: Mapping[Address, ObservedNode], listening: Listening, now: float
) -> dict[Address, GateFinding]:
    """Evaluate the nodes of a rollout, each by its task."""
    unknown = ObservedNode()
    findings = {}
    for node, task in rollout.tasks.items():
        try:
            findings[node] = _evaluate(rollout, task, observed.get(node, unknown), listening, now)
        except Exception as error:  # noqa: BLE001 - whatever a node sends, the others are evaluated
            findings[node] = _unreadable(rollout, task, error, now)
    return findings


def _unreadable(rollout: Rollout, task: Task, error: Exception, now: float) -> GateFinding:
    """Return the finding for a node whose reports cannot be evaluated: it never proves itself, so it times out."""
    reason = f"its reports cannot be evaluated: {type(error).__name__}: {error}"
    if task.reached and task.state == "in-progress" and now > task.assigned_at + rollout.plan.gate.timeout_s:
        return GateFinding(GateVerdict.BAD, "timed-out", "unreadable", reason, Presence.UNKNOWN)
    return GateFinding(GateVerdict.UNKNOWN, task.state, "unreadable", reason, Presence.UNKNOWN)


def _evaluate(rollout: Rollout, task: Task, observed: ObservedNode, listening: Listening, now: float) -> GateFinding:
    if task.rollback == "asked":
        due = (
            math.inf if rollout.rolling_back_since is None else rollout.rolling_back_since + rollout.plan.gate.timeout_s
        )
        return evaluate_rollback(rollout.models, task.before, task.rollback_generation, due, observed, listening, now)
    if task.reached and task.state in ("in-progress", "succeeded"):
        gate = rollout.plan.gate
        due = task.assigned_at + gate.timeout_s if task.state == "in-progress" else math.inf
        assignment = Assignment(rollout.models, rollout.files, task.generation, task.assigned_at, due, task.baseline)
        return evaluate(assignment, observed, gate, listening, now)
    presence = Presence.ABSENT if observed.moving else listening.presence(observed, now)
    return GateFinding(GateVerdict.UNKNOWN, task.state, presence=presence)


def _task_updates(rollout: Rollout, findings: Mapping[Address, GateFinding]) -> Iterator[tuple[Address, TaskUpdate]]:
    """Yield changes of the tasks of nodes that were reached."""
    for node, task in rollout.tasks.items():
        finding = findings.get(node)
        if finding is None or not task.reached:
            continue
        if task.rollback == "asked":
            if finding.verdict is GateVerdict.GOOD and finding.code == NO_EARLIER_VERSION:
                reason = "; ".join(filter(None, (task.reason, finding.reason)))
                yield node, TaskUpdate(task.state, task.code or finding.code, reason, rollback="kept")
            elif finding.verdict is GateVerdict.GOOD:
                yield node, TaskUpdate(task.state, task.code, task.reason, rollback="proved")
        elif task.state == "in-progress" or (task.state == "succeeded" and not rollout.phase.ended):
            if finding.verdict is GateVerdict.BAD:
                yield node, TaskUpdate(finding.state, clean(finding.code, 80), clean(finding.reason, 500))
            elif finding.verdict is GateVerdict.GOOD and task.state == "in-progress":
                yield node, TaskUpdate("succeeded")
            elif finding.code == UNPROVED and task.state == "succeeded":
                yield node, TaskUpdate("in-progress", finding.code, clean(finding.reason, 500))


def _handle_failures(rollout: Rollout) -> Step | None:
    """Return the step that failures require; None: none."""
    plan = rollout.plan
    reached = sum(task.reached for task in rollout.tasks.values())
    failed = rollout.failed - rollout.forgiven
    allowed = plan.allowed_failures(max(reached, 1))
    too_many = failed > allowed
    if (
        not too_many
        and failed
        and not any(task.state in ("in-progress", "succeeded") for task in rollout.tasks.values())
    ):
        too_many = True  # every node reached has failed: no evidence for the change, whatever is allowed
    if too_many and plan.on_failure != "pause":
        wave_only = plan.on_failure == "roll-back-wave"
        return roll_back(
            rollout, Phase.FAILED, f"{_describe_failures(rollout)}; {allowed} allowed", wave_only=wave_only
        )
    if (step := _roll_back_failed(rollout)) is not None:
        return step
    if too_many and rollout.phase is Phase.RUNNING:
        return Pause(f"{_describe_failures(rollout)}; {allowed} allowed")
    return None


def _roll_back_failed(rollout: Rollout) -> RollBack | None:
    """Roll back nodes that failed and have not been rolled back yet; None: there are none."""
    failed = tuple(
        node for node, task in rollout.tasks.items() if task.failed and task.reached and task.rollback == "no"
    )
    return RollBack(failed, "they failed") if failed else None


def roll_back(rollout: Rollout, ending: Phase, reason: str, *, wave_only: bool = False) -> RollBack:
    """Return the step that rolls back all nodes that were reached.

    Args:
        rollout: the rollout.
        ending: its phase afterwards.
        reason: why.
        wave_only: only those of the current wave, and failed ones.
    """
    nodes = tuple(
        node
        for node, task in rollout.tasks.items()
        if task.reached
        and task.rollback == "no"
        and task.state != "removed"
        and (not wave_only or task.wave == rollout.wave or task.failed or task.state == "in-progress")
    )
    return RollBack(nodes, reason, ending)


def _proceed(rollout: Rollout, findings: Mapping[Address, GateFinding], now: float) -> Step:
    """Return the next step when nothing has failed."""
    if rollout.phase is Phase.PAUSED:
        return Wait(f"paused: {rollout.reason}")
    if (step := _catch_up(rollout, findings, now)) is not None:
        return step
    waiting = _holding_up(rollout)
    if waiting:
        return Wait(f"{_list_nodes(waiting)} not good yet: {_why(findings, waiting[0])}")
    late = [node for node, task in rollout.begun if task.state in ("queued", "in-progress")]
    if late and not _any_good(rollout):
        return Wait(f"no node is good yet; {_list_nodes(late)} late")
    wave = [node for node, task in rollout.begun if task.wave == rollout.wave and task.state == "succeeded"]
    if wave and rollout.soaking_since is None:
        return Soak()
    if rollout.soaking_since is not None and now < (until := rollout.soaking_since + rollout.plan.soak_s):
        return Wait("soaking", until)
    unsure = [node for node in wave if _verdict(findings, node) is not GateVerdict.GOOD]
    if unsure:
        return Wait(f"{_list_nodes(unsure)} not known to be good at the moment")
    if rollout.wave + 1 >= len(rollout.waves):
        return Finish(Phase.SUCCEEDED, _summary(rollout))
    if (opens := opens_at(rollout.plan.windows, now)) > now:
        return Wait("outside its maintenance windows", opens)
    wave_number = rollout.wave + 1
    members = [node for node, task in rollout.tasks.items() if task.wave == wave_number and task.state == "queued"]
    if unknown := [node for node in members if _presence(findings, node) is Presence.UNKNOWN]:
        return Wait(f"not known yet whether {_list_nodes(unknown)} {'is' if len(unknown) == 1 else 'are'} connected")
    present = tuple(node for node in members if _is_present(findings, node))
    if rollout.plan.offline == "fail" and len(present) < len(members):  # before the wave starts
        missed = TaskUpdate("failed", "offline", "it was not connected when its wave started")
        return UpdateTasks({node: missed for node in members if node not in present})
    return StartWave(wave_number, present)


def _catch_up(rollout: Rollout, findings: Mapping[Address, GateFinding], now: float) -> Step | None:
    late = tuple(node for node, task in rollout.begun if task.state == "queued" and _is_present(findings, node))
    if not late or opens_at(rollout.plan.windows, now) > now:
        return None
    return CatchUp(late)


def _await_rollback(rollout: Rollout, findings: Mapping[Address, GateFinding]) -> Step:
    rolling_back = [node for node, task in rollout.tasks.items() if task.rollback == "asked"]
    pending = [
        node
        for node in rolling_back
        if _presence(findings, node) is not Presence.ABSENT and _verdict(findings, node) is GateVerdict.UNKNOWN
    ]
    if pending:
        return Wait(f"{_list_nodes(pending)} not rolled back yet: {_why(findings, pending[0])}")
    reason = rollout.reason
    if kept := [node for node, task in rollout.tasks.items() if task.rollback == "kept"]:
        reason += f"; {_list_nodes(kept)} had no earlier version and still {'serve' if len(kept) > 1 else 'serves'} it"
    if rolling_back:
        reason += f"; rollback not confirmed on {_list_nodes(rolling_back)}"
    return Finish(rollout.ending or Phase.FAILED, reason)


def _holding_up(rollout: Rollout) -> list[Address]:
    """Return the nodes that hold up the wave."""
    return [node for node, task in rollout.begun if task.state == "in-progress" and not task.late]


def _any_good(rollout: Rollout) -> bool:
    return any(task.state == "succeeded" for task in rollout.tasks.values())


def _is_present(findings: Mapping[Address, GateFinding], node: Address) -> bool:
    return _presence(findings, node) is Presence.PRESENT


def _presence(findings: Mapping[Address, GateFinding], node: Address) -> Presence:
    finding = findings.get(node)
    return Presence.ABSENT if finding is None else finding.presence


def _why(findings: Mapping[Address, GateFinding], node: Address) -> str:
    finding = findings.get(node)
    return "nothing is known of it" if finding is None else finding.reason


def _verdict(findings: Mapping[Address, GateFinding], node: Address) -> GateVerdict:
    finding = findings.get(node)
    return GateVerdict.UNKNOWN if finding is None else finding.verdict


def _describe_failures(rollout: Rollout) -> str:
    """Describe the failures; the first three by name."""
    failed = [(node, task) for node, task in rollout.tasks.items() if task.failed]
    shown = "; ".join(f"{node.site}/{node.node}: {task.code}: {task.reason}" for node, task in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} failed ({shown}{more})"


def _list_nodes(nodes: list[Address]) -> str:
    shown = ", ".join(f"{node.site}/{node.node}" for node in nodes[:3])
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"{len(nodes)} nodes ({shown}{more})" if len(nodes) > 1 else shown


def _summary(rollout: Rollout) -> str:
    states = [task.state for task in rollout.tasks.values()]
    late = states.count("queued") + states.count("in-progress")
    done = "are without it" if rollout.withdrawn == rollout.models.keys() else "serve it"
    parts = [f"{states.count('succeeded')} of {len(states)} nodes {done}"]
    parts += [f"{rollout.failed} failed"] if rollout.failed else []
    parts += [f"{late} late"] if late else []
    return ", ".join(parts)
