"""Runs mutation tests and prints the surviving mutants.

    python tests/mutants/run.py                              all mutants of all modules; an hour
    python tests/mutants/run.py --only pipeline.intake.queue those of one module
    python tests/mutants/run.py --sample 4 --seed 1          four of each module, drawn with this seed

Each mutant runs in a process forked from one that has imported all libraries. An import hook replaces the module's
source, so no file is changed. Exit status 1: too few are killed (`--least`), or `equivalent.toml` lists a mutant that
no longer exists.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

import hypothesis
import pytest
from mutation import Mutant, mutants
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

_PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", "--hypothesis-profile=mutants"]
_PYTEST += ["--hypothesis-seed=1"]  # for the same outcome in every run
_PYTEST += ["--assert=plain"]  # assertion rewriting would import our modules without the hook below
_NOT_IMPORTED = 99
_PATIENCE_S = 10.0
"""Added to three times the usual duration of the tests; a mutant that takes longer counts as killed."""
_MAX_MEMORY = 4 << 30


@dataclass
class Score:
    """Number of a module's mutants, run and killed."""

    run: int = 0
    killed: int = 0

    @property
    def share(self) -> float:
        """Share that was killed."""
        return self.killed / self.run if self.run else 1.0


class _PropertiesLast:
    """Runs property tests last, because examples kill nearly all mutants in far less time."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("hypothesis") is not None)


class _MutantLoader(SourceFileLoader):
    """Loads a module from its mutated source."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _MutantFinder:
    """Finds the mutant in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path) if name == self._mutant.module else None
        if found is None or found.origin is None:
            return None
        return importlib.util.spec_from_loader(name, _MutantLoader(name, found.origin, self._mutant.source))


def _child(tests: list[str], output: Path, mutant: Mutant | None) -> None:
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY, _MAX_MEMORY))
    if mutant is not None:
        sys.meta_path.insert(0, _MutantFinder(mutant))
    status = int(pytest.main([*_PYTEST, *tests], plugins=[_PropertiesLast()]))
    sys.stdout.flush()
    if mutant is not None:
        if status == 0 and not isinstance(getattr(sys.modules.get(mutant.module), "__loader__", None), _MutantLoader):
            status = _NOT_IMPORTED
    else:
        files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
        output.with_suffix(".modules").write_text(
            "\n".join(n for n, file in files.items() if "/site-packages/" in file)
        )
    os._exit(status)


class Runner:
    """Forks one process per mutant.

    Args:
        folder: for the tests' output.
    """

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"

    def usual_s(self, module: str, tests: list[str]) -> float:
        """Run the tests on the original, and import the libraries that they use. Returns: their duration.

        Raises: SystemExit: they fail.
        """
        began = time.monotonic()
        if self._passes(tests, None, 600):
            seconds = time.monotonic() - began
            for name in self._output.with_suffix(".modules").read_text().split():
                with suppress(Exception):
                    importlib.import_module(name)
            gc.freeze()  # so that garbage collection in a child does not copy shared pages
            return seconds
        raise SystemExit(f"{module}: its tests fail without a mutation.\n\n{self._output.read_text()}")

    def survives(self, mutant: Mutant, tests: list[str], usual_s: float) -> bool:
        """Run the tests on a mutant. Returns: whether they all pass."""
        return self._passes(tests, mutant, 3 * usual_s + _PATIENCE_S)

    def _passes(self, tests: list[str], mutant: Mutant | None, limit_s: float) -> bool:
        process = multiprocessing.get_context("fork").Process(target=_child, args=(tests, self._output, mutant))
        process.start()
        process.join(limit_s)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == _NOT_IMPORTED:
            raise SystemExit(f"{', '.join(tests)}: no test imports the mutated module.")
        return process.exitcode == 0


def _source(module: str) -> str:
    return (ROOT / "runtime" / (module.replace(".", "/") + ".py")).read_text()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help="modules, as in modules.toml with or without `hedgerow.`, comma-separated")
    parser.add_argument("--sample", type=int, help="most mutants per module; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--least", type=float, default=0.9, help="share that must be killed, of each module or of the whole sample"
    )
    args = parser.parse_args()

    os.chdir(ROOT)
    tables = tomllib.loads((HERE / "modules.toml").read_text())
    if args.only:
        selected = [f"hedgerow.{name.removeprefix('hedgerow.')}" for name in args.only.split(",")]
        if unknown := [name for name in selected if name not in tables]:
            parser.error(f"not in modules.toml: {', '.join(unknown)}")
        tables = {name: tables[name] for name in selected}
    equivalent = {
        (each["module"], each["was"], each["now"])
        for each in tomllib.loads((HERE / "equivalent.toml").read_text()).get("mutant", [])
        if each["module"] in tables
    }
    hypothesis.settings.register_profile(
        "mutants",
        max_examples=50,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )

    scores: dict[str, Score] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), transient=True
        ) as progress,
    ):
        runner = Runner(Path(folder))
        whole = progress.add_task("modules", total=len(tables))
        for module, tests in tables.items():
            candidates = mutants(module, _source(module), None if args.sample is None else args.seed)
            distinct = (each for each in candidates if (each.module, each.was, each.now) not in equivalent)
            sample = list(itertools.islice(distinct, args.sample))
            part = progress.add_task(module, total=len(sample))
            score = scores[module] = Score()
            usual_s = runner.usual_s(module, tests)
            for mutant in sample:
                survives = runner.survives(mutant, tests, usual_s)
                score.run, score.killed = score.run + 1, score.killed + (not survives)
                if survives:
                    print(f"\n{module}, line {mutant.line}\n- {mutant.was}\n+ {mutant.now}\n", flush=True)
                progress.advance(part)
            progress.remove_task(part)
            progress.advance(whole)
            print(f"{module:34} {score.killed:4} of {score.run:4} killed, {score.share:4.0%}", flush=True)
    return _too_few(scores, args.least, sampled=args.sample is not None) or (args.sample is None and _stale(equivalent))


def _too_few(scores: dict[str, Score], least: float, *, sampled: bool) -> bool:
    """Print the share killed. Returns: whether it is below `least` for a module, or for the whole sample."""
    total = Score(sum(each.run for each in scores.values()), sum(each.killed for each in scores.values()))
    print(f"\n{total.share:.0%} of {total.run} mutants killed.")
    return any(each.share < least for each in ([total] if sampled else scores.values()))


def _stale(equivalent: set[tuple[str, str, str]]) -> bool:
    """Print the mutants in equivalent.toml that do not exist. Returns: whether there are any."""
    modules = {module for module, _, _ in equivalent}
    existing = {(each.module, each.was, each.now) for module in modules for each in mutants(module, _source(module))}
    for module, was, now in sorted(equivalent - existing):
        print(f"\nequivalent.toml lists a mutant of {module} that does not exist:\n- {was}\n+ {now}")
    return not equivalent <= existing


if __name__ == "__main__":
    sys.exit(main())
