"""Configuration files as written: YAML 1.2 into a `NodeConfig`, with errors that point to the line.

All problems of a file are reported at once. For an unknown key the error suggests the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from hedgerow.config import NodeConfig
from hedgerow.configfile.without_effect import settings_without_effect
from hedgerow.errors import ConfigError, without_secrets

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in a configuration file.

    Attributes:
        line: counted from 1; None if the error is not in the file (the environment, a default).
        field: dotted path of the setting: `pipelines.doors.queue.max_age_s`.
        message: the expected value, and the actual one.
        remedy: what to write instead.
    """

    line: int | None
    field: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


_MOST_PUBLISHED: Final = 10
_LONGEST_FIELD: Final = 100


class BadConfigFile(ConfigError):
    """A configuration file cannot be used.

    Attributes:
        problems: all problems, from top to bottom.
    """

    code = "bad-config-file"

    def __init__(self, path: Path, problems: Sequence[Problem], check: str = "config") -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        lines = [f"{path}:{problem.line or 1}: {problem}\n    → {problem.remedy}" for problem in self.problems]
        where = [
            f"line {problem.line}, {problem.field[:_LONGEST_FIELD] or 'the file'}"
            if problem.line
            else "the environment"
            for problem in self.problems[:_MOST_PUBLISHED]
        ]
        super().__init__(
            "\n".join(lines),
            remedy=f"Fix the file, then run `hedgerow {check} check {path}`.",
            outside=f"The configuration file {path.name} cannot be used: {'; '.join(where)}",
        )


def load(path: Path) -> NodeConfig:
    """Read and validate a configuration file; HEDGEROW_* environment variables override it.

    Raises: BadConfigFile: the file cannot be read, is not YAML, or is invalid; lists every problem with its line.
    """
    return Document.read(path).validated()


def parse(text: str, path: Path = Path("config.yaml")) -> NodeConfig:
    """Validate the text of a configuration file.

    Args:
        text: the file's content.
        path: used in messages; relative paths in the file are relative to its folder.
    Raises: BadConfigFile: the text is not YAML or is invalid.
    """
    return Document(text, path).validated()


class Document:
    """A configuration file as written, valid or not.

    Args:
        text: the file's content.
        path: used in messages; relative paths in the file are relative to its folder.
    Attributes:
        content: the keys and values.
    Raises: BadConfigFile: the text is not YAML.
    """

    def __init__(self, text: str, path: Path) -> None:
        self._path = path
        self._yaml = _read_yaml(text, path)
        self.content: dict[str, Any] = _plain(self._yaml)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file.

        Raises: BadConfigFile: the file cannot be read or is not YAML.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL
            remedy = "Give the path of a YAML file; `configs/` has examples."
            raise BadConfigFile(path, [Problem(None, "", f"cannot be read: {error}", remedy)]) from error
        return cls(text, path)

    def validated(self) -> NodeConfig:
        """Return the configuration; HEDGEROW_* environment variables override the file.

        Raises: BadConfigFile: the configuration is invalid; lists every problem with its line.
        """
        config_type = NodeConfig
        if any(name.upper().startswith("HEDGEROW_") for name in os.environ):
            from hedgerow import configenv

            config_type = configenv.OverriddenConfig
            if unknown := list(configenv.unknown_variables(os.environ)):
                raise BadConfigFile(self._path, [_unknown_variable(*each) for each in unknown])
        try:
            config = config_type(**self.content)
        except ValidationError as error:
            raise BadConfigFile(self._path, list(_problems(self._yaml, error))) from error
        except Exception as error:  # pydantic-settings: a HEDGEROW_* variable that is not valid JSON
            problem = Problem(None, "", str(error), "Check the HEDGEROW_* environment variables.")
            raise BadConfigFile(self._path, [problem]) from error
        if problems := [
            Problem(self.line_of(keys), ".".join(map(str, keys)), *rest)
            for keys, *rest in settings_without_effect(config)
        ]:
            raise BadConfigFile(self._path, problems)
        return _anchored(config, self._path.parent.absolute())

    def as_a(self, model: type[Kind], check: str) -> Kind:
        """Return the content as another kind of file; the environment does not override it.

        Args:
            model: the schema of such files.
            check: the command group that checks such files, for the remedy.
        Raises: BadConfigFile: the content is invalid; lists every problem with its line.
        """
        try:
            return model.model_validate(self.content)
        except ValidationError as error:
            raise BadConfigFile(self._path, list(_problems(self._yaml, error, model)), check) from error

    def line_of(self, keys: Sequence[int | str]) -> int | None:
        """Return the line of the last of these keys that exists; None if none does."""
        return _line(self._yaml, keys)


