"""Whether a node is good after a change, from what is known of it. Pure.

Rules:
- Good is proved: by the digest of what runs, as the node reports it and its health shows it, and by frames that went
  through it. That a node is connected, or says "succeeded", is not enough.
- Who is not heard is not good. Who is not heard for long is bad. Whether somebody is gone can only be known when the region
  has listened for as long as a node that is well may be silent; until then it is open.
- What a node says of its own failure counts at once; what its health shows counts from when the new version serves, by
  the node's own clock.
- As long as nobody listens (the service or its link is down) nobody is silent or late.
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
"""Code of a finding: it is there, and what it reports does not prove yet that it serves what it should."""
_ENDED_BADLY: Final = frozenset({"failed", "timed-out", "rejected", "removed", "canceled"})


class Presence(StrEnum):
    """Whether a node is there."""

    PRESENT = "here"
    ABSENT = "gone"
    UNKNOWN = "open"
    """It is not heard, and the region has not listened for long enough to say more."""


class GateVerdict(StrEnum):
    """What is to be thought of a node."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class GateFinding:
    """A verdict and why.

    Attributes:
        state: what the node's job has come to.
        code, reason: why it is not good.
        presence: whether it is there at all.
    """

    verdict: GateVerdict
    state: JobState
    code: str = ""
    reason: str = ""
    presence: Presence = Presence.PRESENT


@dataclass(frozen=True, slots=True)
class ObservedNode:
    """What is known of a node.

    Attributes:
        online: what its last status says; None: there was none.
        heard_at: when something came of it.
        samples: its last health reports, in order.
    """

    online: bool | None = None
    last_seen: float | None = None
    reported: Reported | None = None
    samples: Sequence[HealthSample] = ()


