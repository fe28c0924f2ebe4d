"""Gate: decides from the observed state whether a node is good after a change. Pure.

Rules:
- Good must be proved: by the digest of the running file, in the node's report and in its health, and by frames processed.
  Being connected or reporting "succeeded" is not enough.
- A silent node is not good; a node silent for long is bad. Absence can only be established once the region has listened for
  as long as a healthy node may be silent; until then presence is unknown.
- A failure that the node reports counts at once. Its health counts from when the new version serves, by the node's clock.
- While the region does not listen (its service or connection is down), no node is silent or late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hedgerow.region.rollouts.planning.health_samples import (
    HealthSample,
    ModelSample,
    NodeBaseline,
    count_restarts,
    violated_limit,
)
from hedgerow.region.rollouts.planning.spec import GateSection
from hedgerow.region.store.liveness import format_duration
from hedgerow.wire.fleet import JobState, ModelRef, Reported, ReportedModel

UNPROVED: Final = "unproved"
"""Code of a finding: the node is present, but its reports do not prove yet that it serves what it should."""
NO_EARLIER_VERSION: Final = "no-earlier-version"
"""Code of a finding: the node was to be rolled back, but had no version before, and serves this one on."""
_ENDED_BADLY: Final = frozenset({"failed", "timed-out", "rejected", "removed", "canceled"})


class Presence(StrEnum):
    """Presence of a node."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"
    """Nothing was received from it, but the region has not listened long enough to tell."""