def schema(model: type[BaseModel] = NodeConfig) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of configuration files, for editors."""

    class Generator(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False  # the title "Max Age S" adds nothing to `max_age_s`

    return {"$schema": Generator.schema_dialect, **model.model_json_schema(schema_generator=Generator)}


_WORDING: Final = {
    "missing": "is required",
    "extra_forbidden": "unknown key",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} or fewer characters",
    "path_type": "must be a path",
    "string_pattern_mismatch": "must match {pattern}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "must list at least {min_length}",
    "too_long": "must list at most {max_length}",
    "dict_type": "must be `key: value` lines",
    "model_type": "must be `key: value` lines",
    "model_attributes_type": "must be `key: value` lines",
}


def explain(item: ErrorDetails) -> tuple[str, str]:
    """Put a pydantic error into plain words.

    Returns: the message (`must be at least 1; got 0`), and the validator's advice or "".
    """
    wording = _WORDING.get(item["type"])
    if wording is None:  # a validator's own message, or a rare type of error
        message = item["msg"].removeprefix("Value error, ").replace("Input should ", "must ", 1)
        message, _, advice = message.partition("\n  → ")
    else:
        message, advice = wording.format(**{name: _limit(value) for name, value in item.get("ctx", {}).items()}), ""
    if item["type"] in ("missing", "extra_forbidden"):
        return message, advice
    message = without_secrets(message)
    if any(_is_secret(step) for step in item["loc"]):
        return message, advice
    shown = repr(_without_secrets(item["input"]))
    return f"{message}; got {shown if len(shown) <= 60 else shown[:57] + '…'}", advice


_SECRET: Final = re.compile(r"passw|passphrase|secret|token|credential", re.IGNORECASE)
"""Names of settings whose values are never shown, unless it is the name of a file."""


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and not name.endswith("_file") and _SECRET.search(name) is not None


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: "***" if _is_secret(key) else _without_secrets(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def _limit(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pydantic turns `ge=1` of a float field into 1.0
    return ", ".join(str(value).rsplit(" or ", 1))  # of choices: 'a', 'b' or 'c'


def merge(document: Any, changes: Mapping[str, Any]) -> None:
    """Merge changes into a document: mappings are merged, null removes a key, anything else replaces the value."""
    for key, value in changes.items():
        if value is None:
            document.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(document.get(key), dict):
            merge(document[key], value)
        elif key not in document and isinstance(document, CommentedMap):
            document.insert(0, key, value)  # at the end it would separate a comment from the key that it describes
        else:
            document[key] = value


def _anchored(config: NodeConfig, folder: Path) -> NodeConfig:
    """Make paths relative to the file's folder, not to the working directory."""
    changes: dict[str, Any] = {
        "node": config.node.model_copy(update={"state_dir": folder / config.node.state_dir}),
        "broker": config.broker.anchored(folder),
        "fleet": config.fleet.anchored(folder),
        "pipelines": {
            name: each if each.folder is None else each.model_copy(update={"folder": folder / each.folder})
            for name, each in config.pipelines.items()
        },
    }
    return config.model_copy(update=changes)


