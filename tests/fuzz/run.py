"""Fuzzes what strangers may send, guided by coverage.

    make fuzz                                ten minutes of processor time, spread over all targets
    make fuzz MINUTES=240 ONLY=reader,parse  four hours, for two of them
    make fuzz ARGS=--keep                    and minimise what was found into the kept corpus

A target passes if every input is read or refused with a documented error, within a second of processor time and 64 MiB.
An input that fails stays in `.fuzz/TARGET/failed`. When what it shows is mended, move it to `tests/fuzz/failed/TARGET`, under
a name that says what it was: from then on `make test` replays it.

What is found stays in `.fuzz`, where the next run goes on; remove it to begin again. Ctrl-C ends a run, with its summary.
Exit status: 1 if an input failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hedgerow.testing import processes

from .kept_inputs import keep, kept
from .targets import TARGETS

ROOT: Final = Path(__file__).parents[2]
_STATUS: Final = re.compile(rb"#(\d+)\s+\w+\s+cov: (\d+)")
_ENDED: Final = re.compile(rb"ended: (\d+), ([\d.]+)")
_HANG_S: Final = 120
"""When libFuzzer kills what does not even react to its limit of processor time: the machine may be busy."""
_MAX_MB: Final = 2048


@dataclass
class Total:
    """What is known of a target, over all runs: kept in `.fuzz/TARGET/total.json`."""

    executions: int = 0
    cpu_s: float = 0.0
    edges: int = 0
    newest_at_s: float = 0.0
    """Processor time when the newest edge was found."""
    failed: int = 0


class Fuzzed:
    """One target, its folder and its totals."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.corpus, self.failed = folder / name / "corpus", folder / name / "failed"
        self._file = folder / name / "total.json"
        self.total = Total(**json.loads(self._file.read_bytes())) if self._file.exists() else Total()
        for each in (self.corpus, self.failed):
            each.mkdir(parents=True, exist_ok=True)

    def run(self, cpu_s: float, seed: int | None, progress: Progress, task: Any) -> str:
        """Fuzz for some processor time. Returns: why an input failed; empty: none did."""
        for number, content in enumerate([*TARGETS[self.name].seeds(), *(content for _, content in kept(self.name))]):
            (self.corpus / f"seed-{number:04}").write_bytes(content)
        options = [f"-timeout={_HANG_S}", f"-rss_limit_mb={_MAX_MB}"]
        if seed is not None:
            options.append(f"-seed={seed}")
        if words := sorted(_words(TARGETS[self.name].seeds())):  # libFuzzer refuses an empty dictionary
            dictionary = self.corpus.parent / "words"
            dictionary.write_text("".join(f'"{word.decode()}"\n' for word in words))
            options.append(f"-dict={dictionary}")
        options += [f"-artifact_prefix={self.failed}/", str(self.corpus)]
        before, tail, interrupted = self.total.cpu_s, deque[bytes](maxlen=60), False

        def note(line: bytes) -> None:
            tail.append(line)
            if found := _STATUS.match(line):
                done_s = _cpu_s(child.pid, began_s) - began_s
                progress.update(task, completed=before + done_s)
                if int(found[2]) > self.total.edges:
                    self.total.edges, self.total.newest_at_s = int(found[2]), before + done_s
            elif found := _ENDED.match(line):
                self.total.executions += int(found[1])
                self.total.cpu_s = before + float(found[2])

        with _child(self.name, cpu_s, options) as (child, began_s):
            try:
                for line in child.stdout:
                    note(line)
            except KeyboardInterrupt:
                interrupted = True
                child.terminate()
                for line in child.stdout:
                    note(line)
            failed = child.wait() != 0
        self.total.newest_at_s = min(self.total.newest_at_s, self.total.cpu_s)
        self.total.failed += failed
        self._file.write_text(json.dumps(asdict(self.total)))
        if interrupted:
            raise KeyboardInterrupt
        text = b"".join(tail).decode(errors="replace")
        return text[max(0, text.find("=== Uncaught")) :] if failed else ""

    def keep(self) -> int:
        """Minimise the corpus, and keep it in the repository. Returns: the number of inputs that are kept."""
        with tempfile.TemporaryDirectory() as new:
            with _child(self.name, 1e9, ["-merge=1", new, str(self.corpus)]) as (child, _):
                tail = child.stdout.read()
                if child.wait() != 0:
                    raise SystemExit(f"{self.name}: minimising failed.\n{tail.decode(errors='replace')[-2000:]}")
            known = {content for name, content in kept(self.name)} & set(TARGETS[self.name].seeds())
            return keep(
                self.name, (path.read_bytes() for path in Path(new).iterdir() if path.read_bytes() not in known)
            )


