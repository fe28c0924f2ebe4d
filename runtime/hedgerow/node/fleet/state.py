"""What a node remembers of its models over restarts: the document in hand, and which versions were kept.

Each is a small JSON file, written aside, flushed to the disk and renamed: after a power cut there is the old one or the
new one. One that cannot be read counts as not there; what it said comes again from the region, or is found anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hedgerow import disk
from hedgerow.wire.fleet import Desired, ModelRef

log = structlog.get_logger(__name__)

_DESIRED: Final = "desired.json"
_KEPT: Final = "kept.json"
T = TypeVar("T", bound=BaseModel)


class KeptModel(BaseModel):
    """A version that was kept: it serves from the first moment of the next run, without asking anybody.

    Attributes:
        ref: which one.
        variant: of its bundle.
        previous: what would serve if it were taken back.
    """

    model_config = ConfigDict(frozen=True)

    ref: ModelRef
    variant: str
    previous: ModelRef | None = None
    previous_variant: str | None = None


class Kept(BaseModel):
    """All of them, by the model's name in the node's file."""

    model_config = ConfigDict(frozen=True)

    models: dict[str, KeptModel] = Field(default_factory=dict)


class Memory:
    """A node's memory, in a folder.

    Raises: OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def desired(self) -> Desired | None:
        """The document in hand."""
        return self._read(_DESIRED, Desired)

    def keep_desired(self, desired: Desired) -> None:
        """Remember a document before anything is done about it."""
        disk.replace(self._folder / _DESIRED, desired.encode())

    def kept(self) -> dict[str, KeptModel]:
        """The versions that were kept."""
        kept = self._read(_KEPT, Kept)
        return {} if kept is None else dict(kept.models)

    def keep_models(self, models: dict[str, KeptModel]) -> None:
        """Remember which versions are kept."""
        disk.replace(self._folder / _KEPT, Kept(models=models).model_dump_json(by_alias=True).encode())

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self._folder / name
        try:
            return kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("memory-unreadable", path=str(path), error=str(error)[:300])
            return None
