"""Quarantine of versions that crash the node, with a log of trials on disk, so that the node does not try them for ever.

Each step that runs a version's code (load, golden, switch) is recorded and synced before it starts. The record is cleared
when the version is kept or rolled back. A record found at start means that the process ended in that step:

- by a crash of native code, if `faulthandler` left a crash report while the process died;
- or by a power cut, a kill or the OOM killer, perhaps through no fault of the version: three of these count as a crash.

Crashes of workers count too; the node survives these.

A version that reaches `max_crashes` is quarantined. An orderly rollback does not count.
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

INTERRUPTIONS_PER_CRASH: Final = 3
"""Interruptions without a crash report that count as one crash."""
_FILE: Final = "trials.json"
_CRASH_REPORT: Final = "crash.txt"


class _Trial(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    step: str
    open: bool
    crashes: int = 0
    ends: int = 0


class _QuarantineState(BaseModel):
    trials: dict[str, _Trial] = {}
    quarantined: dict[str, Quarantined] = {}


class QuarantineLog:
    """The trials and the quarantine of a node.

    Args:
        folder: folder of the log; created if it does not exist.
        max_crashes: crashes after which a version is quarantined.
    Attributes:
        newly_quarantined: versions quarantined at this start, because of how the previous process ended.
    """

    def __init__(self, folder: Path, max_crashes: int = 1) -> None:
        self._folder = folder
        self._max_crashes = max_crashes
        folder.mkdir(parents=True, exist_ok=True)
        self._state = self._read()
        self._crash_report: IO[str] | None = None
        self.newly_quarantined: list[Quarantined] = []
        self._evaluate_interrupted_trials()

    def quarantined(self) -> list[Quarantined]:
        """Return the quarantined versions, oldest first."""
        return sorted(self._state.quarantined.values(), key=lambda each: each.at)

    def find(self, digest: str) -> Quarantined | None:
        """Return a bundle's quarantine entry; None: it is not quarantined."""
        return self._state.quarantined.get(digest)

    def start_trial(self, version: ModelVersion, step: str) -> None:
        """Record on disk that a step starts which may crash the process."""
        ref = version.ref
        trial = self._state.trials.get(ref.digest) or _Trial(name=ref.name, version=ref.version, step=step, open=True)
        self._state.trials[ref.digest] = trial.model_copy(update={"step": step, "open": True})
        self._write()
        self._start_crash_reports()

    def end_trial(self, version: ModelVersion, *, passed: bool, crashed: str = "") -> Quarantined | None:
        """Record that a trial has ended and the process survived.

        Args:
            passed: the version was kept; its earlier crashes are forgotten.
            crashed: how its workers crashed; empty: they did not.
        Returns: the quarantine entry, if the version is now quarantined; else None.
        """
        digest, entry = version.ref.digest, None
        trial = self._state.trials.pop(digest, None)
        if trial is not None:
            trial = trial.model_copy(update={"open": False, "crashes": trial.crashes + bool(crashed)})
            if crashed and self._reaches_limit(trial):
                entry = self._quarantine(digest, trial, CRASHED, crashed)
            elif not passed and (trial.crashes or trial.ends):
                self._state.trials[digest] = trial
            self._write()
        self._stop_crash_reports()
        return entry

    def release(self, digest: str) -> None:
        """Release a version from quarantine, at an operator's request."""
        self._state.trials.pop(digest, None)
        if self._state.quarantined.pop(digest, None) is not None:
            self._write()

    def _evaluate_interrupted_trials(self) -> None:
        report = self._folder / _CRASH_REPORT
        try:
            crash = report.read_text(errors="replace").strip().partition("\n")[0]
        except OSError:
            crash = ""
        interrupted = {digest: trial for digest, trial in self._state.trials.items() if trial.open}
        for digest, trial in interrupted.items():
            more = {"crashes": trial.crashes + 1} if crash else {"ends": trial.ends + 1}
            trial = trial.model_copy(update={"open": False, **more})
            self._state.trials[digest] = trial
            if not self._reaches_limit(trial):
                continue
            if crash:
                times = f", {trial.crashes} times" if trial.crashes > 1 else ""
                code, reason = CRASHED, f"the process crashed in step `{trial.step}`{times}: {crash}"
            else:
                times = str(trial.ends + trial.crashes)
                code, reason = (
                    "interrupted",
                    f"the process ended {times} times during the swap to it, the last time in step `{trial.step}`",
                )
            del self._state.trials[digest]
            self.newly_quarantined.append(self._quarantine(digest, trial, code, reason))
        if interrupted:
            self._write()
        report.unlink(missing_ok=True)

    def _reaches_limit(self, trial: _Trial) -> bool:
        return INTERRUPTIONS_PER_CRASH * trial.crashes + trial.ends >= INTERRUPTIONS_PER_CRASH * self._max_crashes

    def _quarantine(self, digest: str, trial: _Trial, code: str, reason: str) -> Quarantined:
        self._state.quarantined[digest] = entry = Quarantined(
            digest=digest, name=trial.name, version=trial.version, code=code, reason=reason, at=time.time()
        )
        return entry

    def _start_crash_reports(self) -> None:
        if self._crash_report is None:
            self._crash_report = (self._folder / _CRASH_REPORT).open("w")
            self._faulthandler_was_enabled = faulthandler.is_enabled()
            faulthandler.enable(self._crash_report, all_threads=False)

    def _stop_crash_reports(self) -> None:
        if self._crash_report is None:
            return
        faulthandler.disable()
        if self._faulthandler_was_enabled and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        self._crash_report.close()
        self._crash_report = None
        (self._folder / _CRASH_REPORT).unlink(missing_ok=True)

    def _read(self) -> _QuarantineState:
        try:
            return _QuarantineState.model_validate_json((self._folder / _FILE).read_bytes())
        except FileNotFoundError:
            return _QuarantineState()
        except (OSError, ValidationError):  # writes are atomic, so something else has changed the file
            (self._folder / _FILE).rename(self._folder / f"{_FILE}.unreadable")
            return _QuarantineState()

    def _write(self) -> None:
        disk.replace(self._folder / _FILE, orjson.dumps(self._state.model_dump(), option=orjson.OPT_INDENT_2))