def _words(inputs: Iterable[bytes]) -> set[bytes]:
    """Return the words of valid inputs, such as keys of JSON, for libFuzzer to insert elsewhere."""
    return {word for content in inputs for word in re.findall(rb"[A-Za-z_][\w./-]{2,30}", content)}


@contextmanager
def _child(name: str, cpu_s: float, options: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Start a fuzzing process with files in memory, if possible. It gets no Ctrl-C, and is asked to stop when this is left."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hedgerow-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        program = Path(folder) / "again"
        command = [sys.executable, "-P", "-m", "fuzz.child", name, str(cpu_s)]
        program.write_text("#!/bin/sh\nexec " + " ".join(f"'{part}'" for part in command) + ' "$@"\n')
        program.chmod(0o700)
        environment = {"PYTHONPATH": str(ROOT / "tests"), "SELF": str(program), "TMPDIR": folder}
        child = processes.start(
            ["nice", program, *options],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield child, _cpu_s(child.pid, 0.0)
        finally:
            processes.end(child, timeout_s=_HANG_S)
            child.stdout.close()


def _cpu_s(process_id: int, otherwise: float) -> float:
    try:
        times = psutil.Process(process_id).cpu_times()
    except psutil.Error:
        return otherwise
    return times.user + times.system


def summary(fuzzed: list[Fuzzed]) -> str:
    """Return a Markdown table of what is known."""
    lines = [
        "| target | executions | CPU minutes | edges | last new edge after CPU minutes | failed inputs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for each in fuzzed:
        total = each.total
        lines.append(
            f"| {each.name} | {total.executions:,} | {total.cpu_s / 60:.1f} | {total.edges} "
            f"| {total.newest_at_s / 60:.1f} | {total.failed} |"
        )
    executions, minutes = sum(each.total.executions for each in fuzzed), sum(each.total.cpu_s for each in fuzzed) / 60
    lines.append(f"| all | {executions:,} | {minutes:.1f} | {sum(each.total.edges for each in fuzzed)} | | |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "make fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="processor time of all targets together; default 10")
    parser.add_argument("--only", help=f"targets, comma-separated: {', '.join(TARGETS)}")
    parser.add_argument(
        "--keep", action="store_true", help="then minimise the corpora, and keep them in tests/fuzz/corpus"
    )
    parser.add_argument("--seed", type=int, help="try the same inputs in each run; by default others each time")
    parser.add_argument("--folder", type=Path, default=ROOT / ".fuzz", help="what is found; default .fuzz")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")

    if importlib.util.find_spec("atheris") is None:
        print(
            "error: atheris is not installed; it has wheels for Linux on x86-64 only\n  → Run this there.",
            file=sys.stderr,
        )
        return 2

    fuzzed = [Fuzzed(name, args.folder.resolve()) for name in names]
    console, failed, interrupted = Console(highlight=False, soft_wrap=True), False, False
    columns = (
        TextColumn("{task.description:16}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
    )
    try:
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            for each in fuzzed:
                cpu_s, before = args.minutes * 60 / len(fuzzed), each.total
                task = progress.add_task(each.name, total=before.cpu_s + cpu_s)
                executed, edges = before.executions, before.edges
                why = each.run(cpu_s, args.seed, progress, task)
                progress.remove_task(task)
                total = each.total
                progress.print(
                    f"{each.name:16} {total.executions - executed:12,} executions, {total.edges:5} edges, {total.edges - edges:4} new"
                )
                if why:
                    failed = True
                    progress.print(why, markup=False)
                    progress.print(
                        f"{each.name}: an input failed, see {each.failed}; `make fuzz ARGS=--help` says what to do."
                    )
                elif args.keep:
                    progress.print(f"{each.name:16} {each.keep():12,} inputs kept")
    except KeyboardInterrupt:
        interrupted = True
    text = summary(fuzzed)
    (args.folder / "summary.md").write_text(text)
    console.print(f"\n{text}", markup=False)
    return 128 + signal.SIGINT if interrupted else int(failed)


if __name__ == "__main__":
    sys.exit(main())
