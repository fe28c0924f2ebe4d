"""What a rollout is to do: `rollout.yaml`."""

from __future__ import annotations

import re
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from hedgerow.config import Name, Section
from hedgerow.configfile import Document
from hedgerow.errors import ConfigError
from hedgerow.labels import Selector, parse_selector
from hedgerow.wire.fleet import Digest, SwapPolicy, Version

EACH_SITE: Final = "each site"
_PERCENT: Final = re.compile(r"(100|\d{1,2})(?:\.\d+)?%")
_SITES: Final = re.compile(r"([1-9]\d{0,4}) sites?")
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def percent(text: str) -> float | None:
    """`5%` as 0.05; None if it is no percentage."""
    return float(text[:-1]) / 100 if _PERCENT.fullmatch(text) else None


def sites(text: str) -> int | None:
    """`3 sites` as 3; None if it does not say that."""
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
        raise ValueError("says nothing")
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
            "is no time zone that this machine knows\n  → Write one as in `timedatectl list-timezones`: Europe/Berlin."
        ) from error
    return text


Clock = Annotated[str, AfterValidator(_clock)]


class ModelSection(Section):
    """A version of a model that nodes are to serve."""

    version: Version = Field(description="The version, as it was published.")
    model: Name | None = Field(None, description="The bundle's name, where nodes' files call the model otherwise.")
    digest: Digest | None = Field(
        None,
        description="Of the bundle's manifest. Looked up in the region's repository if left out; refused if that says otherwise.",
    )


class GateSection(Section):
    """When a node counts as good, and when as bad. What is not known counts as neither, and is waited for."""

    min_frames: int = Field(
        20, ge=0, description="Frames that went through the new version before a node counts as good."
    )
    max_error_share: float = Field(
        0.01, ge=0, le=1, description="Share of frames that may die, beyond what usually died before."
    )
    max_dropped_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of frames that may be dropped; empty: any, since motion and the like drop on purpose.",
    )
    max_slowdown: float | None = Field(
        2.0, gt=0, description="Times the latency (p99) of before that a pipeline may take; empty: any."
    )
    slow_reports: int = Field(
        3, ge=1, le=12, description="Health reports in a row that must say so, for one alone may be bad luck."
    )
    max_growth_bytes: int | None = Field(
        512 * 2**20,
        ge=0,
        description="Memory that the node's process may take beyond what it usually took before; empty: any.",
    )
    max_restarts: int | None = Field(
        2, ge=0, description="Times the node may start anew within its last 12 health reports; empty: any number."
    )
    max_drift: float | None = Field(
        None,
        gt=0,
        description="Drift that a node may report of the new version: population stability index; empty: any. Nodes that "
        "report none are not judged by it.",
    )
    max_silence_s: float = Field(
        300, gt=0, description="A node that was given the change and is not heard for so long is bad."
    )
    timeout_s: float = Field(
        3600, gt=0, description="A node that is not good so long after it was given the change is bad."
    )


class WindowSection(Section):
    """A time in which nodes may be given something new. What is under way goes on, and going back is always allowed."""

    days: tuple[Day, ...] = Field(DAYS, min_length=1, description="Days on which it opens.")
    begin: Clock = Field(description="When it opens: 22:00.")
    end: Clock = Field(description="When it closes; on the next day if that is not later than `begin`.")
    time_zone: Annotated[str, AfterValidator(_zone)] = Field(
        "UTC", description="Where those times hold: Europe/Berlin."
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
    """How a node goes over to the new version, and when it comes back by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RolloutPlan(Section):
    """A change, taken through the fleet in waves."""

    model_config = ConfigDict(title="Hedgerow rollout")

    rollout: Name = Field(description="Its name. No two have the same one.")
    why: str = Field("", max_length=500, description="What it is for; stands in the audit log.")
    models: dict[Name, ModelSection] = Field(
        min_length=1, max_length=20, description="What changes: model's name in the nodes' files → version."
    )
    target: Annotated[str, AfterValidator(_selector)] = Field(
        "", description="Which nodes: a label selector; empty: all.", examples=["hardware in (nuc, jetson), ring!=late"]
    )
    waves: tuple[Annotated[int | str, AfterValidator(_wave)], ...] = Field(
        ("5%", "25%"),
        max_length=100,
        description="Whom it reaches after whom: `5` (so many more), `5%` (until so many have it), `1 site` or `3 sites` (all nodes "
        "of as many), `each site` (one site after the other) or a label selector. Who is left is the last wave.",
    )
    soak_s: float = Field(
        600, ge=0, description="Seconds that all nodes of a wave stay good before the next one begins."
    )
    max_failed: Annotated[int | str, AfterValidator(_share)] = Field(
        0, description="Nodes that may fail: how many, or what percentage of those that were reached so far."
    )
    on_failure: Literal["roll-back", "roll-back-wave", "pause"] = Field(
        "roll-back",
        description="If more fail: put back all nodes, or those of the wave, on what they served before; or wait for a person.",
    )
    offline: Literal["catch-up", "fail"] = Field(
        "catch-up",
        description="Nodes not heard when their wave comes: they get it when they return, or count as failed.",
    )
    gate: GateSection = Field(GateSection(), description="When a node counts as good, and when as bad.")
    windows: tuple[WindowSection, ...] = Field((), description="When nodes may be given something new; empty: always.")
    swap: SwapSection = Field(SwapSection(), description="How a node goes over, and when it comes back by itself.")

    @model_validator(mode="after")
    def _counts(self) -> RolloutPlan:
        for wave in self.waves:
            if isinstance(wave, int) and wave < 1:
                raise ValueError("a wave has at least 1 node")
        if isinstance(self.max_failed, int) and self.max_failed < 0:
            raise ValueError("`max_failed` must be at least 0")
        return self

    @property
    def selector(self) -> Selector:
        """Which nodes."""
        return parse_selector(self.target)

    def allowed_failures(self, reached: int) -> int:
        """Nodes that may fail when so many were reached."""
        if isinstance(self.max_failed, int):
            return self.max_failed
        return int((percent(self.max_failed) or 0.0) * reached + 1e-9)


def load_plan(path: Path) -> RolloutPlan:
    """Read and validate a rollout's file.

    Raises: BadConfigFile: it cannot be read, is not YAML, or does not validate; every problem with its line.
    """
    return Document.read(path).as_a(RolloutPlan, "rollout")


def stored_plan(content: Any) -> RolloutPlan:
    """A plan as it was stored."""
    return RolloutPlan.model_validate(content)
