"""A bundle, from a model's file and what its author says and gives.

Rules:
- The same file, recipe, samples and tools make the same bundle, to the byte. So there is no clock in it, and what is
  measured (memory) is rounded, and measured once for a file on a machine.
- What a manifest claims has been tried: that a backend runs a variant, what lower precision costs, what memory it takes.
- A bundle appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from hedgerow import __version__
from hedgerow.backends import memory
from hedgerow.backends.base import TensorSpec
from hedgerow.config import ModelConfig
from hedgerow.errors import ConfigError, ModelError, ModelMismatch
from hedgerow.frame import Array
from hedgerow.models import forms, gguf, sampling
from hedgerow.models.accuracy import Cost, Spread
from hedgerow.models.arrays import write_arrays
from hedgerow.models.bundle import Bundle
from hedgerow.models.chunks import describe_file
from hedgerow.models.fit import Fit
from hedgerow.models.forms import Form
from hedgerow.models.golden import check_golden
from hedgerow.models.licences import check_spdx
from hedgerow.models.load import batch_axes, signature
from hedgerow.models.manifest import (
    MANIFEST,
    Baseline,
    File,
    GoldenCase,
    Manifest,
    Needs,
    Origin,
    Provenance,
    Tensor,
    Tolerance,
    Variant,
    digest_of,
)
from hedgerow.models.metadata import read_metadata
from hedgerow.models.recipe import Recipe, read_labels
from hedgerow.models.sampling import Sample
from hedgerow.models.source import digest, resolve
from hedgerow.models.statistics import Accumulator
from hedgerow.models.trial import Trial, close_all

Progress = Callable[[str, float], None]
"""Told what is being done, and what part of that is done, 0..1."""

Requests = Callable[[Path, ModelConfig, int], Sequence[Mapping[str, Array]]]
"""Makes what stages ask of a model: of its file, its configuration, and at most so many."""

_GOLDEN_BYTES: Final = 8 << 20
"""Bytes of golden inputs, before they are packed; at least one case is kept."""


class BundleExists(ModelError):
    """There is another bundle of this name and version."""

    code = "bundle-exists"


class TooLossy(ModelError):
    """A variant computes something else than the model it was made from."""

    code = "too-lossy"


@dataclass(slots=True)
class Built:
    """A bundle that was built.

    Attributes:
        bundle: the bundle.
        samples: how many samples there were; 0: golden inputs are noise.
        made: how each variant came about.
        refused: why a backend that might have run a variant does not count, by variant and backend.
        unchanged: whether the very same was there already.
    """

    bundle: Bundle
    samples: int
    made: dict[str, str] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    unchanged: bool = False


def build(
    recipe: Recipe,
    out: Path | None = None,
    *,
    requests: Requests | None = None,
    state_dir: Path = Path(".hedgerow"),
    replace: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Build a bundle.

    Args:
        out: the folder to make; by default `bundles/NAME-VERSION`.
        requests: makes samples by a pipeline's stages; None: they are files of arrays.
        state_dir: where what was measured is kept.
        replace: whether another bundle may be replaced.
    Raises:
        ConfigError: the recipe cannot be followed.
        BundleExists: there is another one of that version, and it may not be replaced.
        TooLossy: a variant costs more than it may.
        ModelError: the model cannot be read, or a variant cannot be made or run.
    """
    work = _Work(recipe, requests, state_dir, progress or _unseen)
    folder = out or Path("bundles", f"{work.name}-{work.version}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        draft.chmod(0o755)
        manifest = work.into(draft)
        (draft / MANIFEST).write_bytes(manifest.encode())
        bundle = Bundle.open(draft)
        bundle.verify()
        built = Built(Bundle(folder, manifest, bundle.digest), work.real, work.made, work.refused)
        if folder.exists():
            built.unchanged = _settle(folder, bundle.digest, replace=replace)
        if not built.unchanged:
            draft.rename(folder)
        return built
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _settle(folder: Path, new: str, *, replace: bool) -> bool:
    """What becomes of a folder that is there already. Returns: whether it holds the very same bundle."""
    old = None
    with suppress(ModelError):
        there = Bundle.open(folder)
        there.verify()
        old = there.digest
    if old == new:
        return True
    if not replace:
        raise BundleExists(
            f"{folder} is there already, and is not what would be built now",
            remedy="Raise the version; or, if nobody has it yet, `--replace`.",
        )
    shutil.rmtree(folder)
    return False


class _Work:
    """What is known while a bundle is built."""

    def __init__(self, recipe: Recipe, requests: Requests | None, state_dir: Path, progress: Progress) -> None:
        if recipe.model is None:
            raise ConfigError("There is no model to build", remedy="Give its file: `hedgerow model build MODEL.onnx`.")
        self.recipe, self._requests, self._state_dir, self._progress = recipe, requests, state_dir, progress
        self.source = resolve(recipe.model, Path())
        self.given = forms.form_of(self.source.path)
        self.wanted = forms.check(self.given, recipe.variants)
        self.config = _serving(recipe, self.source.path)
        self.metadata: Mapping[str, str] = {}
        self.trial: Trial | None = None
        if self.given.format != "gguf":
            self._progress("Loading", 0)
            self.trial = Trial(self.source.path, self.config)
            self.metadata = next(iter(self.trial.sessions.values())).metadata
        self.said = self._said()
        self.name = str(self.said["name"])
        self.version = self.said.get("version") or _no_version(recipe)
        self.real = 0
        self.made: dict[str, str] = {}
        self.refused: dict[str, dict[str, str]] = {}

    def into(self, draft: Path) -> Manifest:
        """Make all files, and the manifest that lists them."""
        if self.trial is None:
            return self._manifest([self._passed_through(draft)])
        fit = signature(self.source, self.config)
        samples = self._samples(fit)
        made = self._forms(draft, samples)
        trials = {form.name: Trial(form.files[0], self.config) for form in made}
        try:
            return self._tried(draft, fit, samples, made, trials)
        finally:
            close_all([*trials.values(), self.trial])

    def _said(self) -> dict[str, Any]:
        """What the manifest says that is not measured: the recipe goes over the file's own metadata."""
        recipe = self.recipe
        said = {"name": self.source.path.stem, **read_metadata(self.metadata)}
        if self.trial is None:
            said |= _of_gguf(gguf.read_header(self.source.path).metadata)
        own = recipe.model_dump(
            include={"name", "version", "description", "licence", "author", "training_data", "labels"}
        )
        said |= {key: value for key, value in own.items() if value}
        if recipe.labels_file is not None:
            said["labels"] = read_labels(recipe.labels_file)
        said["parameters"] = {**said.get("parameters", {}), **recipe.parameters}
        check_spdx(said.get("licence", ""))
        return said

    def _samples(self, fit: Fit) -> list[Sample]:
        recipe = self.recipe
        if self._requests is not None:
            self._progress("Running the stages", 0)
            found = sampling.from_requests(self._requests(self.source.path, self.config, recipe.max_samples), fit)
        else:
            found = sampling.from_files(recipe.samples, fit, recipe.max_samples) if recipe.samples else []
        self.real = len(found)
        if not found and (recipe.samples or self._requests is not None):
            raise ConfigError(
                "The samples hold nothing that reaches the model",
                remedy="Give more of them, or such as the stages before the model let pass; or none, for golden inputs of noise.",
            )
        return found or sampling.noise(fit, recipe.shapes, max(1, recipe.golden))

    def _forms(self, draft: Path, samples: Sequence[Sample]) -> list[Form]:
        made = []
        for number, name in enumerate(self.wanted):
            self._progress(f"Making {name}", number / len(self.wanted))
            form = forms.make(self.given, name, draft / "variants" / name, samples if self.real else ())
            self.made[name] = form.made_by or "as it was given"
            made.append(form)
        return made

    def _tried(
        self, draft: Path, fit: Fit, samples: Sequence[Sample], made: Sequence[Form], trials: Mapping[str, Trial]
    ) -> Manifest:
        assert self.trial is not None  # noqa: S101 - only what was loaded is tried
        state = {*self.config.state, *self.config.state.values()}
        inputs = {spec.name: Accumulator() for spec in fit.inputs if spec.name not in state}
        outputs: dict[str, Accumulator] = {}
        spreads = {form.name: Spread(form.precision) for form in made}
        costs = {form.name: Cost(len(self.said.get("labels", ()))) for form in made}
        chosen = _spread_evenly(samples, self.recipe.golden)
        golden: dict[int, dict[str, dict[str, Array]]] = {}
        for number, sample in enumerate(samples):
            self._progress("Trying the variants", number / len(samples))
            right, _ = self.trial.run(sample)
            own = {name: array for name, array in right.items() if name not in state}
            for name, accumulator in inputs.items():
                accumulator.add(sample[name])
            for name, array in own.items():
                outputs.setdefault(name, Accumulator()).add(array)
            for form in made:
                got, others = trials[form.name].run(sample)
                spreads[form.name].between(got, others)
                spreads[form.name].within(right, got)
                costs[form.name].add(own, got)
                if number in chosen:
                    golden.setdefault(number, {})[form.name] = got
        tolerances = {name: self.recipe.tolerance or spread.tolerance() for name, spread in spreads.items()}
        resolution = max(tolerance.absolute for tolerance in tolerances.values())
        baseline = Baseline(
            samples=self.real,
            inputs={name: each.distribution() for name, each in inputs.items()},
            outputs={name: each.distribution(resolution) for name, each in outputs.items()},
        )
        self._check(costs, baseline)
        cases = [self._case(draft, number, samples[at], golden[at]) for number, at in enumerate(sorted(golden))]
        variants = [
            self._variant(
                draft, form, trials[form.name], tolerances[form.name], costs[form.name].report(baseline.outputs)
            )
            for form in made
        ]
        manifest = self._manifest(variants, cases, baseline if self.real else None)
        manifest = self._agreed(draft, manifest, trials)
        return self._measured(draft, manifest, samples[0], trials)

    def _check(self, costs: Mapping[str, Cost], baseline: Baseline) -> None:
        for name, cost in costs.items():
            loss = cost.report(baseline.outputs)["rms"]
            if not loss <= self.recipe.max_loss:
                raise TooLossy(
                    f"{name} ({self.made[name]}) is off by {loss:.1%} of what the outputs vary by"
                    + ("" if self.real else ", on noise"),
                    remedy=f"Leave it out; give more `--samples` of what it meets in use (there are {self.real}); or allow it "
                    f"with `max_loss: {loss * 1.1:.2g}`.",
                )

    def _case(self, draft: Path, number: int, sample: Sample, outputs: Mapping[str, Mapping[str, Array]]) -> GoldenCase:
        write_arrays(draft / f"golden/{number}.inputs.npz", sample)
        for name, arrays in outputs.items():
            write_arrays(draft / f"golden/{name}/{number}.outputs.npz", arrays)
        return GoldenCase(
            inputs=_file(draft, f"golden/{number}.inputs.npz"),
            outputs={name: _file(draft, f"golden/{name}/{number}.outputs.npz") for name in outputs},
        )

    def _variant(
        self, draft: Path, form: Form, trial: Trial, tolerance: Tolerance, accuracy: dict[str, float]
    ) -> Variant:
        return Variant(
            name=form.name,
            format=form.format,
            precision=form.precision,
            files=tuple(_file(draft, file.relative_to(draft).as_posix()) for file in form.files),
            model_digest=digest(form.files[0]),
            needs=Needs(backends=tuple(trial.sessions), devices=self.recipe.devices or ("CPU",)),
            tolerance=tolerance,
            accuracy=accuracy if form.made_by else {},
        )

    def _agreed(self, draft: Path, manifest: Manifest, trials: Mapping[str, Trial]) -> Manifest:
        """The manifest with those backends only that give the golden outputs."""
        variants = []
        for variant in manifest.variants:
            trial = trials[variant.name]
            for name, session in list(trial.sessions.items()):
                outcome = check_golden(session.run, draft, manifest, variant)
                if not outcome.passed:
                    trial.leave_out(name, f"not the golden outputs: {outcome.detail}")
            needs = variant.needs.model_copy(update={"backends": tuple(trial.sessions)})
            variants.append(variant.model_copy(update={"needs": needs}))
            if trial.refused:
                self.refused[variant.name] = dict(trial.refused)
        return manifest.model_copy(update={"variants": tuple(variants)})

    def _measured(self, draft: Path, manifest: Manifest, sample: Sample, trials: Mapping[str, Trial]) -> Manifest:
        """The manifest with the memory that each variant takes, on the backend that takes most."""
        variants = []
        for number, variant in enumerate(manifest.variants):
            self._progress(f"Measuring {variant.name}", number / len(manifest.variants))
            path = trials[variant.name].path
            most = max(self._memory(path, backend, sample) for backend in variant.needs.backends)
            needs = variant.needs.model_copy(update={"memory_bytes": most})
            variants.append(variant.model_copy(update={"needs": needs}))
        return manifest.model_copy(update={"variants": tuple(variants)})

    def _memory(self, path: Path, backend: str, sample: Sample) -> int:
        settings = {
            "batch_axes": batch_axes(self.config),
            "open_batch": self.config.open_batch,
            "vendor": self.config.options,
        }
        shapes = {name: [str(array.dtype), *array.shape] for name, array in sample.items()}
        about = json.dumps([digest(path), backend, _version(backend), settings, shapes], sort_keys=True)
        kept = self._state_dir / "measured" / f"{digest_of(about.encode()).partition(':')[2][:32]}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(kept.read_bytes())["memory_bytes"])
        with tempfile.TemporaryDirectory() as folder:
            inputs = Path(folder, "inputs.npz")
            write_arrays(inputs, sample)
            size = memory.measure(path, backend, "CPU", settings, inputs)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"memory_bytes": size, "model": path.name, "backend": backend}) + "\n")
        return size

    def _passed_through(self, draft: Path) -> Variant:
        """A language model: what runs it is not asked here, so nothing of it is measured."""
        form = forms.make(self.given, self.given.name, draft / "variants" / self.given.name, ())
        self.made[form.name] = "as it was given"
        size = form.files[0].stat().st_size
        return Variant(
            name=form.name,
            format=form.format,
            precision=form.precision,
            files=(_file(draft, form.files[0].relative_to(draft).as_posix(), self._progress),),
            model_digest=digest(form.files[0]),
            needs=Needs(
                backends=("openvino-genai",),
                devices=self.recipe.devices or ("CPU",),
                memory_bytes=memory.rounded(size),
            ),
        )

    def _manifest(
        self, variants: Sequence[Variant], cases: Sequence[GoldenCase] = (), baseline: Baseline | None = None
    ) -> Manifest:
        said, recipe = self.said, self.recipe
        session = next(iter(self.trial.sessions.values())) if self.trial is not None else None
        try:
            return Manifest(
                name=self.name,
                version=self.version,
                description=said.get("description", ""),
                licence=said.get("licence", ""),
                inputs=_tensors(session.inputs) if session else (),
                outputs=_tensors(session.outputs) if session else (),
                labels=tuple(said.get("labels", ())),
                parameters=said["parameters"],
                serving=recipe.serving,
                variants=tuple(variants),
                golden=tuple(cases),
                baseline=baseline,
                provenance=Provenance(
                    author=said.get("author", ""),
                    training_data=said.get("training_data", ""),
                    metrics=recipe.metrics,
                    made_from=tuple(Origin(file=f.name, digest=digest_of(f.read_bytes())) for f in self.given.files),
                    made_by=_tools(),
                    made_at=recipe.made_at or _time(self.source.path),
                ),
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ConfigError(
                f"The manifest would not be valid: {where}: {first['msg']}",
                remedy="Mend it in the recipe or with a flag; what the model's own metadata says can be overridden there.",
            ) from error


def _serving(recipe: Recipe, path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate({**recipe.serving, "path": str(path)})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"serving.{'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy="Write what a node's file may say of a model, but for `path`.",
        ) from error


def _no_version(recipe: Recipe) -> str:
    raise ConfigError(
        f"{recipe.model} has no version",
        remedy="Give one: `--version 1.0.0`, `version:` in model.yaml, or `hedgerow.version` in the model's metadata.",
    )


def _of_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"parameters": {}}
    for key, value in metadata.items():
        section, _, name = key.partition(".")
        if section == "general" and name == "author":
            said["author"] = str(value)
        elif section == "general" and name == "description":
            said["description"] = str(value)
        elif key == "general.architecture" or name in ("context_length", "embedding_length", "block_count"):
            said["parameters"][name] = value
    return said


