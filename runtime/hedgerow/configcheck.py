"""Checks a configuration file against this machine: stages, their settings, models and their files.

`configfile` checks the file on its own. This module loads nothing but the code of the stages that the file names.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from hedgerow import plugins
from hedgerow.config import NodeConfig, PipelineConfig, StageEntry
from hedgerow.configfile import BadConfigFile, Document, Problem
from hedgerow.errors import ConfigError, HedgerowError
from hedgerow.models.bundle import model_file
from hedgerow.models.serving.pool import BUNDLE
from hedgerow.stage import is_threshold
from hedgerow.topics import check_feedback

Keys = tuple[int | str, ...]


class _Finding(NamedTuple):
    keys: Keys
    message: str
    remedy: str


class _Named(NamedTuple):
    """The models and stages that a configuration names.

    Attributes:
        models: valid model paths, by name.
        stages: valid stages, by their position in the file.
        known_models: names of all models, valid or not.
    """

    models: Mapping[str, str]
    stages: Mapping[Keys, StageEntry]
    known_models: Collection[str]


def load(path: Path) -> NodeConfig:
    """Read a configuration file and check it against what is installed.

    Model paths are relative to the file's folder. The valid parts of an invalid file are checked too, so that all
    problems are reported at once.

    Raises: BadConfigFile: the file cannot be read or is invalid; a stage is missing, broken or misconfigured; a
        model is not configured or its file is missing; or a pipeline subscribes to what the node itself publishes. Lists
        every problem with its line.
    """
    document = Document.read(path)
    problems: list[Problem] = []
    config = None
    try:
        config = document.validated()
        named = _named(config)
        for keys, message, remedy in (*_feedback(config), *_threshold_findings(config)):
            problems.append(Problem(document.line_of(keys), ".".join(map(str, keys)), message, remedy))
    except BadConfigFile as error:
        problems += error.problems
        named = _valid_parts(document.content)
    for keys, message, remedy in _findings(named, path.parent):
        problems.append(Problem(document.line_of(keys), ".".join(map(str, keys)), message, remedy))
    if config is None or problems:
        raise BadConfigFile(path, problems)
    return config


def _feedback(config: NodeConfig) -> Iterator[_Finding]:
    for name in config.pipelines:
        try:
            check_feedback(config.node.address, name, config.subscriptions)
        except ConfigError as error:
            yield _Finding(("pipelines", name, "subscribe"), str(error), error.remedy)


def _named(config: NodeConfig) -> _Named:
    stages = {
        _at(name, number, entry): entry
        for name, pipeline in config.pipelines.items()
        for number, entry in enumerate(pipeline.stages)
    }
    return _Named({name: model.path for name, model in config.models.items()}, stages, config.models)


def _valid_parts(content: dict[str, Any]) -> _Named:
    models, pipelines = _section(content.get("models")), _section(content.get("pipelines"))
    paths = {name: path for name, model in models.items() if isinstance(path := _section(model).get("path"), str)}
    stages = {}
    for name, pipeline in pipelines.items():
        listed = _section(pipeline).get("stages")
        for number, written in enumerate(listed if isinstance(listed, list) else ()):
            with suppress(ValidationError):
                (entry,) = PipelineConfig.model_validate({"subscribe": "any", "stages": [written]}).stages
                stages[_at(name, number, entry)] = entry
    return _Named(paths, stages, models)


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _at(pipeline: str, number: int, entry: StageEntry) -> Keys:
    return ("pipelines", pipeline, "stages", number, entry.name)


def _findings(named: _Named, base_dir: Path) -> Iterator[_Finding]:
    for name, path in named.models.items():
        if path.startswith(BUNDLE):  # fetched from the region
            continue
        try:
            model_file.resolve(path, base_dir)
        except HedgerowError as error:
            yield _Finding(("models", name, "path"), str(error), error.remedy)
    for keys, entry in named.stages.items():
        yield from _stage_findings(keys, entry, named.known_models)


def _threshold_findings(config: NodeConfig) -> Iterator[_Finding]:
    """Find limits for what is not a threshold: they would limit nothing."""
    for pipeline, limits in config.remote.thresholds.items():
        for path in limits:
            stage, _, setting = path.partition(".")
            with suppress(HedgerowError):  # a stage that does not exist is found where the pipeline names it
                if path != "*" and not is_threshold(plugins.find(stage).load().config_type, setting):
                    yield _Finding(
                        ("remote", "thresholds", pipeline, path),
                        f"{path} is not a threshold",
                        f"`hedgerow plugin show {stage}` lists the thresholds of the stage.",
                    )


def _stage_findings(keys: Keys, entry: StageEntry, known_models: Collection[str]) -> Iterator[_Finding]:
    try:
        stage = plugins.make(entry.name, entry.config)
    except plugins.BadStageConfig as error:
        for inside, message in error.problems:
            yield _Finding((*keys, *inside), message, error.remedy)
        return
    except HedgerowError as error:
        yield _Finding(keys, str(error), error.remedy)
        return
    # By convention a stage's setting that names a model is called `model`.
    model = getattr(stage.config, "model", None)
    if isinstance(model, str) and model not in known_models:
        near = next(iter(difflib.get_close_matches(model, known_models)), None)
        meant = f"Did you mean `{near}`? " if near else ""
        yield _Finding(
            (*keys, "model"), f"no model {model!r} in this file", f"{meant}Add `models: {{{model}: {{path: …}}}}`."
        )
