"""`hedgerow plugin`: lists, shows, creates and tests stages."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, print_json, style
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import AlertCell, print_facts, print_table
from hedgerow.errors import ConfigError, HedgerowError

if TYPE_CHECKING:
    from hedgerow.cli.frames.sources import SplitOptions
    from hedgerow.config import NodeConfig
    from hedgerow.frame import Frame


def list_(json: Json = False) -> None:
    """List the installed stages; broken ones are listed with the reason.

    Examples:
      hedgerow plugin list
      hedgerow plugin list --json
    """
    from hedgerow import plugins

    listed = [_listed(plugin) for offers in plugins.installed().values() for plugin in offers]
    if json:
        print_json(listed)
        return
    rows = [
        (
            item["name"],
            f"{item['package']} {item['version']}",
            item["summary"] or AlertCell(f"broken: {item['error']}"),
        )
        for item in listed
    ]
    print_table(("STAGE", "PACKAGE", ""), rows, omit_first=("PACKAGE",))


def _listed(plugin: Any) -> dict[str, Any]:
    from hedgerow import plugins

    item = {"name": plugin.name, "package": plugin.package, "version": plugin.version, "target": plugin.target}
    try:
        stage = plugins.find(plugin.name).load()
    except HedgerowError as error:
        return {**item, "summary": None, "error": str(error), "remedy": error.remedy}
    return {**item, "summary": (_doc(stage) or "(no docstring)").partition("\n")[0], "error": None, "remedy": None}


def show(stage: Annotated[str, typer.Argument(help="Name of the stage.")], json: Json = False) -> None:
    """Show what a stage does, its settings, and how to use it in a pipeline.

    Examples:
      hedgerow plugin show motion
      hedgerow plugin show infer --json
    """
    from hedgerow import plugins

    plugin = plugins.find(stage)
    found = plugin.load()
    settings = _settings(found.config_type.model_json_schema())
    if json:
        about = {"name": stage, "package": plugin.package, "version": plugin.version, "target": plugin.target}
        print_json({**about, "doc": _doc(found), "settings": settings, "schema": found.config_type.model_json_schema()})
        return
    echo(f"{style(stage, bold=True)}: {_doc(found) or '(no docstring)'}\n")
    echo(f"From {plugin.package} {plugin.version}, {plugin.target}\n")
    if settings:
        echo("Settings:")
        print_facts([(f"  {item['name']}", item["type"], _facts(item)) for item in settings])
    else:
        echo("It takes no settings.")
    echo(f"\nIn a pipeline:\n  stages:\n    - {_example(stage, settings)}")


def new(
    name: Annotated[str, typer.Argument(help="Name of the stage, e.g. dim-light.")],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="FOLDER", help="Folder in which to create the package.")
    ] = Path(),
) -> None:
    """Create a plugin: an ordinary package with one stage, its test and an example pipeline.

    Examples:
      hedgerow plugin new dim-light
      hedgerow plugin new dim-light --dir plugins

    The package is called hedgerow-NAME, and its test passes. `pip install -e` makes the stage available.
    """
    from hedgerow.cli.node.scaffold import create

    package = create(name, folder)
    for path in sorted(package.rglob("*")):
        if path.is_file():
            echo(f"  {path}")
    echo(f"\nNext:\n  pip install -e {package}\n  pytest {package}\n  hedgerow plugin show {name}")


def try_(
    stage: Annotated[str, typer.Argument(help="Name of the stage.")],
    samples: Annotated[
        list[str], typer.Argument(metavar="SAMPLE...", help="Files with frames that the stage should process.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take settings, models and preceding stages from a pipeline in this file."),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The pipeline; default: the first one with the stage.")
    ] = None,
    frames: Annotated[int, typer.Option(min=2, max=1000, help="Number of frames to read from the samples.")] = 8,
    json: Json = False,
) -> None:
    """Test a stage against the stage contract, on your frames and on broken ones. Needs no broker.

    Examples:
      hedgerow plugin test dim-light numbers.json --config pipeline.yaml
      hedgerow plugin test decode door.jpg

    Samples are read as `hedgerow publish` reads them. Exits with 1 if a test fails.
    """
    from hedgerow import configcheck
    from hedgerow.cli.frames.sources import SplitOptions
    from hedgerow.config import NodeConfig, StageEntry
    from hedgerow.testing.contract import try_stage

    settings = configcheck.load(config) if config else NodeConfig()
    stages, content_type = [StageEntry(name=stage)], ""
    if config is not None:
        name, position = _find_stage(settings, stage, pipeline, config)
        stages = list(settings.pipelines[name].stages[: position + 1])
        content_type = settings.pipelines[name].content_type or ""
    read = _frames(samples, SplitOptions(), content_type, frames)
    promises = try_stage(stages, read, models=settings.models, base_dir=config.parent if config else Path())
    if json:
        print_json({"stage": stage, "ok": all(promise.kept for promise in promises), "promises": promises})
    else:
        for promise in promises:
            state = style("passed", fg="green") if promise.kept else style("failed", fg="red", bold=True)
            echo(f"{state}  {promise.name}{f': {promise.detail}' if promise.detail else ''}")
    if not all(promise.kept for promise in promises):
        raise typer.Exit(1)


def _find_stage(settings: NodeConfig, stage: str, pipeline: str | None, file: Path) -> tuple[str, int]:
    """Return the pipeline that has the stage, and the stage's position in it."""
    for name, each in settings.pipelines.items():
        if pipeline in (None, name):
            for position, entry in enumerate(each.stages):
                if entry.name == stage:
                    return name, position
    raise ConfigError(
        f"{file} has no pipeline {f'{pipeline} ' if pipeline else ''}with a stage {stage!r}",
        remedy=f"Add `- {stage}` to its stages, or omit --config.",
    )