def _read_yaml(text: str, path: Path) -> CommentedMap:
    if (problem := _too_large(text)) is not None:  # the YAML parser would take minutes
        raise BadConfigFile(path, [problem])
    if (line := _too_deep(text)) is not None:  # the YAML parser would take minutes to fail
        raise BadConfigFile(
            path, [Problem(line, "", f"nests deeper than {_DEEPEST} levels", "Check the brackets there.")]
        )
    try:
        if "*" in text:
            _check_references(text)
        document = YAML(typ="rt").load(text)
        if not _small(document):
            raise ValueError(f"its references expand to more than {_MOST_VALUES:,} values")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        what = " ".join(part for part in (error.context, error.problem) if part)
        if _SECRET.search(what):
            what = what.partition(" with value ")[0]
        if line is not None and any(_is_secret(row.partition(":")[0]) for row in text.splitlines()[line - 1 : line]):
            what = "the value of a secret; write it in quotes"
        raise BadConfigFile(
            path, [Problem(line, "", f"not YAML: {what}", "Check the indentation and quotes there.")]
        ) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise BadConfigFile(path, [Problem(None, "", f"not YAML: {error}", "Check the file's syntax.")]) from error
    except TypeError as error:  # ruamel.yaml hashes keys, and cannot hash a mapping in a mapping
        problem = Problem(
            None, "", "a key is itself a list or a mapping", "Remove the `? ` or `[`, `{` before the key."
        )
        raise BadConfigFile(path, [problem]) from error
    if document is None:
        return CommentedMap()
    if not isinstance(document, CommentedMap) or not all(isinstance(key, str) for key in document):
        problem = Problem(
            1,
            "",
            "expected `key: value` lines at the top",
            "Begin with `node:` and `pipelines:`; in a topology, with `region:` and `sites:`.",
        )
        raise BadConfigFile(path, [problem])
    return document


_DEEPEST = 50
_MOST_VALUES = 200_000


_LONGEST_FILE: Final = 2 << 20
_MOST_SEPARATORS: Final = 150_000
_MOST_EXPANDED: Final = 50_000


def _too_large(text: str) -> Problem | None:
    """Return a problem if a file has more values than any configuration, by its separators."""
    if len(text) > _LONGEST_FILE:
        what = f"has {len(text):,} characters; at most {_LONGEST_FILE:,}"
    elif (values := text.count(",") + text.count("\n")) > _MOST_SEPARATORS:
        what = f"has {values:,} lines and commas; at most {_MOST_SEPARATORS:,}"
    else:
        return None
    return Problem(None, "", what, "Give the path of a configuration file; split a topology of that size by region.")


def _check_references(text: str) -> None:
    """Refuse a document that its references (`*name`, `<<: *name`) expand to too many values, before they are expanded.

    Raises: ValueError: it is too large, or a reference is to something around it.
    """
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in YAML(typ="rt", pure=True).parse(text):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, CollectionStartEvent):
            open_.append((anchor, total))
            continue
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_.pop()
            size = total - before + 1
        elif isinstance(event, AliasEvent):
            if any(event.anchor == around for around, _ in open_):
                raise ValueError("a reference is to what it is part of")
            size, anchor = sizes.get(event.anchor, 1), None  # the parser reports an unknown one, with its line
            total += size - 1
        elif isinstance(event, ScalarEvent):
            size = 1
        else:
            continue
        total += 1
        if anchor:
            sizes[anchor] = size
        if total > _MOST_EXPANDED:
            raise ValueError(f"its references expand to more than {_MOST_EXPANDED:,} values")


def _small(node: Any) -> bool:
    """Whether a document stays small with all references (`*name`) expanded; one that refers to itself never does."""
    left, waiting = _MOST_VALUES, [node]
    while waiting:
        one = waiting.pop()
        inside = one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ()
        left -= len(inside)
        if left < 0:
            return False
        waiting += inside
    return True


def _too_deep(text: str) -> int | None:
    """Return the line where brackets or indentation nest too deep; None if they do not."""
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        for sign in line:
            depth += (sign in "[{") - (sign in "]}" and depth > 0)
            if depth > _DEEPEST:
                return number
        if len(line) - len(line.lstrip(" -")) > 8 * _DEEPEST:
            return number
    return None


