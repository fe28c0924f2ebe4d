"""Schema of a rollout's file, `rollout.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from hedgerow.config import Name, Section
from hedgerow.configfile import BadConfigFile, Document, Problem
from hedgerow.errors import ConfigError
from hedgerow.labels import Selector, parse_selector
from hedgerow.wire.fleet import Digest, SwapPolicy, Version

EACH_SITE: Final = "each site"
_PERCENT: Final = re.compile(r"(100|\d{1,2})(?:\.\d+)?%")
_SITES: Final = re.compile(r"([1-9]\d{0,4}) sites?")
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def percent(text: str) -> float | None:
    """Parse `5%` as 0.05; None if the text is not a percentage."""
    return float(text[:-1]) / 100 if _PERCENT.fullmatch(text) else None


def sites(text: str) -> int | None:
    """Parse `3 sites` as 3; None if the text has another form."""
    match = _SITES.fullmatch(text)
    return None if match is None else int(match[1])


def _selector(text: str) -> str:
    try:
        parse_selector(text)
    except ConfigError as error:
        raise ValueError(f"{error}\n  → {error.remedy}") from error
    return text


def _wave(wave: int | str) -> int | str:
    if isinstance(wave, int) or percent(wave) is not None or sites(wave) is not None or wave == EACH_SITE:
        return wave
    if not wave.strip():
        raise ValueError("must not be empty")
    return _selector(wave)


def _share(share: int | str) -> int | str:
    if isinstance(share, str) and percent(share) is None:
        raise ValueError("must be a number of nodes, or a percentage like 5%")
    return share


def _clock(text: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError("must be a time of day, 00:00 to 23:59")
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            "is not a time zone known to this machine\n  → Use one from `timedatectl list-timezones`, such as Europe/Berlin."
        ) from error
    return text


Clock = Annotated[str, AfterValidator(_clock)]


class ModelSection(Section):
    """The version of a model to serve."""

    version: Version = Field(description="The version, as published.")
    model: Name | None = Field(
        None, description="Name of the bundle, if the nodes' files use another name for the model."
    )
    digest: Digest | None = Field(
        None,
        description="Digest of the bundle's manifest. By default the one in the region's repository; another one is refused.",
    )


class GateSection(Section):
    """Limits that decide whether a node is good or bad. Unknown is neither: the rollout waits."""

    min_frames: int = Field(
        20, ge=0, description="Frames that the new version must process before the node counts as good."
    )
    max_error_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of frames that may be dead-lettered, in addition to the share before the change.",
    )
    max_dropped_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of frames that may be dropped; empty: any, since stages such as motion drop on purpose.",
    )
    max_slowdown: float | None = Field(
        2.0, gt=0, description="Factor by which the p99 latency of a pipeline may grow; empty: any."
    )
    slow_reports: int = Field(
        3,
        ge=1,
        le=12,
        description="Consecutive health reports that must exceed `max_slowdown`; a single one may be chance.",
    )
    max_growth_bytes: int | None = Field(
        512 * 2**20,
        ge=0,
        description="Memory by which the node's process may grow beyond its usual size before the change; empty: any.",
    )
    max_restarts: int | None = Field(
        2, ge=0, description="Restarts allowed within the node's last 12 health reports; empty: any number."
    )
    max_drift: float | None = Field(
        None,
        gt=0,
        description="Drift of the new version that a node may report, as population stability index; empty: any. Nodes that "
        "report no drift are not judged by it.",
    )
    max_silence_s: float = Field(
        300, gt=0, description="A node that is silent for this long after it was sent the change is bad."
    )
    timeout_s: float = Field(
        3600, gt=0, description="A node that is not good this long after it was sent the change is bad."
    )


class WindowSection(Section):
    """A time in which changes may start. Changes in progress continue, and rollbacks are always allowed."""

    days: tuple[Day, ...] = Field(DAYS, min_length=1, description="Days on which the window opens.")
    begin: Clock = Field(description="Time of day at which it opens: 22:00.")
    end: Clock = Field(description="Time of day at which it closes; on the next day if not later than `begin`.")
    time_zone: Annotated[str, AfterValidator(_zone)] = Field(
        "UTC", description="Time zone of `begin` and `end`: Europe/Berlin."
    )

    @property
    def opens(self) -> time:
        """Time of day at which it opens."""
        return time.fromisoformat(self.begin)

    @property
    def closes(self) -> time:
        """Time of day at which it closes."""
        return time.fromisoformat(self.end)


class SwapSection(SwapPolicy):
    """How a node swaps to the new version, and when it rolls back by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RolloutPlan(Section):
    """A change to roll out through the fleet in waves."""

    model_config = ConfigDict(title="Hedgerow rollout")

    rollout: Name = Field(description="Unique name of the rollout.")
    why: str = Field("", max_length=500, description="Reason, for the audit log.")
    models: dict[Name, ModelSection | Literal["none"]] = Field(
        min_length=1,
        max_length=20,
        description="Models to change: name in the nodes' files → version. `none` withdraws the model: a node whose own file has one "
        "runs that again; another unloads it, and refuses if one of its pipelines needs it.",
    )
    target: Annotated[str, AfterValidator(_selector)] = Field(
        "", description="Label selector of the nodes; empty: all.", examples=["hardware in (nuc, jetson), ring!=late"]
    )
    waves: tuple[Annotated[int | str, AfterValidator(_wave)], ...] = Field(
        ("5%", "25%"),
        max_length=100,
        description="Waves in order: `5` (five more nodes), `5%` (until 5 % of all nodes have it), `1 site` or `3 sites` (all nodes "
        "of so many sites), `each site` (one site after another) or a label selector. The last wave is all other nodes.",
    )
    soak_s: float = Field(
        600, ge=0, description="Seconds that all nodes of a wave must stay good before the next wave starts."
    )
    max_failed: Annotated[int | str, AfterValidator(_share)] = Field(
        0, description="Nodes that may fail: a number, or a percentage of the nodes reached so far."
    )
    on_failure: Literal["roll-back", "roll-back-wave", "pause"] = Field(
        "roll-back",
        description="If more fail: roll back all nodes, or those of the wave; or pause until an operator decides.",
    )
    offline: Literal["catch-up", "fail"] = Field(
        "catch-up",
        description="Nodes not connected when their wave starts: they get the change when they return, or count as failed.",
    )
    without_model: Literal["refuse", "skip"] = Field(
        "refuse",
        description="Nodes whose file does not name the model, or names another bundle for it: refuse the rollout, or leave them "
        "out.",
    )
    gate: GateSection = Field(GateSection(), description="Limits that decide whether a node is good or bad.")
    windows: tuple[WindowSection, ...] = Field((), description="When changes may start; empty: always.")
    swap: SwapSection = Field(SwapSection(), description="How a node swaps, and when it rolls back by itself.")

    @model_validator(mode="after")
    def _counts(self) -> RolloutPlan:
        for wave in self.waves:
            if isinstance(wave, int) and wave < 1:
                raise ValueError("a wave must have at least 1 node")
        if isinstance(self.max_failed, int) and self.max_failed < 0:
            raise ValueError("`max_failed` must be at least 0")
        return self

    @property
    def selector(self) -> Selector:
        """The selector of the nodes."""
        return parse_selector(self.target)

    def allowed_failures(self, reached: int) -> int:
        """Return how many nodes may fail when this many were reached."""
        if isinstance(self.max_failed, int):
            return self.max_failed
        return int((percent(self.max_failed) or 0.0) * reached + 1e-9)