def _frames(sources: list[str], options: SplitOptions, content_type: str, count: int) -> list[Frame]:
    import itertools
    import time

    from hedgerow.cli.frames.sources import expand_sources, read_frames
    from hedgerow.frame import Frame
    from hedgerow.wire.codec import mime, stated_meta

    every = itertools.chain.from_iterable(read_frames(path, options) for path in expand_sources(sources))
    now = time.time()
    return [
        Frame(
            frame.payload,
            id=f"sample-{number}",
            stream="sample",
            topic="sample",
            sequence=number,
            captured_at=now + (frame.due_s or 0.0),
            content_type=mime(content_type or frame.content_type),
            meta=stated_meta(content_type or frame.content_type),
        )
        for number, frame in enumerate(itertools.islice(every, count))
    ]


def _doc(stage: type) -> str:
    # inspect.getdoc would return the base class's docstring.
    return inspect.cleandoc(stage.__doc__ or "")


def _settings(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a stage's settings from its JSON Schema: name, type, required, default, limits, description."""
    required = schema.get("required", [])
    fields = []
    for name, field in schema.get("properties", {}).items():
        fields.append(
            {
                "name": name,
                "type": _type(field, schema),
                "required": name in required,
                "default": field.get("default"),
                "limits": _limits(field),
                "threshold": bool(field.get("threshold")),
                "description": field.get("description", ""),
            }
        )
    return fields


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _limits(field: dict[str, Any]) -> str:
    parts = [field, *field.get("anyOf", [])]
    return ", ".join(f"{sign} {part[key]}" for part in parts for key, sign in _LIMITS.items() if key in part)


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in field:
        return _type(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in field:
        return " | ".join(_type(part, schema) for part in field["anyOf"] if part.get("type") != "null")
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field['items'], schema)}" if "items" in field else "list"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values, schema)}" if isinstance(values, dict) else "mapping"
    return str(kind)


def _facts(item: dict[str, Any]) -> str:
    limits = f" ({item['limits']})" if item["limits"] else ""
    state = "required" if item["required"] else "optional"
    if item["default"] is not None:
        state = f"default {_yaml(item['default'])}"
    kind = ", threshold" if item["threshold"] else ""
    return f"{item['description']}{limits} [{state}{kind}]".strip()


def _example(stage: str, settings: list[dict[str, Any]]) -> str:
    """Return a line of YAML with all required settings, or else two with defaults."""
    shown = [item for item in settings if item["required"]]
    shown = shown or [item for item in settings if item["default"] is not None][:2]
    if not shown:
        return stage
    inside = ", ".join(f"{item['name']}: {'…' if item['required'] else _yaml(item['default'])}" for item in shown)
    return f"{stage}: {{{inside}}}"


def _yaml(value: Any) -> str:
    import orjson

    return value if isinstance(value, str) and value else orjson.dumps(value).decode()
