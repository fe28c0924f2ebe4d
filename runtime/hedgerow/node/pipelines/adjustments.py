"""Unsigned changes of pipelines from outside: which settings, within which limits. Pure.

A desired document or the command `adjust` may change, of a pipeline that the node's own file defines: its queue, rate,
lanes, batch and the thresholds of its stages, or whether it runs. Nothing else: no path, stage, model, topic, subscription,
field policy or durability. `remote:` in the node's file narrows the limits, and nothing from outside widens them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeAlias, get_args

from pydantic import ValidationError

from hedgerow import plugins
from hedgerow.config import Adjustable, NodeConfig, PipelineConfig, RangeSection, StageEntry
from hedgerow.configfile.adjustable import bounds, own_value
from hedgerow.errors import HedgerowError
from hedgerow.stage import is_threshold

Changes: TypeAlias = Mapping[str, Mapping[str, Any] | None]
"""Changes by pipeline: `{"batch": 8, "queue": {"max_age_s": 2}, "stages": {"yolo": {"min_score": 0.6}}}`; null as a value: as in
the node's file; null in place of all changes: the pipeline does not run."""

MOST_CHANGES: Final = 100
"""Most settings that one document or command may change."""

_LARGEST: Final = 1e300
_DROPPING: Final = ("queue.policy", "queue.max_age_s", "queue.deadline_s", "queue.max_rate_per_stream")
"""Settings that decide which frames are dropped: fixed where results are durable, or the pipeline has to keep running."""
_ROOM: Final = ("queue.max_frames_per_stream", "queue.max_frames", "queue.max_bytes")
"""Settings by which QoS 0 frames are dropped for lack of room: there, no less than the node's file has."""


class AdjustmentRefused(HedgerowError):
    """An unsigned change is not among those that the node allows: change its file, or sign the pipelines."""

    code = "not-adjustable"

    def __init__(self, message: str, *, remedy: str, code: str = "not-adjustable") -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


def adjusted(file: NodeConfig, changes: Changes) -> NodeConfig:
    """Return a configuration with unsigned changes applied.

    Args:
        file: the node's file, whose `remote:` sets the limits.
    Raises: AdjustmentRefused: a change is not allowed, or out of limits; none is applied.
    """
    if sum(1 if each is None else max(1, len(each)) for each in changes.values()) > MOST_CHANGES:
        raise AdjustmentRefused(
            f"More than {MOST_CHANGES} changes at once", remedy="Change fewer settings, or sign the pipelines."
        )
    pipelines = dict(file.pipelines)
    for name, change in changes.items():
        if name not in file.pipelines:
            known = ", ".join(sorted(file.pipelines)) or "none"
            raise AdjustmentRefused(
                f"The node's file has no pipeline {name!r} to change",
                code="unknown-pipeline",
                remedy=f"Its pipelines: {known}. A new pipeline has to be signed: `remote: signed_pipelines`.",
            )
        if change is None:
            require_may_stop(file, [name])
            del pipelines[name]
        else:
            pipelines[name] = _changed(file, name, change)
    return file.model_copy(update={"pipelines": pipelines})


