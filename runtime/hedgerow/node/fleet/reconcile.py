"""What a node has to do to run what it should: desired × running → steps. Pure.

Rules:
- A document is admitted or refused as a whole, before anything is done about it.
- What serves already is not touched; so a document that comes again does nothing.
- Models go first, pipelines after them: a pipeline finds its new model in place.
- A model that the document does not name goes back to the file that the node's configuration names; one that has no such
  file (`bundle:NAME`) keeps the version that serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import TypeAlias

from hedgerow.errors import HedgerowError
from hedgerow.models.serving.pool import BUNDLE
from hedgerow.node.pipelines.overlay import Overlay
from hedgerow.wire.fleet import Desired, ModelRef, Quarantined


class DesiredError(HedgerowError):
    """A desired document cannot be carried out."""

    code = "bad-desired"

    def __init__(self, message: str, *, code: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class Admission(StrEnum):
    """What to do about a document that has arrived."""

    TAKE = "take"
    KNOWN = "known"
    """The generation that is in hand already."""
    OLD = "old-generation"
    STRAY = "another-node"
    EXPIRED = "expired"


def admit(desired: Desired, address: str, generation: int, now: float, *, clock_doubtful: bool) -> Admission:
    """Whether to take a document.

    Args:
        address: of this node.
        generation: of the document in hand; 0: there is none.
        now: Unix seconds.
        clock_doubtful: whether `now` may be wrong: then nothing counts as expired.
    """
    if desired.node != address:
        return Admission.STRAY
    if desired.generation == generation:
        return Admission.KNOWN
    if desired.generation < generation:
        return Admission.OLD
    if desired.expires_at is not None and desired.expires_at < now and not clock_doubtful:
        return Admission.EXPIRED
    return Admission.TAKE


@dataclass(frozen=True, slots=True)
class Running:
    """What a node runs.

    Attributes:
        models: every model of its file: the path that the file gives.
        serving: model → version that serves; a model that is not in it serves its own file, or nothing yet.
        installed: digests of the bundles on its disk, complete and verified.
        quarantined: versions that it will not try again, by digest.
        pipelines: every pipeline of its file.
        overlay: the `pipelines` of an earlier document that are in force.
    """

    models: Mapping[str, str]
    serving: Mapping[str, ModelRef] = field(default_factory=dict)
    installed: frozenset[str] = frozenset()
    quarantined: Mapping[str, Quarantined] = field(default_factory=dict)
    pipelines: frozenset[str] = frozenset()
    overlay: Overlay = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FetchVersion:
    """Verify a version and fetch it."""

    model: str
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class VerifyAgain:
    """Verify once more a version that is on the disk and was verified when it came."""

    model: str
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class SwapVersion:
    """Swap to a version."""

    model: str
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class SwapToFile:
    """Swap to the file that the node's own configuration names."""

    model: str


@dataclass(frozen=True, slots=True)
class ChangePipelines:
    """Put another overlay into force."""

    pipelines: Overlay


Step: TypeAlias = FetchVersion | VerifyAgain | SwapVersion | SwapToFile | ChangePipelines


def reconcile(desired: Desired, running: Running) -> list[Step]:
    """The steps from what runs to what should.

    Raises: DesiredError: it cannot be done, so none of it is: the document names what is not there, or a version that is
        in quarantine here.
    """
    _check(desired, running)
    steps: list[Step] = []
    for model, ref in sorted(desired.models.items()):
        serving = running.serving.get(model)
        if serving is not None and serving.digest == ref.digest:
            continue
        here = ref.digest in running.installed
        steps += [VerifyAgain(model, ref) if here else FetchVersion(model, ref), SwapVersion(model, ref)]
    steps += [
        SwapToFile(model)
        for model in sorted(running.serving.keys() - desired.models.keys())
        if model in running.models and not running.models[model].startswith(BUNDLE)
    ]
    if dict(desired.pipelines) != dict(running.overlay):
        steps.append(ChangePipelines(desired.pipelines))
    return steps


def _check(desired: Desired, running: Running) -> None:
    for model, ref in desired.models.items():
        if model not in running.models:
            near = next(iter(get_close_matches(model, running.models)), None)
            there = ", ".join(sorted(running.models)) or "none"
            raise DesiredError(
                f"The node's file has no model {model!r}, which is to serve {ref}",
                code="unknown-model",
                remedy=f"Did you mean {near!r}?" if near else f"Its models: {there}. Add one to the node's file.",
            )
        if (known := running.quarantined.get(ref.digest)) is not None:
            raise DesiredError(
                f"{ref} is in quarantine here: {known.reason}",
                code="quarantined",
                remedy=f"Send another version; or, if it was not the model's fault, `hedgerow command {desired.node} release "
                f"digest={ref.digest}`.",
            )
        mine = running.models[model]
        if mine.startswith(BUNDLE) and mine.removeprefix(BUNDLE) != ref.name:
            raise DesiredError(
                f"The node's file wants {mine} for model {model!r}, and it is to serve {ref}",
                code="another-bundle",
                remedy=f"Send a version of {mine.removeprefix(BUNDLE)}, or change `path:` in the node's file.",
            )
    for pipeline, changes in desired.pipelines.items():
        if pipeline not in running.pipelines and (changes is None or "subscribe" not in changes):
            raise DesiredError(
                f"The node's file has no pipeline {pipeline!r} to change",
                code="unknown-pipeline",
                remedy=f"Its pipelines: {', '.join(sorted(running.pipelines)) or 'none'}. A new one needs `subscribe` and "
                "`stages`.",
            )
