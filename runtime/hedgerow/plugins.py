"""Finds stages by name and creates them.

Stages are entry points of the group `hedgerow.stages`. They are imported only when a pipeline names them, so a broken
plugin affects only pipelines that use it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hedgerow import configfile
from hedgerow.errors import ConfigError, HedgerowError, PluginError, is_interrupt, text_of
from hedgerow.stage import Stage

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

GROUP = "hedgerow.stages"


class BadStageConfig(ConfigError):
    """The configuration of a stage is invalid.

    Attributes:
        problems: the keys that lead to each invalid value, and a message.
    """

    code = "bad-stage-config"

    def __init__(self, name: str, problems: Sequence[tuple[tuple[int | str, ...], str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            f"Stage {name}: {'; '.join(f'{_dotted(keys)}: {message}' for keys, message in problems)}",
            remedy=f"`hedgerow plugin show {name}` lists its settings.",
            outside=f"Stage {name} has settings that are not valid: {', '.join(_dotted(keys)[:100] for keys, _ in problems[:10])}",
        )


def _dotted(keys: Sequence[int | str]) -> str:
    return ".".join(map(str, keys)) or "config"


@dataclass(frozen=True, slots=True)
class StagePlugin:
    """A stage of an installed package.

    Attributes:
        name: name in pipelines.
        target: `module:Class`.
        package: name of the package.
        version: version of the package.
    """

    name: str
    target: str
    package: str
    version: str
    _entry: EntryPoint

    def load(self) -> type[Stage[Any]]:
        """Import the stage.

        Raises: PluginError: the import fails, or the target is not a Stage.
        """
        with as_plugin_error(
            f"Stage {self.name} of {self.package} {self.version} cannot be imported from {self.target}",
            remedy=f"Try `python -c 'import {self.target.split(':')[0]}'`; reinstall {self.package} with its dependencies.",
        ):
            found = self._entry.load()
        if not (isinstance(found, type) and issubclass(found, Stage)):
            raise PluginError(
                f"Stage {self.name} of {self.package} {self.version}: {self.target} is not a subclass of hedgerow.Stage",
                remedy=f"Point the entry point {self.name!r} in {self.package}'s pyproject.toml at a Stage class.",
            )
        return found


def installed() -> dict[str, list[StagePlugin]]:
    """Return all stages of installed packages, by name; several under one name are a conflict."""
    return _read_entries(tuple((path, _changed_at(path)) for path in sys.path))


def _changed_at(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _read_entries(_folders: tuple[tuple[str, int], ...]) -> dict[str, list[StagePlugin]]:
    # Reading the metadata of all packages takes 10 ms; installing, upgrading or removing one changes its folder.
    found: dict[str, list[StagePlugin]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        dist = entry.dist
        plugin = StagePlugin(entry.name, entry.value, dist.name if dist else "?", dist.version if dist else "?", entry)
        if plugin not in (offers := found.setdefault(entry.name, [])):
            offers.append(plugin)
    return found


def find(name: str) -> StagePlugin:
    """Return the plugin that provides a stage.

    Raises: PluginError: no package provides the stage, or more than one does.
    """
    stages = installed()
    offers = stages.get(name, [])
    if not offers:
        near = difflib.get_close_matches(name, stages, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise PluginError(
            f"No installed package provides a stage {name!r}",
            remedy=f"{hint}`hedgerow plugin list` shows installed stages; `pip install` the package that provides it.",
        )
    if len({(offer.package, offer.target) for offer in offers}) > 1:
        packages = " and ".join(sorted({offer.package for offer in offers}))
        raise PluginError(
            f"Stage {name!r} is provided by {packages}", remedy="Uninstall one of them, or rename its entry point."
        )
    return offers[0]


def make(name: str, config: Mapping[str, Any]) -> Stage[Any]:
    """Create a stage by name.

    Raises:
        PluginError: the stage does not exist or is broken.
        ConfigError: the configuration is invalid.
    """
    return configure(find(name).load(), config, name)


def configure(stage_type: type[Stage[Any]], config: Mapping[str, Any], name: str) -> Stage[Any]:
    """Create a stage from its class.

    Raises:
        PluginError: its constructor fails.
        ConfigError: the configuration is invalid.
    """
    try:
        validated = stage_type.config_type.model_validate(dict(config))
    except ValidationError as error:
        problems = [(tuple(item["loc"]), _problem(stage_type, item)) for item in error.errors()]
        raise BadStageConfig(name, problems) from error
    with as_plugin_error(
        f"Stage {name} cannot be created", remedy="Fix the stage's __init__, or remove it and use setup()."
    ):
        return stage_type(validated)


@contextmanager
def as_plugin_error(what: str, *, remedy: str, keep: type[HedgerowError] | tuple[()] = ()) -> Iterator[None]:
    """Translate whatever the code of a plugin raises: it must not end the node. Ctrl-C is raised unchanged.

    Args:
        what: what has failed, as the beginning of the message.
        remedy: see `PluginError`.
        keep: errors that are raised unchanged.
    Raises: PluginError: the code failed.
    """
    try:
        yield
    except keep:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise PluginError(
            f"{what}: {type(error).__name__}: {text_of(error)}",
            remedy=remedy,
            outside=f"{what}: {type(error).__name__}",  # its text may quote any file
        ) from error


def _problem(stage_type: type[Stage[Any]], item: ErrorDetails) -> str:
    message, _ = configfile.explain(item)
    if item["type"] == "extra_forbidden":
        *section, key = item["loc"]
        near = difflib.get_close_matches(str(key), configfile.known_keys(stage_type.config_type, section), n=1)
        return message + (f", did you mean {near[0]!r}?" if near else "")
    return message
