"""Measured figures of a bundle's variants, kept in a file beside it.

A manifest is signed, and its digest is the bundle; what is measured later, on other machines, cannot be in it. So
`door-1.0.0.bench.json` lies beside `door-1.0.0/`, with the figures of each machine that measured, the newest of each.
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
    """A file holds no measured figures."""

    code = "bad-figures"


class _FigurePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_FigurePart):
    """The best way to run a variant on a device, as it was measured; or why there is none.

    Attributes:
        single_s: what one inference of the smallest batch took, one at a time.
        not_run: why a backend was not measured or is not to be chosen, by name.
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
    """What was measured on one class of machine: a processor and a number of cores."""

    machine: str
    at: str = Field(description="UTC, ISO 8601.")
    tools: str = ""
    figures: tuple[Figure, ...]


class Figures(_FigurePart):
    """All that was measured of a bundle."""

    schema_: Literal["hedgerow.figures/1"] = Field("hedgerow.figures/1", alias="schema")
    bundle: Digest
    machines: tuple[Machine, ...] = ()


def path_for(folder: Path) -> Path:
    """Where the figures of a bundle's folder are."""
    whole = folder.absolute()
    return whole.with_name(f"{whole.name}.bench.json")


def read(path: Path, digest: str) -> Figures:
    """The figures of a bundle; none where there is no file, or one of another bundle.

    Raises: BadFigures: the file is something else.
    """
    try:
        found = Figures.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Figures(bundle=digest)
    except (OSError, ValidationError) as error:
        raise BadFigures(
            f"{path} holds no measured figures", remedy="Remove it; `hedgerow model bench` makes it again."
        ) from error
    return found if found.bundle == digest else Figures(bundle=digest)


def add(path: Path, digest: str, machine: Machine) -> None:
    """Put what was measured on a machine in place of what it measured before.

    Raises: BadFigures: the file is something else; OSError: it cannot be written.
    """
    others = [one for one in read(path, digest).machines if one.machine != machine.machine]
    whole = Figures(bundle=digest, machines=(*others, machine))
    disk.replace(path, orjson.dumps(whole.model_dump(by_alias=True), option=orjson.OPT_INDENT_2))