def _tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name=spec.name, dtype=str(spec.dtype), shape=spec.shape) for spec in specs)


def _file(draft: Path, inside: str, progress: Progress | None = None) -> File:
    path = draft / inside
    size, done = max(1, path.stat().st_size), 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        if progress is not None:
            progress("Reading", done / size)

    return describe_file(path, inside, count)


def _spread_evenly(samples: Sequence[Sample], count: int) -> set[int]:
    """Which samples become golden cases: the first, the last, and some between."""
    size = max(1, sum(array.nbytes for array in samples[0].values()))
    count = min(count, len(samples), max(1, _GOLDEN_BYTES // size))
    return set(np.linspace(0, len(samples) - 1, count).round().astype(int).tolist()) if count else set()


def _time(path: Path) -> str:
    """When it was made, as far as that is the same each time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        at = int(epoch) if epoch else int(path.stat().st_mtime)
    except ValueError as error:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, which is no number of seconds", remedy="Set it right, or not at all."
        ) from error
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tools() -> str:
    return ", ".join(
        [
            f"hedgerow {__version__}",
            *(f"{name} {found}" for name in ("onnxruntime", "openvino") if (found := _version(name))),
        ]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _unseen(what: str, done: float) -> None:
    pass


__all__ = ["Built", "BundleExists", "ModelMismatch", "Progress", "Requests", "TooLossy", "build"]
