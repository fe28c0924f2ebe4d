"""Fuzzes one target with atheris: `SELF=PROGRAM python -m fuzz.child TARGET CPU_S [libFuzzer's options] FOLDERS`.

Started by `run.py`, which reads libFuzzer's output and the last line: `ended: EXECUTIONS, CPU_S`. An input that fails is
written to the folder of `-artifact_prefix`. PROGRAM starts this again, for libFuzzer's own child processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

import atheris

with atheris.instrument_imports(include=["hedgerow", "ruamel"]):
    from .limits import arm, attempt
    from .targets import TARGETS

_EVERY: int = 32
"""Inputs between two looks at the clock."""


class _Run:
    """Counts inputs, and ends the process when its time is over or it is asked to."""

    def __init__(self, name: str, cpu_s: float) -> None:
        self._target = TARGETS[name]
        self._end = time.process_time() + cpu_s
        self._began = time.process_time()
        self._executions = 0
        self._stopped = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True

    def __call__(self, data: bytes) -> None:
        if self._stopped or (self._executions % _EVERY == 0 and time.process_time() > self._end):
            self.report()
            os._exit(0)  # libFuzzer offers no other way out
        self._executions += 1
        try:
            attempt(self._target, data)
        except BaseException:
            self.report()
            raise

    def report(self) -> None:
        print(f"ended: {self._executions}, {time.process_time() - self._began:.1f}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line."""
    name, cpu_s, *options = sys.argv[1:]
    for seed in TARGETS[name].seeds():  # what is imported late and cached must not count as the growth of an input
        try:
            TARGETS[name].run(seed)
        except TARGETS[name].errors:
            continue
    run = _Run(name, float(cpu_s))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, run.stop)
    atheris.Setup(
        [os.environ["SELF"], f"-max_len={TARGETS[name].longest}", "-handle_int=0", "-handle_term=0", *options],
        run,
        internal_libfuzzer=True,
    )
    with arm():
        atheris.Fuzz()


if __name__ == "__main__":
    main()
