"""The models of a node: which slots there are, and which version each model is to be."""

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
"""How a model's `path` begins that is whichever version the region has the node serve."""


class ModelNotAssigned(ModelError):
    """A model is to come from the region, and has not yet."""

    code = "model-awaited"

    def __init__(self, name: str, path: str) -> None:
        super().__init__(
            f"Model {name} is {path}, and no version of it has come from the region yet",
            remedy="Start a rollout of it to this node; the pipeline starts by itself then. `reported` says how far it is.",
        )
        self.model = name
        self.path = path


class _SlotEntry:
    """A slot's place in the pool: one caller loads it while the others wait."""

    __slots__ = ("lock", "slot", "uses")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slot: Slot | None = None
        self.uses = 0


class ModelPool:
    """The slots of a node. Thread-safe.

    Args:
        cores: cores the node owns; models share them.
        state_dir: folder for compiled and tuned models; None: nothing is kept.
    Attributes:
        on_assigned: called, in whichever thread, when a model has got another version to be.
    """

    def __init__(self, cores: int, state_dir: Path | None = None) -> None:
        self.on_assigned: Callable[[str], None] = _nobody
        self._cores = cores
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._places: dict[Hashable, _SlotEntry] = {}
        self._assigned: dict[str, ModelVersion] = {}

    def acquire(self, name: str, config: ModelConfig, base_dir: Path) -> Slot:
        """The slot for a model; the same one for the same name, file and settings. Give it back with `release`.

        Args:
            base_dir: what a relative path in the configuration is relative to.
        Raises:
            ModelAwaited: its version is the region's to choose, which has not happened yet.
            ConfigError, ModelError: it cannot be loaded, or does not fit its configuration.
        """
        awaited = config.path.startswith(BUNDLE)
        if awaited and name not in self._assigned:
            raise ModelNotAssigned(name, config.path)
        source = None if awaited else resolve(config.path, base_dir)
        key = (name, source, config.model_dump_json())
        with self._lock:
            place = self._places.setdefault(key, _SlotEntry())
            place.uses += 1
        try:
            with place.lock:
                if place.slot is None:
                    engine = self.open(name, config, base_dir, self._assigned.get(name))
                    place.slot = Slot(config, base_dir, engine)
                return place.slot
        except BaseException:
            self._leave(key, place)
            raise

    def open(self, name: str, config: ModelConfig, base_dir: Path, candidate: ModelVersion | None) -> Engine:
        """Load a version of a model, beside whatever serves.

        Args:
            config: what the node's file says of the model.
            base_dir: what a relative path in it is relative to.
            candidate: the version; None: the file that the configuration names.
        Raises: ConfigError, ModelError: it cannot be loaded, or does not fit its configuration.
        """
        return open_engine(name, config, base_dir, self._cores, self._state_dir, candidate)

    def release(self, slot: Slot) -> None:
        """Give a slot back; the model is freed when nobody holds it any more."""
        with self._lock:
            found = next((item for item in self._places.items() if item[1].slot is slot), None)
        if found is not None:
            self._leave(*found)

    def assign(self, name: str, candidate: ModelVersion | None) -> None:
        """Say which version a model is to be, in slots that are made from now on.

        Args:
            candidate: the version; None: the file that the node's configuration names.
        """
        with self._lock:
            if candidate is None:
                self._assigned.pop(name, None)
            else:
                self._assigned[name] = candidate
        self.on_assigned(name)

    def assigned(self) -> dict[str, ModelVersion]:
        """The versions that models are to be, by their name in the configuration."""
        with self._lock:
            return self._assigned.copy()

    def slots(self, name: str | None = None) -> tuple[Slot, ...]:
        """The slots that serve now; there may be several of one name while a reload is under way.

        Args:
            name: those of this model only.
        """
        with self._lock:
            slots = [place.slot for place in self._places.values() if place.slot is not None]
        return tuple(slot for slot in slots if name in (None, slot.name))

    def close(self) -> None:
        """Free every model, whoever holds it."""
        with self._lock:
            places, self._places = list(self._places.values()), {}
        for place in places:
            if place.slot is not None:
                place.slot.close()

    def _leave(self, key: Hashable, place: _SlotEntry) -> None:
        with self._lock:
            place.uses -= 1
            if place.uses or self._places.get(key) is not place:
                return
            del self._places[key]
        if place.slot is not None:
            place.slot.close()


def _nobody(name: str) -> None:
    pass
