"""Smoke test of a variant: runs it on every backend of this machine while its bundle is built."""

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
    """A variant's file, loaded on every backend that can load it.

    Attributes:
        path: the file.
        sessions: sessions by backend; the first one provides the reference outputs.
        refused: why a backend was excluded, by name.
    """

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.path = path
        self.sessions: dict[str, Session] = {}
        self.refused: dict[str, str] = {}
        for backend in backends.candidates(path, config.backend):
            # One thread, so that sums are added in the same order everywhere.
            changes = {"path": str(path), "backend": backend.name, "threads": 1, "streams": 1, "static_batches": False}
            try:
                loaded = load(ModelFile(path, digest(path)), config.model_copy(update=changes), 1, None)
            except HedgerowError as error:
                self.refused[backend.name] = str(error)
                continue
            self.sessions[backend.name] = loaded.session
        self._require_backend()

    def run(self, sample: Mapping[str, Array]) -> tuple[dict[str, Array], list[dict[str, Array]]]:
        """Run one sample on all backends, and exclude those that fail or disagree with the first.

        Returns: the reference outputs, and the outputs of the other backends.
        Raises: ModelUnreadable: no backend is left.
        """
        outputs: dict[str, dict[str, Array]] = {}
        for name, session in list(self.sessions.items()):
            try:
                actual = session.run(sample)
            except HedgerowError as error:
                self._exclude(name, str(error))
                continue
            reference = next(iter(outputs.values()), None)
            if reference is not None and not difference(_floats(reference), _floats(actual)) <= TOLERANCE * 10:
                self._exclude(name, f"its outputs differ from those of {next(iter(outputs))}")
                continue
            outputs[name] = actual
        self._require_backend()
        first, *others = outputs.values()
        return first, others

    def exclude(self, backend: str, why: str) -> None:
        """Stop using a backend. Raises: ModelUnreadable: no backend is left."""
        self._exclude(backend, why)
        self._require_backend()

    def close(self) -> None:
        """Free all sessions."""
        for session in self.sessions.values():
            session.close()

    def _exclude(self, backend: str, why: str) -> None:
        self.refused[backend] = why
        self.sessions.pop(backend).close()

    def _require_backend(self) -> None:
        if not self.sessions:
            raise ModelUnreadable(
                f"No backend on this machine can run {self.path.name}: {'; '.join(self.refused.values())}",
                remedy="Leave this variant out, or export the model differently.",
            )


def close_all(smoke_tests: Iterable[SmokeTest]) -> None:
    """Free the sessions of smoke tests."""
    for smoke_test in smoke_tests:
        smoke_test.close()


def _floats(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs to compare: integers may flip by rounding."""
    return {name: array for name, array in outputs.items() if array.dtype.kind == "f"}
