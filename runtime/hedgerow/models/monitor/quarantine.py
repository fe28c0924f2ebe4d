"""Versions that are being tried, kept on disk: so that one which brings the process down is not tried for ever.

Before each step that runs a version's code (load, golden, switch) the trial is written and synced. It is cleared when the
version is kept or taken back. A trial that is still there when the node starts was interrupted in that step:

- by a crash of native code, if that left its mark (`faulthandler` writes it while the process dies);
- or by a power cut, a kill, the system's want of memory: nobody knows whose fault it was, so three count as a crash.

Workers that a version brings down are a crash of it as well, which this process lives to tell.

As many crashes as are allowed, and the version is in quarantine. Being taken back in an orderly way counts as neither.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from pathlib import Path
from typing import IO, Final

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from hedgerow import disk
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.canary_analysis import CRASHED
from hedgerow.wire.fleet import Quarantined

A_CRASH: Final = 3
"""Ends that left no mark and count as much as a crash."""
_FILE: Final = "trials.json"
_MARK: Final = "crash.txt"


class _Attempt(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    step: str
    open: bool
    crashes: int = 0
    ends: int = 0


class _QuarantineState(BaseModel):
    trials: dict[str, _Attempt] = {}
    quarantined: dict[str, Quarantined] = {}


class QuarantineLog:
    """The trial counter of a node.

    Args:
        folder: where it is kept; made if it is not there.
        max_crashes: crashes of a version that put it into quarantine.
    Attributes:
        fresh: versions that were put into quarantine because of how the process ended before.
    """

    def __init__(self, folder: Path, max_crashes: int = 1) -> None:
        self._folder = folder
        self._max_crashes = max_crashes
        folder.mkdir(parents=True, exist_ok=True)
        self._state = self._read()
        self._mark: IO[str] | None = None
        self.newly_quarantined: list[Quarantined] = []
        self._judge_the_interrupted()

    def quarantined(self) -> list[Quarantined]:
        """Versions that are not to be tried again."""
        return sorted(self._state.quarantined.values(), key=lambda each: each.at)

    def find(self, digest: str) -> Quarantined | None:
        """Why a bundle is not to be tried; None: it may be."""
        return self._state.quarantined.get(digest)

    def start_trial(self, candidate: ModelVersion, step: str) -> None:
        """Note, on disk, that a step begins which may bring the process down."""
        ref = candidate.ref
        trial = self._state.trials.get(ref.digest) or _Attempt(name=ref.name, version=ref.version, step=step, open=True)
        self._state.trials[ref.digest] = trial.model_copy(update={"step": step, "open": True})
        self._write()
        self._watch_for_crashes()

    def end_trial(self, candidate: ModelVersion, *, passed: bool, crashed: str = "") -> Quarantined | None:
        """Note that a trial is over and the process lives.

        Args:
            passed: the version was kept; what happened before is forgotten.
            crashed: how it brought down processes of its own; empty: it did not.
        Returns: that it is in quarantine from now on; None: it is not.
        """
        digest, fresh = candidate.ref.digest, None
        trial = self._state.trials.pop(digest, None)
        if trial is not None:
            trial = trial.model_copy(update={"open": False, "crashes": trial.crashes + bool(crashed)})
            if crashed and self._is_enough(trial):
                fresh = self._quarantine(digest, trial, CRASHED, crashed)
            elif not passed and (trial.crashes or trial.ends):
                self._state.trials[digest] = trial
            self._write()
        self._end_watch()
        return fresh

    def release(self, digest: str) -> None:
        """Let a version be tried again: somebody says so."""
        self._state.trials.pop(digest, None)
        if self._state.quarantined.pop(digest, None) is not None:
            self._write()

    def _judge_the_interrupted(self) -> None:
        mark = self._folder / _MARK
        try:
            crash = mark.read_text(errors="replace").strip().partition("\n")[0]
        except OSError:
            crash = ""
        interrupted = {digest: trial for digest, trial in self._state.trials.items() if trial.open}
        for digest, trial in interrupted.items():
            more = {"crashes": trial.crashes + 1} if crash else {"ends": trial.ends + 1}
            trial = trial.model_copy(update={"open": False, **more})
            self._state.trials[digest] = trial
            if not self._is_enough(trial):
                continue
            if crash:
                times = f", {trial.crashes} times" if trial.crashes > 1 else ""
                code, reason = CRASHED, f"the process crashed while it did {trial.step}{times}: {crash}"
            else:
                times = str(trial.ends + trial.crashes)
                code, reason = (
                    "interrupted",
                    f"the process ended {times} times with it on trial, at last in {trial.step}",
                )
            del self._state.trials[digest]
            self.newly_quarantined.append(self._quarantine(digest, trial, code, reason))
        if interrupted:
            self._write()
        mark.unlink(missing_ok=True)

    def _is_enough(self, trial: _Attempt) -> bool:
        return A_CRASH * trial.crashes + trial.ends >= A_CRASH * self._max_crashes

    def _quarantine(self, digest: str, trial: _Attempt, code: str, reason: str) -> Quarantined:
        self._state.quarantined[digest] = held = Quarantined(
            digest=digest, name=trial.name, version=trial.version, code=code, reason=reason, at=time.time()
        )
        return held

    def _watch_for_crashes(self) -> None:
        if self._mark is None:
            self._mark = (self._folder / _MARK).open("w")
            self._was_watched = faulthandler.is_enabled()
            faulthandler.enable(self._mark, all_threads=False)

    def _end_watch(self) -> None:
        if self._mark is None:
            return
        faulthandler.disable()
        if self._was_watched and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        self._mark.close()
        self._mark = None
        (self._folder / _MARK).unlink(missing_ok=True)

    def _read(self) -> _QuarantineState:
        try:
            return _QuarantineState.model_validate_json((self._folder / _FILE).read_bytes())
        except FileNotFoundError:
            return _QuarantineState()
        except (OSError, ValidationError):  # half a file cannot be: it was renamed into place; somebody wrote into it
            (self._folder / _FILE).rename(self._folder / f"{_FILE}.unreadable")
            return _QuarantineState()

    def _write(self) -> None:
        disk.replace(self._folder / _FILE, orjson.dumps(self._state.model_dump(), option=orjson.OPT_INDENT_2))
