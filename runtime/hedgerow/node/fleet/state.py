"""What an agent keeps on disk: the desired document in hand, and the versions that were kept.

Each is a small JSON file, written beside the old one, flushed to the disk and renamed: after a power cut there is the old
file or the new one. A file that cannot be read counts as missing; the region sends the document again, and versions are
found again when it is carried out.
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
    """A version that was kept: it serves from the start of the next run, without the region.

    Attributes:
        ref: which one.
        variant: of its bundle.
        previous: the version to serve if it were rolled back.
        previous_variant: of that version's bundle.
    """

    model_config = ConfigDict(frozen=True)

    ref: ModelRef
    variant: str
    previous: ModelRef | None = None
    previous_variant: str | None = None


class _KeptModels(BaseModel):
    model_config = ConfigDict(frozen=True)

    models: dict[str, KeptModel] = Field(default_factory=dict)


class AgentState:
    """An agent's state, in a folder of its own.

    Raises: OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def desired(self) -> Desired | None:
        """The desired document in hand."""
        return self._read(_DESIRED, Desired)

    def keep_desired(self, desired: Desired) -> None:
        """Keep a document, before anything is done about it."""
        disk.replace(self._folder / _DESIRED, desired.encode())

    def kept(self) -> dict[str, KeptModel]:
        """The versions that were kept, by the model's name in the node's file."""
        kept = self._read(_KEPT, _KeptModels)
        return {} if kept is None else dict(kept.models)

    def keep_models(self, models: dict[str, KeptModel]) -> None:
        """Keep which versions were kept."""
        disk.replace(self._folder / _KEPT, _KeptModels(models=models).model_dump_json(by_alias=True).encode())

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self._folder / name
        try:
            return kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("agent-state-unreadable", path=str(path), error=str(error)[:300])
            return None