def nested(change: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes with their dotted keys as mappings: `{"queue.max_age_s": 2}` as `{"queue": {"max_age_s": 2}}`."""
    found: dict[str, Any] = {}
    for path, value in _settings(change):
        *sections, last = path.split(".", 2)
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return found


def require_may_stop(file: NodeConfig, names: list[str]) -> None:
    """Raises: AdjustmentRefused: one of these pipelines has to keep running."""
    if kept := [name for name in names if name in file.remote.keep_running]:
        raise AdjustmentRefused(
            f"Pipeline {', '.join(kept)} has to keep running",
            code="must-keep-running",
            remedy="Only the node's own file can stop it: see its `remote: keep_running`.",
        )


def require_keeps_running(
    file: NodeConfig, now: Collection[str], then: Collection[str], replaced: Collection[str]
) -> None:
    """Check that signed pipelines end none that has to keep running.

    Args:
        now, then: names of the pipelines before and after the change.
        replaced: those of the node's file that signed ones replace.
    Raises: AdjustmentRefused: one would end.
    """
    if file.remote.signed_may_stop:
        return
    ended = {name for name in file.remote.keep_running if name in replaced or (name in now and name not in then)}
    if ended:
        raise AdjustmentRefused(
            f"Pipeline {', '.join(sorted(ended))} has to keep running; signed pipelines may not replace or end it",
            code="must-keep-running",
            remedy="Sign them under other names; or set `remote: {signed_may_stop: true}` in the node's file, which lets owners do so.",
        )


def _changed(file: NodeConfig, name: str, change: Mapping[str, Any]) -> PipelineConfig:
    pipeline = file.pipelines[name]
    document = pipeline.model_dump(exclude_unset=True)
    for path, value in _settings(change):
        key, _, inside = path.partition(".")
        if key == "stages":
            document["stages"] = _with_threshold(file, name, document["stages"], inside, value)
            continue
        if path not in get_args(Adjustable):
            raise _unknown(f"pipelines.{name}.{path}", path)
        if value is None:
            continue
        _check_limit(file, name, path, value)
        section = document.setdefault(key, {}) if inside else document
        section[inside or key] = value
    try:
        return PipelineConfig.model_validate(document)
    except ValidationError as error:
        where = ".".join(str(step) for step in error.errors()[0]["loc"])
        raise AdjustmentRefused(
            f"pipelines.{name}.{where}: {error.errors()[0]['msg'][:200]}",
            remedy="See the setting's values in docs/operator/configuration.md.",
        ) from error


def _settings(change: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted paths and values: of `queue`, one level deeper; of `stages`, two. Dotted keys are accepted as such."""
    left = MOST_CHANGES
    for key, value in change.items():
        depth = {"queue": 1, "stages": 2}.get(key, 0)
        waiting = [(key, value, depth)]
        while waiting:
            path, inside, depth = waiting.pop()
            if depth and isinstance(inside, Mapping):
                waiting += [(f"{path}.{name}", each, depth - 1) for name, each in inside.items()]
                left -= len(inside)
                if left < 0:
                    raise AdjustmentRefused(
                        f"More than {MOST_CHANGES} changes at once",
                        remedy="Change fewer settings, or sign the pipelines.",
                    )
            else:
                yield path, inside


def _check_limit(file: NodeConfig, name: str, path: str, value: Any) -> None:
    where, pipeline = f"pipelines.{name}.{path}", file.pipelines[name]
    limit = next((each for key, each in file.remote.limits.items() if key == path), None)
    if limit == "fixed":
        raise _fixed(where, f"remote: limits: {path}")
    if path in _DROPPING and pipeline.publish.durable:
        raise _fixed(where, f"pipelines: {name}: publish: durable")
    if path in _DROPPING and name in file.remote.keep_running:
        raise _fixed(where, "remote: keep_running")
    if path == "queue.policy":
        if value not in ("latest", "fifo"):
            raise AdjustmentRefused(f"{where} must be 'latest' or 'fifo'", remedy="Send one of these.")
        return
    if path == "lanes" and pipeline.workers:
        raise AdjustmentRefused(
            f"{where} has no effect: the pipeline runs in {pipeline.workers} workers",
            remedy="Change `workers` in the node's file.",
        )
    low, high = bounds(pipeline, path)
    if (own := own_value(pipeline, path)) is not None:
        by = (
            "publish: durable"
            if pipeline.publish.durable
            else "keep_running"
            if name in file.remote.keep_running
            else ""
        )
        if path in _ROOM and by and isinstance(value, int | float) and value < own:
            raise AdjustmentRefused(
                f"{where} must be at least {own:g}, as in the node's file; got {value:g}",
                code="out-of-limits",
                remedy=f"With less room, QoS 0 frames would be dropped, and `{by}` forbids that: change the node's file.",
            )
    _check_range(where, value, limit, low, high)


def _with_threshold(file: NodeConfig, pipeline: str, stages: Any, path: str, value: Any) -> list[Any]:
    """Return the stages with a threshold changed: `STAGE.SETTING`."""
    stage, _, setting = path.partition(".")
    where = f"pipelines.{pipeline}.stages.{path}"
    entries = list(file.pipelines[pipeline].stages)
    found = [number for number, entry in enumerate(entries) if entry.name == stage]
    if len(found) != 1 or not setting or "." in setting:
        names = ", ".join(entry.name for entry in entries)
        raise AdjustmentRefused(
            f"{where[:200]} does not name a threshold of one stage",
            remedy=f'Write {{"stages": {{"STAGE": {{"SETTING": 0.5}}}}}} with one of the stages {names}; neither the stages '
            "nor their order can be changed without a signature.",
        )
    if not is_threshold(plugins.find(stage).load().config_type, setting):
        raise AdjustmentRefused(
            f"{where[:200]} is not a threshold",
            remedy="Only numbers that the stage declares as thresholds can be changed without a signature.",
        )
    if value is None:
        return list(stages)
    limits = file.remote.thresholds.get(pipeline, {})
    limit = limits.get(path, limits.get("*"))
    if limit == "fixed":
        raise _fixed(where, f"remote: thresholds: {pipeline}")
    _check_range(where, value, limit, -1e9, 1e9)
    changed = list(stages)
    entry = PipelineConfig.model_validate({"subscribe": "any", "stages": [changed[found[0]]]}).stages[0]
    changed[found[0]] = _entry(entry, {**entry.config, setting: value})
    try:
        plugins.find(stage).load().config_type.model_validate({**entry.config, setting: value})
    except ValidationError as error:
        raise AdjustmentRefused(
            f"{where}: {error.errors()[0]['msg'][:200]}", remedy=f"`hedgerow plugin show {stage}` lists its limits."
        ) from error
    return changed


def _entry(entry: StageEntry, config: dict[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {"name": entry.name, "config": config}
    return written if entry.timeout_s is None else {**written, "timeout_s": entry.timeout_s}


def _check_range(where: str, value: Any, limit: RangeSection | None, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        raise AdjustmentRefused(f"{where} must be a number", remedy="Send a finite number.")
    if limit is not None:
        low = low if limit.min is None else max(low, limit.min)
        high = high if limit.max is None else min(high, limit.max)
    if not low <= value <= high:
        raise AdjustmentRefused(
            f"{where} must be between {low:g} and {high:g}; got {value:g}",
            code="out-of-limits",
            remedy="Only the node's own file can go further; its `remote:` sets the limits.",
        )


def _fixed(where: str, by: str) -> AdjustmentRefused:
    return AdjustmentRefused(
        f"{where} cannot be changed from outside", remedy=f"The node's file fixes it (`{by}`): change it there."
    )


def _unknown(where: str, path: str) -> AdjustmentRefused:
    near = get_close_matches(path[:100], get_args(Adjustable), n=1)
    return AdjustmentRefused(
        f"{where[:200]} cannot be changed without a signature",
        remedy=(f"Did you mean {near[0]}? " if near else "")
        + f"Adjustable are {', '.join(get_args(Adjustable))} and thresholds of stages. For anything else change the node's "
        "file, or sign the pipelines: `remote: signed_pipelines`.",
    )
