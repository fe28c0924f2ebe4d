"""Settings of a node's file that would do nothing, or something else than they say: another setting makes them void. Pure.

Each is a setting that somebody wrote: defaults are never reported. What a setting does on its own is checked by its section in
`config.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, TypeAlias

from hedgerow.config import NodeConfig, PipelineConfig, RangeSection, RemoteSection
from hedgerow.configfile.adjustable import BOUNDS, bounds
from hedgerow.topics import without_group

Finding: TypeAlias = tuple[tuple[int | str, ...], str, str]
"""Keys of a setting, message, remedy."""

_WHOLE: Final = ("batch", "lanes", "queue.max_frames_per_stream", "queue.max_frames", "queue.max_bytes")
"""Adjustable settings that are whole numbers."""


def settings_without_effect(config: NodeConfig) -> Iterator[Finding]:
    """Yield the keys, message and remedy of each setting without effect."""
    yield from _of_the_broker(config)
    for name, pipeline in config.pipelines.items():
        for keys, message, remedy in (*_of_the_queue(pipeline), *_of_streams(pipeline), *_of_the_rest(pipeline)):
            yield ("pipelines", name, *keys), message, remedy
        ttl_s, collect_s = pipeline.publish.ttl_s, config.outbox.commit_every_s
        if ttl_s is not None and ttl_s <= collect_s:
            yield (
                ("pipelines", name, "publish", "ttl_s"),
                f"is {ttl_s:g} s: results would be given up before they are written, which `outbox: commit_every_s` delays by {collect_s:g} s",
                "Make `ttl_s` several times `commit_every_s`.",
            )
    for name, model in config.models.items():
        if model.static_batches and model.backend == "onnxruntime":
            yield (
                ("models", name, "static_batches"),
                "has no effect with `backend: onnxruntime`",
                "Remove it, or use `backend: openvino`.",
            )
    yield from _of_the_fleet(config)
    yield from _of_limits_for_others(config)
    if config.metrics.flow_timeout_s is not None and not config.metrics.enabled:
        yield (
            ("metrics", "flow_timeout_s"),
            "has no effect with `enabled: false`: nothing answers /readyz",
            "Remove one of them.",
        )


def _of_the_broker(config: NodeConfig) -> Iterator[Finding]:
    scheme, tls = config.broker.url.partition("://")[0], config.broker.tls
    is_plain = "url" in config.broker.model_fields_set and scheme not in ("mqtts", "wss")  # else `--broker` may say it
    if written := sorted(tls.model_fields_set) if is_plain else []:
        secure = "wss" if scheme == "ws" else "mqtts"
        yield (
            ("broker", "tls"),
            f"has no effect with {scheme}://: {', '.join(written)} would not be used, and nothing would be encrypted",
            f"Write `url: {secure}://…`, or remove `tls:`.",
        )
    elif tls.key_file is not None and tls.cert_file is None:
        yield ("broker", "tls", "key_file"), "has no effect without `cert_file`", "Add `cert_file: …`."


def _of_the_queue(pipeline: PipelineConfig) -> Iterator[Finding]:
    queue, written = pipeline.queue, pipeline.queue.model_fields_set
    if {"max_frames_per_stream", "max_frames"} <= written and queue.max_frames_per_stream > queue.max_frames:
        yield (
            ("queue", "max_frames_per_stream"),
            f"{queue.max_frames_per_stream:,} is never reached: `max_frames`, for all streams together, is {queue.max_frames:,}",
            f"Set it to {queue.max_frames:,} at most.",
        )
    if "max_payload_bytes" in pipeline.model_fields_set and pipeline.max_payload_bytes > queue.max_bytes:
        yield (
            ("max_payload_bytes",),
            f"{pipeline.max_payload_bytes:,} is more than `queue: max_bytes`, {queue.max_bytes:,}: larger QoS 0 frames would all be dropped",
            f"Set it to {queue.max_bytes:,} at most, or raise `queue: max_bytes`.",
        )
    most, window = queue.max_qos1_frames_per_topic, pipeline.receive_maximum
    if most is not None and pipeline.qos == 1 and most >= window:
        yield (
            ("queue", "max_qos1_frames_per_topic"),
            f"{most:,} is never reached: the broker sends {window:,} QoS 1 frames at most before some are acknowledged",
            f"Set it below {window:,}, or raise the pipeline's `receive_maximum`, {window:,}.",
        )
    if pipeline.qos == 0:
        for keys, is_written in (
            (("queue", "max_qos1_frames_per_topic"), most is not None),
            (("receive_maximum",), "receive_maximum" in pipeline.model_fields_set),
            (("if_qos_lowered",), pipeline.if_qos_lowered == "fail"),
        ):
            if is_written:
                yield keys, "has no effect with `qos: 0`", "Remove it, or subscribe with `qos: 1`."


def _of_streams(pipeline: PipelineConfig) -> Iterator[Finding]:
    stream = pipeline.stream
    for kind in ("level", "field"):
        if getattr(stream, kind) is not None and stream.by != kind:
            yield (
                ("stream", kind),
                f"has no effect with `by: {stream.by}`",
                f"Write `by: {kind}`, or remove it.",
            )
    if stream.by == "level" and stream.level is not None:
        for pattern in pipeline.subscribe:
            levels = without_group(pattern).split("/")
            if levels[-1] != "#" and stream.level >= len(levels):
                yield (
                    ("stream", "level"),
                    f"topics of {pattern} have levels 0 to {len(levels) - 1}, not {stream.level}: all their frames would be dead-lettered",
                    "Choose a level that the topics have.",
                )


def _of_the_rest(pipeline: PipelineConfig) -> Iterator[Finding]:
    if pipeline.workers and pipeline.lanes is not None:
        yield (
            ("lanes",),
            f"has no effect with `workers: {pipeline.workers}`, which run as many lists in parallel",
            "Remove it.",
        )


def _of_the_fleet(config: NodeConfig) -> Iterator[Finding]:
    fleet = config.fleet
    for number, origin in enumerate(fleet.origins):
        if origin.token_hosts and origin.credentials_file is None:
            yield (
                ("fleet", "origins", number, "token_hosts"),
                "has no effect without `credentials_file`",
                "Add `credentials_file: …`, or remove it.",
            )
    if fleet.root_file is not None:
        return
    for name in ("origins", "store_max_bytes", "fetch_bytes_per_s", "max_crashes"):
        if name in fleet.model_fields_set and getattr(fleet, name):
            yield (
                ("fleet", name),
                "has no effect without `root_file`: the node fetches no models",
                "Add `root_file: …`.",
            )
    if config.remote.signed_pipelines:
        yield (
            ("remote", "signed_pipelines"),
            "has no effect without `fleet: root_file`: nothing says whose signatures count",
            "Add `fleet: {root_file: …}`.",
        )


def _of_limits_for_others(config: NodeConfig) -> Iterator[Finding]:
    """Yield limits for others on what does not exist, or that the node has anyway: they would protect nothing."""
    remote = config.remote
    yield from _names_of_nothing(config)
    yield from _void_permissions(remote)
    for path, limit in remote.limits.items():
        if not isinstance(limit, RangeSection):
            continue
        spans = [bounds(pipeline, path) for pipeline in config.pipelines.values()] or [BOUNDS[path]]
        if (problem := _range_problem(path, limit, spans)) is not None:
            yield ("remote", "limits", path), *problem


def _void_permissions(remote: RemoteSection) -> Iterator[Finding]:
    if remote.unsigned_pipelines:
        for name in ("limits", "thresholds"):
            if getattr(remote, name):
                yield (
                    ("remote", name),
                    "limits nothing with `unsigned_pipelines: true`, which lets documents change everything in `pipelines:`",
                    "Remove one of them.",
                )
    if remote.signed_may_stop and not (remote.signed_pipelines and remote.keep_running):
        yield (
            ("remote", "signed_may_stop"),
            "has no effect without `signed_pipelines: true` and `keep_running`",
            "Remove it.",
        )
    if remote.frames_may_leave and "snapshot" not in remote.commands:
        yield ("remote", "frames_may_leave"), "has no effect: `commands` leaves `snapshot` out", "Remove it."


def _range_problem(path: str, limit: RangeSection, spans: list[tuple[float, float]]) -> tuple[str, str] | None:
    """Return message and remedy if a range leaves no value for any pipeline, or reaches beyond what all of them allow."""
    least, most = min(low for low, _ in spans), max(high for _, high in spans)
    low, high = (-math.inf if limit.min is None else limit.min), (math.inf if limit.max is None else limit.max)
    if path in _WHOLE:
        low, high = (math.ceil(low) if low > -math.inf else low), (math.floor(high) if high < math.inf else high)
    allowed = f"the node allows {least:,.12g} to {most:,.12g} from outside"
    if all(max(low, from_) > min(high, to) for from_, to in spans):
        return (
            f"leaves no value: {allowed}",
            f"Write `{path}: fixed` if it may not be changed, or a range within these.",
        )
    if (limit.min is not None and limit.min < least) or (limit.max is not None and limit.max > most):
        return f"limits only, and cannot extend: {allowed} anyway", "Give a range within these, or remove the line."
    return None


def _names_of_nothing(config: NodeConfig) -> Iterator[Finding]:
    remote, known = config.remote, ", ".join(sorted(config.pipelines)) or "none"
    named: list[tuple[int | str, ...]] = [("keep_running", number) for number in range(len(remote.keep_running))]
    for keys, name in zip(
        [*named, *(("thresholds", name) for name in remote.thresholds)],
        [*remote.keep_running, *remote.thresholds],
        strict=True,
    ):
        if name not in config.pipelines and not remote.signed_pipelines:
            yield ("remote", *keys), f"there is no pipeline {name!r}", f"The pipelines: {known}."
    for name, limits in remote.thresholds.items():
        stages = [stage.name for stage in config.pipelines[name].stages] if name in config.pipelines else []
        for path in limits:
            if stages and path != "*" and path.partition(".")[0] not in stages:
                remedy = f"Write STAGE.SETTING with one of {', '.join(stages)}, or `*`."
                yield ("remote", "thresholds", name, path), "names no stage of that pipeline", remedy