def load_plan(path: Path) -> RolloutPlan:
    """Read and validate a rollout's file.

    Raises: BadConfigFile: the file cannot be read, is not YAML, or is invalid; lists every problem with its line.
    """
    document = Document.read(path)
    plan = document.as_a(RolloutPlan, "rollout")
    if problems := [
        Problem(document.line_of(keys), ".".join(map(str, keys)), *rest) for keys, *rest in _without_effect(plan)
    ]:
        raise BadConfigFile(path, problems, "rollout")
    return plan


def _without_effect(plan: RolloutPlan) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """Yield keys, message and remedy of what another setting of the plan makes void; plans in the store may have it."""
    gate, swap = plan.gate, plan.swap
    steps_s = swap.shadow_s + swap.split_s + swap.probation_s
    for keys, timeout_s in ((("swap", "timeout_s"), swap.timeout_s), (("gate", "timeout_s"), gate.timeout_s)):
        if steps_s >= timeout_s and any(
            each != "none" for each in plan.models.values()
        ):  # to withdraw one takes no swap
            yield (
                keys,
                f"{timeout_s:g} s is over before a node can succeed: shadow, split and probation take {steps_s:g} s",
                f"Set it well above {steps_s:g}.",
            )
    for keys, is_void, needed in (
        (("swap", "split_percent"), swap.split_percent and not swap.split_s, "`split_s`"),
        (("swap", "split_s"), swap.split_s and not swap.split_percent, "`split_percent`"),
        (("swap", "max_disagreement"), "max_disagreement" in swap.model_fields_set and not swap.shadow_s, "`shadow_s`"),
        (
            ("gate", "slow_reports"),
            "slow_reports" in gate.model_fields_set and gate.max_slowdown is None,
            "`max_slowdown`",
        ),
    ):
        if is_void:
            yield keys, f"has no effect without {needed}", f"Set {needed}, or remove it."
    if "max_silence_s" in gate.model_fields_set and gate.max_silence_s > gate.timeout_s:
        yield (
            ("gate", "max_silence_s"),
            f"{gate.max_silence_s:g} s is never reached: `timeout_s` is {gate.timeout_s:g} s",
            f"Set it to {gate.timeout_s:g} at most.",
        )
    reached = 0.0
    for number, wave in enumerate(plan.waves):
        share = percent(wave) if isinstance(wave, str) else None
        if share is not None and share <= reached:
            yield (
                ("waves", number),
                f"{wave} adds no node: {reached:.2%} of the nodes have it already",
                "Let percentages rise.",
            )
        reached = share or reached


def stored_plan(content: Any) -> RolloutPlan:
    """Return a stored plan."""
    return RolloutPlan.model_validate(content)
