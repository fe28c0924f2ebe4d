"""Pool of a node's model slots, and the version assigned to each model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final

from hedgerow.config import ModelConfig
from hedgerow.errors import ModelError
from hedgerow.models.bundle.model_file import resolve
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.serving.engine import Engine, open_engine
from hedgerow.models.serving.slot import Slot

BUNDLE: Final = "bundle:"
"""Prefix of `path` for a model whose version the region assigns."""


class ModelNotAssigned(ModelError):
    """The region has not assigned a version of a model yet."""

    code = "model-awaited"

    def __init__(self, name: str, path: str) -> None:
        super().__init__(
            f"Model {name} is {path}, but the region has not assigned a version yet",
            remedy="Start a rollout of the model to this node; the pipeline then starts on its own. `reported` shows progress.",
        )
        self.model = name
        self.path = path


class _SlotEntry:
    """A slot in the pool: one caller loads it while the others wait."""

    __slots__ = ("lock", "slot", "uses")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slot: Slot | None = None
        self.uses = 0


class ModelPool:
    """The slots of a node. Thread-safe.

    Args:
        cores: number of cores the node may use; models share them.
        state_dir: folder for compiled and tuned models; None: store nothing.
    Attributes:
        on_assigned: called with a model's name, in any thread, when its assigned version changes.
    """

    def __init__(self, cores: int, state_dir: Path | None = None) -> None:
        self.on_assigned: Callable[[str], None] = _ignore
        self._cores = cores
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _SlotEntry] = {}
        self._assigned: dict[str, ModelVersion] = {}

    def acquire(self, name: str, config: ModelConfig, base_dir: Path) -> Slot:
        """Return the slot for a model, the same one for the same name, file and settings. Call `release` when done.

        Args:
            base_dir: folder that relative paths are relative to.
        Raises:
            ModelNotAssigned: the region chooses the version, and has not done so yet.
            ConfigError, ModelError: it cannot be loaded, or does not match its configuration.
        """
        from_region = config.path.startswith(BUNDLE)
        if from_region and name not in self._assigned:
            raise ModelNotAssigned(name, config.path)
        source = None if from_region else resolve(config.path, base_dir)
        key = (name, source, config.model_dump_json())
        with self._lock:
            entry = self._entries.setdefault(key, _SlotEntry())
            entry.uses += 1
        try:
            with entry.lock:
                if entry.slot is None:
                    engine = self.open(name, config, base_dir, self._assigned.get(name))
                    entry.slot = Slot(config, base_dir, engine)
                return entry.slot
        except BaseException:
            self._leave(key, entry)
            raise

    def open(self, name: str, config: ModelConfig, base_dir: Path, version: ModelVersion | None) -> Engine:
        """Load a version of a model without letting it serve.

        Args:
            config: the model's settings in the node's file.
            base_dir: folder that relative paths are relative to.
            version: the version; None: the file named in the configuration.
        Raises: ConfigError, ModelError: it cannot be loaded, or does not match its configuration.
        """
        return open_engine(name, config, base_dir, self._cores, self._state_dir, version)

    def release(self, slot: Slot) -> None:
        """Release a slot; the model is freed with its last user."""
        with self._lock:
            found = next((item for item in self._entries.items() if item[1].slot is slot), None)
        if found is not None:
            self._leave(*found)

    def assign(self, name: str, version: ModelVersion | None) -> None:
        """Assign a version to a model, for slots created from now on.

        Args:
            version: the version; None: the file named in the node's configuration.
        """
        with self._lock:
            if version is None:
                self._assigned.pop(name, None)
            else:
                self._assigned[name] = version
        self.on_assigned(name)

    def assigned(self) -> dict[str, ModelVersion]:
        """Return the assigned versions, by the model's name in the configuration."""
        with self._lock:
            return self._assigned.copy()

    def slots(self, name: str | None = None) -> tuple[Slot, ...]:
        """Return the slots that serve; during a reload, there may be several with one name.

        Args:
            name: return only this model's slots; None: all.
        """
        with self._lock:
            slots = [entry.slot for entry in self._entries.values() if entry.slot is not None]
        return tuple(slot for slot in slots if name in (None, slot.name))

    def close(self) -> None:
        """Free every model, even if it is in use."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            if entry.slot is not None:
                entry.slot.close()

    def _leave(self, key: Hashable, entry: _SlotEntry) -> None:
        with self._lock:
            entry.uses -= 1
            if entry.uses or self._entries.get(key) is not entry:
                return
            del self._entries[key]
        if entry.slot is not None:
            entry.slot.close()


def _ignore(name: str) -> None:
    pass