@dataclass(frozen=True, slots=True)
class Listening:
    """How long the region has been listening.

    Attributes:
        since: Unix seconds since which it hears the broker without a break; None: it does not.
        silent_after_s: longest silence of a node that is well.
    """

    since: float | None
    silent_after_s: float

    def presence(self, observed: ObservedNode, now: float) -> Presence:
        """Whether a node is there."""
        if self.since is None:
            return Presence.UNKNOWN
        if observed.online is False:
            return Presence.ABSENT
        if observed.last_seen is not None and now - observed.last_seen <= self.silent_after_s:
            return Presence.PRESENT
        return Presence.ABSENT if now - self.since > self.silent_after_s else Presence.UNKNOWN


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a node was given.

    Attributes:
        models: what it is to serve.
        files: digests of the files that may serve it, by model; none: any.
        generation, at: of the desired document.
        due: Unix seconds at which it has to be good.
        was: how it usually was before.
    """

    models: Mapping[str, ModelRef]
    files: Mapping[str, frozenset[str]]
    generation: int
    at: float
    due: float
    was: NodeBaseline


def evaluate(
    given: Assignment, observed: ObservedNode, limits: GateSection, listening: Listening, now: float
) -> GateFinding:
    """What is to be thought of a node that was given something.

    Args:
        now: Unix seconds.
    """
    there = listening.presence(observed, now)
    if listening.since is None:
        return GateFinding(GateVerdict.UNKNOWN, "in-progress", "not-listening", "the region hears nobody", there)
    if (finding := _reported_failure(given, observed, there)) is not None:
        return finding
    silent_s = now - max(observed.last_seen or listening.since, listening.since, given.at)
    if silent_s > limits.max_silence_s:
        return GateFinding(
            GateVerdict.BAD, "timed-out", "silent", f"nothing received for {format_duration(silent_s)}", there
        )
    wrong = _shown(given, observed, limits)
    if wrong is not None:
        return GateFinding(GateVerdict.BAD, "failed", *wrong, there)
    if missing := _unproved(given, observed, limits):
        if now > max(given.due, listening.since + listening.silent_after_s):
            reason = f"not good after {format_duration(now - given.at)}: {missing}"
            return GateFinding(GateVerdict.BAD, "timed-out", "timed-out", reason, there)
        return GateFinding(GateVerdict.UNKNOWN, "in-progress", UNPROVED, missing, there)
    if there is not Presence.PRESENT:
        return GateFinding(GateVerdict.UNKNOWN, "in-progress", "not-heard", "it is not heard", there)
    return GateFinding(GateVerdict.GOOD, "succeeded")


def evaluate_rollback(
    before: Mapping[str, ModelRef | None],
    generation: int,
    due: float,
    observed: ObservedNode,
    listening: Listening,
    now: float,
) -> GateFinding:
    """Whether a node that was put back serves what it served before.

    Args:
        generation, due: of the desired document that put it back, and Unix seconds until which it is waited for.
    """
    there = listening.presence(observed, now)
    reported = observed.reported
    missing = ""
    if reported is None or reported.generation < generation:
        missing = "it has not taken the change back yet"
    elif reported.generation == generation and reported.state in ("queued", "in-progress"):
        missing = f"{reported.state}: {reported.step}".removesuffix(": ")
    else:
        for name, ref in before.items():
            serving = reported.models.get(name)
            if ref is not None and not _serves(serving, ref):
                missing = f"{name} is {_named(serving)}"
    if missing and listening.since is not None and now > max(due, listening.since + listening.silent_after_s):
        return GateFinding(GateVerdict.BAD, "timed-out", "timed-out", missing, there)
    if missing:
        return GateFinding(GateVerdict.UNKNOWN, "in-progress", UNPROVED, missing, there)
    return GateFinding(GateVerdict.GOOD, "succeeded", presence=there)


def _reported_failure(given: Assignment, observed: ObservedNode, there: Presence) -> GateFinding | None:
    """What the node says itself has gone wrong."""
    reported = observed.reported
    if reported is None or reported.generation < given.generation:
        return None
    error = reported.error
    said = "it gives no reason" if error is None else error.message
    for name, ref in given.models.items():
        if name in reported.rolled_back and not _serves(reported.models.get(name), ref):
            code = "rolled-back" if error is None else error.code
            return GateFinding(GateVerdict.BAD, "failed", code, said, there)
        for kept in reported.quarantined:
            if kept.digest == ref.digest:
                return GateFinding(
                    GateVerdict.BAD, "failed", kept.code, f"{ref} is in quarantine: {kept.reason}", there
                )
        serving = reported.models.get(name)
        files = given.files.get(name)
        if files and serving is not None and _serves(serving, ref) and serving.file_digest not in files:
            reason = f"{name} runs {serving.file_digest[:19]}…, which is no file of {ref}"
            return GateFinding(GateVerdict.BAD, "failed", "wrong-file", reason, there)
    if reported.generation == given.generation and reported.state in _ENDED_BADLY:
        return GateFinding(
            GateVerdict.BAD, reported.state, reported.state if error is None else error.code, said, there
        )
    return None


def _unproved(given: Assignment, observed: ObservedNode, limits: GateSection) -> str:
    """What is missing before it is proved that the node serves what it was given; empty: nothing."""
    reported = observed.reported
    if reported is None:
        return "it has not reported what it runs"
    if reported.generation < given.generation:
        return f"it is at generation {reported.generation}, not {given.generation}"
    if reported.generation == given.generation and reported.state != "succeeded":
        return f"{reported.state}: {reported.step}".removesuffix(": ")
    last = observed.samples[-1] if observed.samples else None
    for name, ref in given.models.items():
        serving = reported.models.get(name)
        if serving is None or not _serves(serving, ref):
            return f"{name} is {_named(serving)}"
        if serving.stage != "kept":
            return f"{name} is on {serving.stage}"
        if last is None or last.at < serving.since:
            return f"no health report has come since {name} serves"
        shown = last.models.get(name, ModelSample(serving.file_digest))
        if shown.digest != serving.file_digest:
            return f"its health still shows another file for {name}"
        frames = max(serving.results, shown.frames)
        if frames < limits.min_frames:
            return f"{frames} of {limits.min_frames} frames went through {name}"
    return ""


def _serves(serving: ReportedModel | None, ref: ModelRef) -> bool:
    return serving is not None and serving.model is not None and serving.model.digest == ref.digest


def _named(serving: ReportedModel | None) -> str:
    if serving is None:
        return "not served"
    return f"a file of the node's own ({serving.file_digest[:19]}…)" if serving.model is None else str(serving.model)


def _shown(given: Assignment, observed: ObservedNode, limits: GateSection) -> tuple[str, str] | None:
    """What health shows to be wrong: code and reason."""
    since = _serving_since(given, observed)
    if since is not None and observed.reported is not None and limits.max_restarts is not None:
        files = {observed.reported.models[name].file_digest for name in given.models}
        if (often := count_restarts(observed.samples, files)) > limits.max_restarts:
            return "restarts", f"it started anew {often} times lately, and {limits.max_restarts} are allowed"
    return None if since is None else violated_limit(observed.samples, since, given.models, given.was, limits)


def _serving_since(given: Assignment, observed: ObservedNode) -> float | None:
    """When the last of the given models began to serve, by the node's clock; None: not all of them do."""
    since = []
    for name, ref in given.models.items():
        serving = None if observed.reported is None else observed.reported.models.get(name)
        if serving is None or not _serves(serving, ref):
            return None
        since.append(serving.since)
    return max(since)
