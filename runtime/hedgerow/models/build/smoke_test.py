"""Trying a variant on every backend here, for as long as it takes to fill its part of a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hedgerow import backends
from hedgerow.backends.base import Session
from hedgerow.backends.tune import TOLERANCE, difference
from hedgerow.config import ModelConfig
from hedgerow.errors import HedgerowError, ModelUnreadable
from hedgerow.frame import Array
from hedgerow.models.bundle.model_file import ModelFile, digest
from hedgerow.models.session.load import load


class SmokeTest:
    """A variant's file, loaded on every backend that can.

    Attributes:
        path: the file.
        sessions: by backend, the one that sets what outputs are right in front.
        refused: why a backend cannot run it, or not so that it counts, by name.
    """

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.path = path
        self.sessions: dict[str, Session] = {}
        self.refused: dict[str, str] = {}
        for backend in backends.candidates(path, config.backend):
            # One thread: sums are then added up in the same order everywhere.
            changes = {"path": str(path), "backend": backend.name, "threads": 1, "streams": 1, "static_batches": False}
            try:
                loaded = load(ModelFile(path, digest(path)), config.model_copy(update=changes), 1, None)
            except HedgerowError as error:
                self.refused[backend.name] = str(error)
                continue
            self.sessions[backend.name] = loaded.session
        self._some()

    def run(self, sample: Mapping[str, Array]) -> tuple[dict[str, Array], list[dict[str, Array]]]:
        """Run one sample on all; a backend that fails, or gives something else, is left out from then on.

        Returns: the outputs that are right, and those of other backends.
        Raises: ModelUnreadable: no backend can.
        """
        outputs: dict[str, dict[str, Array]] = {}
        for name, session in list(self.sessions.items()):
            try:
                got = session.run(sample)
            except HedgerowError as error:
                self._leave_out(name, str(error))
                continue
            right = next(iter(outputs.values()), None)
            if right is not None and not difference(_floats(right), _floats(got)) <= TOLERANCE * 10:
                self._leave_out(name, f"its outputs differ from those of {next(iter(outputs))}")
                continue
            outputs[name] = got
        self._some()
        first, *others = outputs.values()
        return first, others

    def leave_out(self, backend: str, why: str) -> None:
        """Try it on that one no more."""
        self._leave_out(backend, why)
        self._some()

    def close(self) -> None:
        """Free all sessions."""
        for session in self.sessions.values():
            session.close()

    def _leave_out(self, backend: str, why: str) -> None:
        self.refused[backend] = why
        self.sessions.pop(backend).close()

    def _some(self) -> None:
        if not self.sessions:
            raise ModelUnreadable(
                f"Nothing here can run {self.path.name}: {'; '.join(self.refused.values())}",
                remedy="Leave that variant out, or export the model in another way.",
            )


def close_all(trials: Iterable[SmokeTest]) -> None:
    """Free the sessions of trials."""
    for trial in trials:
        trial.close()


def _floats(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs that are looked at: whole numbers flip by rounding."""
    return {name: array for name, array in outputs.items() if array.dtype.kind == "f"}
