"""Handles operators' requests. Each is executed, logged and answered in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import structlog
from pydantic import ValidationError

from hedgerow.errors import CommandError, HedgerowError
from hedgerow.labels import check_labels
from hedgerow.region.rollouts.catalog import CatalogEntry, look_up, look_up_pipelines
from hedgerow.region.rollouts.fleet import Fleet
from hedgerow.region.rollouts.life import forget, rename
from hedgerow.region.rollouts.life.replace import replace_machine
from hedgerow.region.rollouts.operation import Action, Operation
from hedgerow.region.rollouts.planning.gate import Listening
from hedgerow.region.rollouts.planning.membership import PINNED, SUPERSEDED, conflict, own_labels, superseded, why_unfit
from hedgerow.region.rollouts.planning.planner import roll_back
from hedgerow.region.rollouts.planning.spec import ModelSection, RolloutPlan
from hedgerow.region.rollouts.planning.state import (
    Finish,
    Pause,
    Phase,
    Rollout,
    Step,
    Task,
    apply_step,
    remove_nodes,
    resume,
)
from hedgerow.region.rollouts.planning.waves import Wave, assign, wave_of
from hedgerow.region.rollouts.progress import unknown_rollout
from hedgerow.region.rollouts.requests import RolloutRequest, open_requests, reply
from hedgerow.region.rollouts.store import StoredRollout
from hedgerow.region.store.audit import SERVICE, Actor
from hedgerow.region.store.database.database import RegionStoreError, StoreRefused
from hedgerow.region.store.life.identity import count_change, end_alias, forgotten_nodes, keep_topics
from hedgerow.topics import Address
from hedgerow.wire.fleet import SwapPolicy

log = structlog.get_logger(__name__)


def handle_requests(fleet: Fleet, now: float, listening: Listening) -> None:
    """Handle all open requests.

    Raises: RegionStoreError: the store does not work.
    """
    for request in open_requests(fleet.database):
        by = Actor(request.who, request.why, request.claims)
        try:
            with fleet.database.transaction():
                if now > request.expires_at:
                    raise CommandError(
                        "The request expired before the service handled it",
                        code="expired",
                        remedy="Run the command again, while the region's service is running.",
                    )
                action = _ACTIONS.get(request.verb)
                if action is None:
                    raise CommandError(
                        f"{request.verb} is not supported by this service", remedy="Upgrade the region's service."
                    )
                reply(fleet.database, request, now, action(Operation(fleet, request, by, now, listening)))
        except StoreRefused as error:  # a value that the database does not take: nothing of it goes into the audit log
            _refuse(fleet, replace(request, args={}), Actor(SERVICE), now, error)
            raise  # the fleet in memory may be ahead of the store; the request is answered, and not tried again
        except RegionStoreError:
            raise
        except HedgerowError as error:
            _refuse(fleet, request, by, now, error)
        except (ValidationError, KeyError, TypeError, ValueError) as error:  # not written by our command line
            _refuse(
                fleet,
                request,
                by,
                now,
                CommandError(f"The request is invalid: {error}", remedy="Use the `hedgerow` command."),
            )


def _refuse(fleet: Fleet, request: RolloutRequest, by: Actor, now: float, error: HedgerowError) -> None:
    log.info("refused", verb=request.verb, who=by.name, code=error.code, error=str(error))
    detail = {"verb": request.verb, "code": error.code, "reason": str(error)}
    with fleet.database.transaction():
        fleet.store.audit(by, "refused", now, rollout=request.args.get("rollout"), **detail)
        reply(fleet.database, request, now, error)


def _start(operation: Operation) -> Any:
    fleet, request, by, now, listening = (
        operation.fleet,
        operation.request,
        operation.by,
        operation.now,
        operation.listening,
    )
    plan = RolloutPlan.model_validate(request.args["plan"])
    by = replace(by, why=by.why or plan.why)
    dry_run = bool(request.args.get("dry_run"))
    if not by.why and not dry_run:
        raise CommandError(
            f"{plan.rollout} needs a reason", code="no-reason", remedy="Give it with --why, or as `why:` in the file."
        )
    if fleet.store.rollouts(names=[plan.rollout], tasks=False):
        raise CommandError(
            f"A rollout named {plan.rollout} exists already",
            code="name-taken",
            remedy=f"Choose another name; `hedgerow rollout status {plan.rollout}` shows the existing one.",
        )
    entries = {
        name: None if desired == "none" else look_up(fleet.config.models.repository, name, desired)
        for name, desired in plan.models.items()
    }
    chosen = [node for node in sorted(fleet.observed.nodes) if plan.selector.matches(fleet.labels(node))]
    pinned = [node for node in chosen if plan.models.keys() & set(fleet.pins(node))]
    refs = {name: None if entry is None else entry.ref for name, entry in entries.items()}
    unfit = {
        node: why
        for node in chosen
        if node not in pinned and (why := why_unfit(refs, fleet.observed.nodes[node].reported))
    }
    members = [fleet.member(node, listening, now) for node in chosen if node not in pinned and node not in unfit]
    if not members:
        known = f"{len(fleet.observed.nodes)} known nodes" + (f", {len(pinned)} of them pinned" if pinned else "")
        known += f", {len(unfit)} without the model" if unfit else ""
        raise CommandError(
            f"No node matches {plan.target!r}: {known}" if plan.target else f"There are no nodes: {known}",
            code="no-nodes",
            remedy="See the labels with `hedgerow nodes`, or set some with `hedgerow node label`.",
        )
    if unfit and plan.without_model == "refuse" and not dry_run:
        shown = "; ".join(f"{node.site}/{node.node}: {why}" for node, why in list(unfit.items())[:3])
        more = f" and {len(unfit) - 3} more" if len(unfit) > 3 else ""
        raise CommandError(
            f"{len(unfit)} of {len(chosen)} nodes cannot serve it ({shown}{more})",
            code="without-model",
            remedy="Choose other nodes with `target`, add the model to their files, or set `without_model: skip`.",
        )
    others = [stored.rollout for stored in fleet.rollouts.values()]
    if why_not := conflict([member.address for member in members], others):
        raise CommandError(
            f"{plan.rollout} conflicts with another rollout: {why_not}",
            code="conflict",
            remedy="Wait until it has ended, abort it, or choose other nodes. A single rollout can change several models.",
        )
    waves = assign(plan.rollout, plan.waves, members)
    if not dry_run:
        _begin(fleet, plan, entries, waves, by, now)
    absent = {member.address for member in members if not member.present}
    return {
        "rollout": plan.rollout,
        "dry_run": dry_run,
        "models": {name: ref and ref.model_dump() for name, ref in refs.items()},
        "nodes": len(members),
        "not_heard": len(absent),
        "pinned": [str(node) for node in pinned],
        "unfit": {str(node): why for node, why in unfit.items()},
        "refused": bool(unfit) and plan.without_model == "refuse",
        "waves": [
            {"wave": wave.title, "nodes": [*map(str, wave.nodes)], "not_heard": len(absent & set(wave.nodes))}
            for wave in waves
        ],
    }


def _begin(
    fleet: Fleet,
    plan: RolloutPlan,
    entries: Mapping[str, CatalogEntry | None],
    waves: Iterable[Wave],
    by: Actor,
    now: float,
) -> None:
    waves = tuple(waves)
    rollout = Rollout(
        plan.rollout,
        plan,
        {name: None if entry is None else entry.ref for name, entry in entries.items()},
        tuple(wave.title for wave in waves),
        {node: Task(number) for node, number in sorted(wave_of(waves).items())},
        {name: entry.files for name, entry in entries.items() if entry is not None},
    )
    for stored in list(fleet.rollouts.values()):
        if gone := superseded(stored.rollout, rollout.models, rollout.tasks):
            fleet.save_rollout(
                replace(stored, rollout=remove_nodes(stored.rollout, gone, SUPERSEDED, f"by {plan.rollout}")), stored
            )
    fleet.rollouts[rollout.name] = fleet.store.add(StoredRollout(0, rollout, by, now, now), fleet.observed.ids)
    sizes = [len(wave.nodes) for wave in waves]
    models = {name: ref and ref.model_dump() for name, ref in rollout.models.items()}
    fleet.store.audit(by, "rollout-started", now, rollout=plan.rollout, waves=sizes, models=models)


def _pause(operation: Operation) -> Any:
    fleet, by, now = operation.fleet, operation.by, operation.now
    stored = _find_rollout(operation, Phase.RUNNING)
    step = Pause(f"by {by.name}: {by.why}")
    fleet.save_rollout(replace(stored, rollout=apply_step(stored.rollout, step, now), changed_at=now, waits=""), stored)
    fleet.store.audit(by, "rollout-paused", now, rollout=stored.rollout.name)
    return {"rollout": stored.rollout.name, "phase": Phase.PAUSED.value}


def _resume(operation: Operation) -> Any:
    fleet, by, now = operation.fleet, operation.by, operation.now
    stored = _find_rollout(operation, Phase.PAUSED)
    fleet.save_rollout(replace(stored, rollout=resume(stored.rollout), changed_at=now, waits=""), stored)
    fleet.store.audit(by, "rollout-resumed", now, rollout=stored.rollout.name, forgiven=stored.rollout.failed)
    return {"rollout": stored.rollout.name, "phase": Phase.RUNNING.value, "forgiven": stored.rollout.failed}


def _abort(operation: Operation) -> Any:
    fleet, request, by, now = operation.fleet, operation.request, operation.by, operation.now
    stored = _find_rollout(operation, Phase.RUNNING, Phase.PAUSED)
    name, keep = stored.rollout.name, bool(request.args.get("keep"))
    reason = f"aborted by {by.name}: {by.why}"
    step: Step = Finish(Phase.CANCELED, reason) if keep else roll_back(stored.rollout, Phase.CANCELED, reason)
    fleet.store.audit(by, "rollout-aborted", now, rollout=name, keep=keep)
    return {"rollout": name, "phase": fleet.execute(stored, step, by, now).phase.value}


def _find_rollout(operation: Operation, *phases: Phase) -> StoredRollout:
    """Return the rollout that the request names, if it is in one of these phases and a reason is given."""
    fleet, name = operation.fleet, str(operation.request.args["rollout"])
    found = [fleet.rollouts[name]] if name in fleet.rollouts else fleet.store.rollouts(names=[name], tasks=False)
    if not found:
        raise unknown_rollout(name)
    if found[0].rollout.phase not in phases:
        raise CommandError(
            f"{name} is {found[0].rollout.phase}",
            code="wrong-phase",
            remedy=f"This works only while a rollout is {' or '.join(phases)}.",
        )
    operation.require_reason()
    return found[0]


def _label(operation: Operation) -> Any:
    fleet, request, by, now, node = operation.fleet, operation.request, operation.by, operation.now, operation.node
    changes: dict[str, str | None] = dict(request.args["labels"])
    check_labels({key: value or "" for key, value in changes.items()})
    if reserved := sorted(changes.keys() & {"region", "site", "node"}):
        raise CommandError(
            f"The label {reserved[0]} is part of a node's address and cannot be set",
            code="reserved-label",
            remedy="Use another key.",
        )
    own = own_labels(fleet.observed.labels(node), fleet.labels_of_region(node))
    if hidden := sorted(key for key, value in changes.items() if value is not None and own.get(key, value) != value):
        raise CommandError(
            f"The label {hidden[0]} is {own[hidden[0]]!r} in the node's own file or on its machine",
            code="label-collision",
            remedy="Use another key: the region's labels select nodes, and hide none of the node's own.",
        )
    desired = fleet.next_desired(node, now, labels=changes)
    fleet.save_desired({node: desired})
    fleet.observed.changed.add(node)
    fleet.store.audit(
        by, "node-labelled", now, node=str(node), labels=changes, given={str(node): desired.document.generation}
    )
    return {"node": str(node), "labels": fleet.labels(node), "generation": desired.document.generation}


def _pipelines(operation: Operation) -> Any:
    fleet, request, by, now, node = operation.fleet, operation.request, operation.by, operation.now, operation.node
    operation.require_reason()
    name, version = request.args["name"], request.args["version"]
    ref = None if name is None else look_up_pipelines(fleet.config.models.repository, str(name), str(version))
    desired = fleet.next_desired(node, now, signed_pipelines=(ref,))
    fleet.save_desired({node: desired})
    named = None if ref is None else ref.model_dump()
    given = {str(node): desired.document.generation}
    fleet.store.audit(by, "node-pipelines", now, node=str(node), ref=named, given=given)
    return {"node": str(node), "ref": named, "generation": desired.document.generation}


def _pin(operation: Operation) -> Any:
    fleet, request, by, now, node = operation.fleet, operation.request, operation.by, operation.now, operation.node
    name = str(request.args["model"])
    operation.require_reason()
    section = ModelSection.model_validate(request.args["version"])
    ref = look_up(fleet.config.models.repository, name, section).ref
    old = fleet.desired.get(node)
    pins = {**(old.pins if old else {}), name: {"who": by.name, "why": by.why, "at": now}}
    desired = fleet.next_desired(node, now, models={name: ref}, swap=SwapPolicy(), pins=pins)
    for stored in list(fleet.rollouts.values()):
        if gone := superseded(stored.rollout, {name}, [node], also_in_progress=True):
            fleet.save_rollout(
                replace(stored, rollout=remove_nodes(stored.rollout, gone, PINNED, f"by {by.name}: {by.why}")), stored
            )
    fleet.save_desired({node: desired})
    given = {str(node): desired.document.generation}
    fleet.store.audit(by, "node-pinned", now, node=str(node), model=name, ref=ref.model_dump(), given=given)
    return {"node": str(node), "model": name, "ref": ref.model_dump(), "generation": desired.document.generation}


def _unpin(operation: Operation) -> Any:
    fleet, request, by, now, node = operation.fleet, operation.request, operation.by, operation.now, operation.node
    name = str(request.args["model"])
    old = fleet.desired.get(node)
    if old is None or name not in old.pins:
        raise CommandError(
            f"{name} is not pinned on {node}", code="not-pinned", remedy="See its pins with `hedgerow node show`."
        )
    pins = {model: pin for model, pin in old.pins.items() if model != name}
    fleet.save_desired({node: replace(old, pins=pins)})
    fleet.observed.changed.add(node)
    fleet.store.audit(by, "node-unpinned", now, node=str(node), model=name)
    return {"node": str(node), "model": name}


def _enrolment(operation: Operation) -> Any:
    from hedgerow.region.enrolment.handlers import ACTIONS, EnrolmentOperation  # imports cryptography

    request = operation.request
    return ACTIONS[request.verb](
        EnrolmentOperation(operation.fleet.database, operation.fleet.config, request.args, operation.by, operation.now)
    )


def _approve(operation: Operation) -> Any:
    """Approve a machine. In the place of a forgotten node, that one is admitted again; where one was before it was renamed, it is new."""
    fleet = operation.fleet
    reply = _enrolment(operation)
    place = Address(fleet.config.region.name, *reply["node"].split("/"))
    if (gone := forgotten_nodes(fleet.database).get(place)) is None:
        return reply
    if gone.address == place:
        forget.admit_forgotten(operation, gone)
    else:
        count_change(fleet.database)
        end_alias(fleet.database, place, operation.now)
        keep_topics(fleet.database, place)
    return reply


_ACTIONS: Final[Mapping[str, Action]] = {
    "claim-create": _enrolment,
    "claim-revoke": _enrolment,
    "node-approve": _approve,
    "node-reject": _enrolment,
    "rollout-start": _start,
    "rollout-pause": _pause,
    "rollout-resume": _resume,
    "rollout-abort": _abort,
    "node-label": _label,
    "node-pipelines": _pipelines,
    "node-pin": _pin,
    "node-unpin": _unpin,
    "node-forget": forget.forget,
    "node-admit": forget.admit,
    "node-rename": rename.rename,
    "node-replace": replace_machine,
}