def _plain(node: Any) -> Any:
    """Convert a YAML document to plain Python values, for pydantic to show in its messages."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _unknown_variable(name: str, near: str) -> Problem:
    remedy = (
        f"Did you mean {near}?" if near else "Unset it, or write HEDGEROW_SECTION__KEY, with two underscores per level."
    )
    return Problem(None, name, "this environment variable overrides no setting", remedy)


def _problems(document: CommentedMap, error: ValidationError, root: type[BaseModel] = NodeConfig) -> Iterator[Problem]:
    items = error.errors()
    for item in items:
        loc = item["loc"]
        if item["type"] == "too_short" and any(other["loc"][: len(loc)] == loc != other["loc"] for other in items):
            continue  # pydantic counts only valid items; the invalid ones have errors of their own
        keys = _keys_in(document, loc)
        field = ".".join(str(key) for key in keys)
        line = _line(document, keys)
        message, advice = explain(item)
        if item["type"] == "extra_forbidden":
            known = known_keys(root, keys[:-1])
            near = difflib.get_close_matches(str(keys[-1]), known, n=1)
            advice = f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(sorted(known))}."
        elif item["type"] == "missing":
            advice = f"Add `{loc[-1]}:` here."
        yield Problem(line, field, message, advice or _description(root, keys))


def _keys_in(document: Any, loc: Sequence[int | str]) -> list[int | str]:
    """Return the steps of a pydantic location that exist in the file; unions and validators add others."""
    keys: list[int | str] = []
    node: Any = document
    for position, step in enumerate(loc):
        if (isinstance(node, CommentedMap) and step in node) or (
            isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node)
        ):
            node = node[step]
        elif position < len(loc) - 1 or not isinstance(node, CommentedMap | None):
            continue
        keys.append(step)
    return keys


def _line(document: Any, keys: Sequence[int | str]) -> int | None:
    node, line = document, None
    for key in keys:
        try:
            line = (node.lc.item(key) if isinstance(key, int) else node.lc.key(key))[0] + 1
            node = node[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _model_at(root: type[BaseModel], keys: Sequence[int | str]) -> tuple[type[BaseModel] | None, Any]:
    """Return the section that a path ends in, and the field's info if it ends in a field."""
    model: type[BaseModel] | None = root
    info: Any = None
    for key in keys:
        if model is None:
            if info is not None:  # in a mapping by name, or a list: continue in the element's section
                model, info = _section_of(info.annotation), None
            continue
        info = _field(model, str(key))
        if info is None:
            return None, None
        model = _section_of(info.annotation) if _is_section(info.annotation) else None
    if model is None and info is not None and not _is_section(info.annotation):
        return None, info
    return model, info


def _field(model: type[BaseModel], key: str) -> Any:
    """Return the info of a field, by its name or a former one."""
    fields = model.model_fields
    return fields.get(key) or next(
        (
            info
            for info in fields.values()
            if isinstance(info.validation_alias, AliasChoices) and key in info.validation_alias.choices
        ),
        None,
    )


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if _is_section(annotation):
        return typing.cast(type[BaseModel], annotation)
    origin = typing.get_origin(annotation)
    if origin in (dict, tuple, typing.Union, types.UnionType, typing.Annotated):
        return next((found for arg in typing.get_args(annotation) if (found := _section_of(arg))), None)
    return None


def known_keys(root: type[BaseModel], keys: Sequence[int | str]) -> list[str]:
    """Return the keys allowed in the section at this path; an empty list if there is no such section."""
    model, _ = _model_at(root, keys)
    return list(model.model_fields) if model else []


def _description(root: type[BaseModel], keys: Sequence[int | str]) -> str:
    """Return the description of a setting, or of the section around it."""
    for end in range(len(keys), 0, -1):
        _, info = _model_at(root, keys[:end])
        if info is not None and info.description:
            return str(info.description)
    return "See `hedgerow config schema`."
