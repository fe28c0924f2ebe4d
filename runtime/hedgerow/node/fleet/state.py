"""The agent's state on disk: the current desired document, and the kept versions.

Each is a small JSON file, replaced atomically: written to a temporary file, synced and renamed. So a power cut leaves the
old file or the new one. An unreadable file counts as missing: the region's retained document is received again, and
applying it restores the versions.
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
    """A kept version, which serves from the start of the next run, without the region.

    Attributes:
        ref: the version.
        variant: its bundle's variant.
        previous: the version to roll back to.
        previous_variant: its bundle's variant.
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
    """Stores the agent's state in a folder.

    Raises: OSError: the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def desired(self) -> Desired | None:
        """Return the current desired document."""
        return self._read(_DESIRED, Desired)

    def save_desired(self, desired: Desired) -> None:
        """Save a document, before it is applied."""
        disk.replace(self._folder / _DESIRED, desired.encode())

    def models(self) -> dict[str, KeptModel]:
        """Return the kept versions by the model's name in the node's file."""
        kept = self._read(_KEPT, _KeptModels)
        return {} if kept is None else dict(kept.models)

    def save_models(self, models: dict[str, KeptModel]) -> None:
        """Save the kept versions."""
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
