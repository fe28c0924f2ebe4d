"""Stages by name: from entry points to stage objects.

Stages are found through the entry point group `hedgerow.stages` and imported only when a pipeline names them, so a
broken plugin harms nobody who does not use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hedgerow import configfile
from hedgerow.errors import ConfigError, PluginError
from hedgerow.stage import Stage

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

GROUP = "hedgerow.stages"


class BadStageConfig(ConfigError):
    """A stage's configuration does not fit it.

    Attributes:
        problems: where in the configuration (keys from its top), and what is wrong there.
    """

    code = "bad-stage-config"

    def __init__(self, name: str, problems: Sequence[tuple[tuple[int | str, ...], str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            f"Stage {name}: {'; '.join(f'{_dotted(keys)}: {message}' for keys, message in problems)}",
            remedy=f"`hedgerow plugin show {name}` lists what it takes.",
        )


def _dotted(keys: Sequence[int | str]) -> str:
    return ".".join(map(str, keys)) or "config"


@dataclass(frozen=True, slots=True)
class StagePlugin:
    """A stage that an installed package offers.

    Attributes:
        name: what pipelines call it.
        target: where it is, `module:Class`.
        package: the package that ships it, and its version.
    """

    name: str
    target: str
    package: str
    version: str
    _entry: EntryPoint

    def load(self) -> type[Stage[Any]]:
        """Import the stage.

        Raises: PluginError: its import fails, or what it names is not a Stage.
        """
        try:
            found = self._entry.load()
        except (Exception, SystemExit) as error:  # a plugin may not end the node that others run in
            raise PluginError(
                f"Stage {self.name} of {self.package} {self.version} cannot be imported from {self.target}: "
                f"{type(error).__name__}: {error}",
                remedy=f"Try `python -c 'import {self.target.split(':')[0]}'`; reinstall {self.package} with what it needs.",
            ) from error
        if not (isinstance(found, type) and issubclass(found, Stage)):
            raise PluginError(
                f"Stage {self.name} of {self.package} {self.version}: {self.target} is not a subclass of hedgerow.Stage",
                remedy=f"Point the entry point {self.name!r} in {self.package}'s pyproject.toml at a Stage class.",
            )
        return found


def installed() -> dict[str, list[StagePlugin]]:
    """Every stage offered by an installed package, by name; more than one a name is a conflict."""
    found: dict[str, list[StagePlugin]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        dist = entry.dist
        plugin = StagePlugin(entry.name, entry.value, dist.name if dist else "?", dist.version if dist else "?", entry)
        if plugin not in (offers := found.setdefault(entry.name, [])):
            offers.append(plugin)
    return found


def find(name: str) -> StagePlugin:
    """The plugin that offers a stage.

    Raises: PluginError: none does, or more than one.
    """
    stages = installed()
    offers = stages.get(name, [])
    if not offers:
        near = difflib.get_close_matches(name, stages, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise PluginError(
            f"No installed package offers a stage {name!r}",
            remedy=f"{hint}`hedgerow plugin list` shows what is installed; `pip install` the package that ships it.",
        )
    if len({(offer.package, offer.target) for offer in offers}) > 1:
        packages = " and ".join(sorted({offer.package for offer in offers}))
        raise PluginError(
            f"Stage {name!r} is offered by {packages}", remedy="Uninstall one of them, or rename its entry point."
        )
    return offers[0]


def make(name: str, config: Mapping[str, Any]) -> Stage[Any]:
    """A stage by name, with its configuration validated.

    Raises:
        PluginError: there is no such stage, or it is broken.
        ConfigError: the configuration does not fit it.
    """
    return configure(find(name).load(), config, name)


def configure(stage_type: type[Stage[Any]], config: Mapping[str, Any], name: str) -> Stage[Any]:
    """A stage of a class, with its configuration validated.

    Raises:
        PluginError: its constructor fails.
        ConfigError: the configuration does not fit it.
    """
    try:
        validated = stage_type.config_type.model_validate(dict(config))
    except ValidationError as error:
        problems = [(tuple(item["loc"]), _problem(stage_type, item)) for item in error.errors()]
        raise BadStageConfig(name, problems) from error
    try:
        return stage_type(validated)
    except Exception as error:
        raise PluginError(
            f"Stage {name} cannot be made: {type(error).__name__}: {error}",
            remedy="Mend the stage's __init__, or leave it out and use setup().",
        ) from error


def _problem(stage_type: type[Stage[Any]], item: ErrorDetails) -> str:
    message, _ = configfile.explain(item)
    if item["type"] == "extra_forbidden":
        *section, key = item["loc"]
        near = difflib.get_close_matches(str(key), configfile.known_keys(stage_type.config_type, section), n=1)
        return message + (f", did you mean {near[0]!r}?" if near else "")
    return message
