"""Pipelines that an owner signs for nodes, with the small files that their stages read.

    {"files": {"labels.txt": "cGVyc29u…"}, "name": "doors", "pipelines": {"doors": {…}}, "schema": "hedgerow.pipelines/1",
     "version": "1.0.0"}

Rules:
- The digest of the document's bytes, which are canonical JSON, identifies it; it covers the files, which it contains.
- Each pipeline is complete, and valid on its own.
- Stages read files of the document only; models are those that the node's own file names.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AfterValidator, Field, ValidationError, model_validator

from hedgerow.config import Name, PipelineConfig
from hedgerow.configfile import Document
from hedgerow.errors import ConfigError, first_problem
from hedgerow.models.bundle.manifest import LARGEST_PIPELINES, Part, check_path, is_canonical
from hedgerow.wire.fleet import Version

_MOST_FILES: Final = 100
_SOURCE: Final = "pipelines.yaml"


class BadPipelines(ConfigError):
    """Pipelines to sign, or signed ones, are invalid."""


def _decodable(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    return text


class PipelinesDocument(Part):
    """Pipelines and their files."""

    schema_: Literal["hedgerow.pipelines/1"] = Field("hedgerow.pipelines/1", alias="schema")
    name: Name
    version: Version
    pipelines: dict[Name, dict[str, Any]] = Field(min_length=1, max_length=64)
    files: dict[Annotated[str, AfterValidator(check_path)], Annotated[str, AfterValidator(_decodable)]] = Field(
        default_factory=dict, max_length=_MOST_FILES
    )

    @model_validator(mode="after")
    def _valid(self) -> PipelinesDocument:
        paths = {Path(path) for path in self.files}
        if any(parent in paths for path in paths for parent in path.parents):
            raise ValueError("a path is both a file and a folder")
        for name, each in self.pipelines.items():
            if "folder" in each:
                raise ValueError(f"pipelines.{name} must not have a `folder`: its files are those of the document")
            try:
                PipelineConfig.model_validate(each)
            except ValidationError as error:
                raise ValueError(f"pipelines.{name}: {first_problem(error, 'pipeline')}") from error
        return self

    def encode(self) -> bytes:
        """Return the canonical bytes, whose digest identifies the document."""
        return orjson.dumps(self.model_dump(by_alias=True), option=orjson.OPT_SORT_KEYS)

    def contents(self) -> Mapping[str, bytes]:
        """Return the content of each file by its path."""
        return {path: base64.b64decode(text) for path, text in self.files.items()}


def read_pipelines(content: bytes) -> PipelinesDocument:
    """Read a document. Raises: BadPipelines: it is too large, not canonical, or invalid."""
    remedy = "Publish it again with `hedgerow trust publish-pipelines`."
    if len(content) > LARGEST_PIPELINES:
        raise BadPipelines(f"The pipelines have {len(content):,} bytes, more than {LARGEST_PIPELINES:,}", remedy=remedy)
    if not is_canonical(content):
        raise BadPipelines("The pipelines are not canonical JSON", remedy=remedy)
    try:
        return PipelinesDocument.model_validate_json(content)
    except ValidationError as error:
        raise BadPipelines(f"The pipelines are invalid: {first_problem(error, 'document')}", remedy=remedy) from error


def collect_pipelines(folder: Path, name: str, version: str) -> PipelinesDocument:
    """Make a document from a folder: `pipelines.yaml`, as in a node's file, and the files beside it.

    Raises: BadPipelines, BadConfigFile: it cannot be read, is invalid, or is too large.
    """
    content = Document.read(folder / _SOURCE).content
    if content.keys() != {"pipelines"}:
        raise BadPipelines(
            f"{folder / _SOURCE} has {', '.join(sorted(content)) or 'nothing'}",
            remedy="Write `pipelines:` in it, as in a node's file, and nothing else.",
        )
    files: dict[str, str] = {}
    total = 0
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BadPipelines(f"{path} is not a regular file", remedy="Copy what it points to.")
            if path.is_file() and path != folder / _SOURCE:
                total += path.stat().st_size
                if total > LARGEST_PIPELINES or len(files) >= _MOST_FILES:
                    raise BadPipelines(
                        f"{folder} has more than {_MOST_FILES} files or {LARGEST_PIPELINES:,} bytes",
                        remedy="Leave in it only what the pipelines read; publish models with `hedgerow model publish`.",
                    )
                files[path.relative_to(folder).as_posix()] = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise BadPipelines(f"{folder} cannot be read: {error}", remedy="Give this user read permission.") from error
    try:
        document = PipelinesDocument.model_validate(
            {"name": name, "version": version, "pipelines": content["pipelines"], "files": files}
        )
    except ValidationError as error:
        raise BadPipelines(
            f"{folder / _SOURCE}: {first_problem(error, 'pipelines')}", remedy="See docs/operator/configuration.md."
        ) from error
    read_pipelines(document.encode())
    return document