class GateVerdict(StrEnum):
    """Verdict of a gate."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class GateFinding:
    """A verdict, with its reason.

    Attributes:
        verdict: good, bad or unknown.
        state: state of the node's task.
        code, reason: why it is not good.
        presence: whether the node is present at all.
    """

    verdict: GateVerdict
    state: JobState
    code: str = ""
    reason: str = ""
    presence: Presence = Presence.PRESENT


@dataclass(frozen=True, slots=True)
class ObservedNode:
    """Observed state of a node.

    Attributes:
        online: from its last status message; None: there was none.
        last_seen: when anything last arrived from it.
        reported: its last report.
        samples: its last health reports, in order.
        moving: it has another address now than the one under which it runs, so no document reaches it yet.
    """

    online: bool | None = None
    last_seen: float | None = None
    reported: Reported | None = None
    samples: Sequence[HealthSample] = ()
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Listening:
    """Since when the region has been receiving messages.

    Attributes:
        since: start of the current connection to the broker, in Unix seconds; None: not connected.
        silent_after_s: longest silence of a healthy node.
    """

    since: float | None
    silent_after_s: float

    def presence(self, observed: ObservedNode, now: float) -> Presence:
        """Return the presence of a node."""
        if self.since is None:
            return Presence.UNKNOWN
        if observed.online is False:
            return Presence.ABSENT
        if observed.last_seen is not None and now - observed.last_seen <= self.silent_after_s:
            return Presence.PRESENT
        return Presence.ABSENT if now - self.since > self.silent_after_s else Presence.UNKNOWN


@dataclass(frozen=True, slots=True)
class Assignment:
    """A change assigned to a node.

    Attributes:
        models: versions to serve; None: no version from the region.
        files: digests of the files that may serve them, by model; empty: any.
        generation, at: of the desired document.
        due: Unix seconds by which the node must be good.
        was: its normal behaviour before.
    """

    models: Mapping[str, ModelRef | None]
    files: Mapping[str, frozenset[str]]
    generation: int
    at: float
    due: float
    was: NodeBaseline


def evaluate(
    assignment: Assignment, observed: ObservedNode, limits: GateSection, listening: Listening, now: float
) -> GateFinding:
    """Evaluate a node after a change.

    Args:
        assignment: the change.
        observed: the node.
        limits: of the gate.
        listening: since when the region has been receiving.
        now: Unix seconds.
    """
    presence = listening.presence(observed, now)
    if listening.since is None:
        return GateFinding(
            GateVerdict.UNKNOWN, "in-progress", "not-listening", "the region is not connected to its broker", presence
        )
    if (finding := _reported_failure(assignment, observed, presence)) is not None:
        return finding
    silent_s = now - max(observed.last_seen or listening.since, listening.since, assignment.at)
    if silent_s > limits.max_silence_s:
        return GateFinding(
            GateVerdict.BAD, "timed-out", "silent", f"nothing received for {format_duration(silent_s)}", presence
        )
    wrong = _broken_limit(assignment, observed, limits)
    if wrong is not None:
        return GateFinding(GateVerdict.BAD, "failed", *wrong, presence)
    if missing := _missing_proof(assignment, observed, limits):
        if now > max(assignment.due, listening.since + listening.silent_after_s):
            reason = f"not good after {format_duration(now - assignment.at)}: {missing}"
            return GateFinding(GateVerdict.BAD, "timed-out", "timed-out", reason, presence)
        return GateFinding(GateVerdict.UNKNOWN, "in-progress", UNPROVED, missing, presence)
    if presence is not Presence.PRESENT:
        return GateFinding(
            GateVerdict.UNKNOWN, "in-progress", "not-heard", "nothing received from it recently", presence
        )
    return GateFinding(GateVerdict.GOOD, "succeeded")


def evaluate_rollback(
    models: Mapping[str, ModelRef | None],
    before: Mapping[str, ModelRef | None],
    generation: int,
    due: float,
    observed: ObservedNode,
    listening: Listening,
    now: float,
) -> GateFinding:
    """Evaluate whether a node that was rolled back serves what it served before.

    A node that had no version before, and whose file names none, goes on serving the one it got: this is good, with the code
    `NO_EARLIER_VERSION`.

    Args:
        models: the versions that it got.
        before: the version to serve again, by model; None: there was none.
        generation: of the desired document that rolls it back.
        due: Unix seconds by which it must be done.
        observed: the node.
        listening: since when the region has been receiving.
        now: Unix seconds.
    """
    presence = listening.presence(observed, now)
    reported = observed.reported
    missing, kept = "", ""
    if reported is None or reported.generation < generation:
        missing = "its report does not show the rollback yet"
    elif reported.generation == generation and reported.state in ("queued", "in-progress"):
        missing = f"{reported.state}: {reported.step}".removesuffix(": ")
    else:
        for name, ref in before.items():
            serving = reported.models.get(name)
            if ref is not None and not _serves(serving, ref):
                missing = f"{name} is {_describe(serving)}"
            elif ref is None and models.get(name) is not None and _serves(serving, models[name]):
                kept = f"{name} is still {_describe(serving)}: the node had no version before, and its file names none"
    if missing and listening.since is not None and now > max(due, listening.since + listening.silent_after_s):
        return GateFinding(GateVerdict.BAD, "timed-out", "timed-out", missing, presence)
    if missing:
        return GateFinding(GateVerdict.UNKNOWN, "in-progress", UNPROVED, missing, presence)
    return GateFinding(GateVerdict.GOOD, "succeeded", NO_EARLIER_VERSION if kept else "", kept, presence)


def _reported_failure(assignment: Assignment, observed: ObservedNode, presence: Presence) -> GateFinding | None:
    """Return a finding if the node itself reports a failure."""
    reported = observed.reported
    if reported is None or reported.generation < assignment.generation:
        return None
    error = reported.error
    message = "no reason given" if error is None else error.message
    for name, ref in assignment.models.items():
        if name in reported.rolled_back and not _serves(reported.models.get(name), ref):
            code = "rolled-back" if error is None else error.code
            return GateFinding(GateVerdict.BAD, "failed", code, message, presence)
        for entry in reported.quarantined:
            if ref is not None and entry.digest == ref.digest:
                return GateFinding(
                    GateVerdict.BAD, "failed", entry.code, f"{ref} is in quarantine: {entry.reason}", presence
                )
        serving = reported.models.get(name)
        files = assignment.files.get(name)
        if files and serving is not None and _serves(serving, ref) and serving.file_digest not in files:
            reason = f"{name} runs {serving.file_digest[:19]}…, which is not a file of {ref}"
            return GateFinding(GateVerdict.BAD, "failed", "wrong-file", reason, presence)
    if reported.generation == assignment.generation and reported.state in _ENDED_BADLY:
        return GateFinding(
            GateVerdict.BAD, reported.state, reported.state if error is None else error.code, message, presence
        )
    return None


def _missing_proof(assignment: Assignment, observed: ObservedNode, limits: GateSection) -> str:
    """Return what is missing to prove that the node serves the change; empty: nothing."""
    reported = observed.reported
    if reported is None:
        return "it has not reported what it runs"
    if reported.generation < assignment.generation:
        return f"it is at generation {reported.generation}, not {assignment.generation}"
    if reported.generation == assignment.generation and reported.state != "succeeded":
        return f"{reported.state}: {reported.step}".removesuffix(": ")
    last = observed.samples[-1] if observed.samples else None
    for name, ref in assignment.models.items():
        serving = reported.models.get(name)
        if not _serves(serving, ref):
            return f"{name} is {_describe(serving)}"
        if serving is None:  # nor should it be
            continue
        if serving.stage != "kept":
            return f"{name} is still in stage {serving.stage}"
        if last is None or last.at < serving.since:
            return f"no health report since {name} began to serve"
        shown = last.models.get(name, ModelSample(serving.file_digest))
        if shown.digest != serving.file_digest:
            return f"its health still shows another file for {name}"
        frames = max(serving.results, shown.frames)
        if frames < limits.min_frames:
            return f"{frames} of {limits.min_frames} frames went through {name}"
    return ""


def _serves(serving: ReportedModel | None, ref: ModelRef | None) -> bool:
    """Whether a node serves a version; for None, whether it serves none from the region."""
    if ref is None:
        return serving is None or serving.model is None
    return serving is not None and serving.model is not None and serving.model.digest == ref.digest


def _describe(serving: ReportedModel | None) -> str:
    if serving is None:
        return "not served"
    return f"the node's own file ({serving.file_digest[:19]}…)" if serving.model is None else str(serving.model)


def _broken_limit(assignment: Assignment, observed: ObservedNode, limits: GateSection) -> tuple[str, str] | None:
    """Return the code and reason if health reports break a limit."""
    since = _serving_since(assignment, observed)
    if since is not None and observed.reported is not None and limits.max_restarts is not None:
        serving = observed.reported.models
        files = {serving[name].file_digest for name in assignment.models if name in serving}
        if (restarts := count_restarts(observed.samples, files)) > limits.max_restarts:
            return "restarts", f"it restarted {restarts} times recently; {limits.max_restarts} allowed"
    return None if since is None else violated_limit(observed.samples, since, assignment.models, assignment.was, limits)


def _serving_since(assignment: Assignment, observed: ObservedNode) -> float | None:
    """Return when the last of the assigned models began to serve, by the node's clock; None: not all of them serve.

    If all of them are to be gone, and are, that is when it was asked for, by the region's clock.
    """
    since = []
    for name, ref in assignment.models.items():
        serving = None if observed.reported is None else observed.reported.models.get(name)
        if not _serves(serving, ref):
            return None
        if serving is not None:
            since.append(serving.since)
    return max(since, default=assignment.at)
