"""Benchmark results of a bundle's variants, stored in a file beside the bundle.

A manifest is signed and its digest identifies the bundle, so results measured later, on other machines, cannot be part of
it. `door-1.0.0.bench.json` beside `door-1.0.0/` has the latest results of each class of machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hedgerow import disk
from hedgerow.errors import ModelError
from hedgerow.wire.fleet import Digest


class BadFigures(ModelError):
    """A file of benchmark results is invalid."""

    code = "bad-figures"


class _FigurePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_FigurePart):
    """Best measured settings of a variant on a device, or why it could not be measured.

    Attributes:
        single_s: time of one inference with the smallest batch, on one stream.
        not_run: why a backend was not measured or cannot be chosen, by name.
    """

    variant: str
    device: str
    backend: str | None = None
    streams: int | None = None
    threads: int | None = None
    batch: int | None = None
    frames_per_s: float | None = Field(None, ge=0)
    single_s: float | None = Field(None, ge=0)
    not_run: dict[str, str] = Field(default_factory=dict)


class Machine(_FigurePart):
    """Results of one class of machine: a processor and a number of cores."""

    machine: str
    at: str = Field(description="UTC, ISO 8601.")
    tools: str = ""
    figures: tuple[Figure, ...]


class Figures(_FigurePart):
    """Results of a bundle on all machines."""

    schema_: Literal["hedgerow.figures/1"] = Field("hedgerow.figures/1", alias="schema")
    bundle: Digest
    machines: tuple[Machine, ...] = ()


def path_for(folder: Path) -> Path:
    """Return the path of the results of the bundle in a folder."""
    absolute = folder.absolute()
    return absolute.with_name(f"{absolute.name}.bench.json")


def read(path: Path, digest: str) -> Figures:
    """Read the results of a bundle; empty if the file does not exist or belongs to another bundle.

    Raises: BadFigures: the file is invalid.
    """
    try:
        found = Figures.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Figures(bundle=digest)
    except (OSError, ValidationError) as error:
        raise BadFigures(
            f"{path} is not a valid file of benchmark results",
            remedy="Remove it; `hedgerow model bench` creates it again.",
        ) from error
    return found if found.bundle == digest else Figures(bundle=digest)


def add(path: Path, digest: str, machine: Machine) -> None:
    """Add a machine's results, replacing its earlier ones.

    Raises: BadFigures: the file is invalid; OSError: it cannot be written.
    """
    others = [one for one in read(path, digest).machines if one.machine != machine.machine]
    figures = Figures(bundle=digest, machines=(*others, machine))
    disk.replace(path, orjson.dumps(figures.model_dump(by_alias=True), option=orjson.OPT_INDENT_2))
