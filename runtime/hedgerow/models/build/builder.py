"""A bundle, from a model's file and what its author says and gives.

Rules:
- The same file, recipe, samples and tools make the same bundle, to the byte. So there is no clock in it, and what is
  measured (memory) is rounded, and measured once for a file on a machine.
- What a manifest claims has been tried: that a backend runs a variant, what lower precision costs, what memory it takes.
- A bundle appears whole or not at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from hedgerow.backends import memory
from hedgerow.backends.base import TensorSpec
from hedgerow.config import ModelConfig
from hedgerow.errors import ConfigError, ModelError, first_problem
from hedgerow.frame import Array
from hedgerow.models.build import formats, gguf
from hedgerow.models.build import samples as sampling
from hedgerow.models.build.evidence import Evidence, Progress, gather, write_golden
from hedgerow.models.build.formats import Form
from hedgerow.models.build.memory_footprint import footprint
from hedgerow.models.build.provenance import provenance, statement
from hedgerow.models.build.recipe import Recipe
from hedgerow.models.build.samples import Sample
from hedgerow.models.build.smoke_test import SmokeTest, close_all
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.golden import check_golden
from hedgerow.models.bundle.manifest import MANIFEST, Baseline, File, GoldenCase, Manifest, Needs, Tensor, Variant
from hedgerow.models.bundle.model_file import digest, resolve
from hedgerow.models.session.signature import Signature

Requests = Callable[[Path, ModelConfig, int], Sequence[Mapping[str, Array]]]
"""Makes what stages ask of a model: of its file, its configuration, and at most so many."""


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
        ConfigError: the recipe cannot be followed, or the folder not be written.
        BundleExists: there is another one of that version, and it may not be replaced.
        TooLossy: a variant costs more than it may.
        ModelError: the model cannot be read, or a variant cannot be made or run.
    """
    work = _Work(recipe, requests, state_dir, progress or _unseen)
    folder = out or Path("bundles", f"{work.name}-{work.version}")
    _check_place(folder)
    try:
        return _written(work, folder, replace=replace)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            remedy="Give another folder with --out, or make room; what is measured goes to --state-dir.",
        ) from error


def _written(work: _Work, folder: Path, *, replace: bool) -> Built:
    """Make a bundle beside its place, look at it, and put it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as aside:
        draft = Path(aside, "new")
        draft.mkdir()
        manifest = work.into(draft)
        (draft / MANIFEST).write_bytes(manifest.encode())
        bundle = Bundle.open(draft)
        bundle.verify()
        built = Built(Bundle(folder, manifest, bundle.digest), work.real, work.made, work.refused)
        if folder.exists():
            built.unchanged = _is(folder, bundle.digest)
            if built.unchanged:
                return built
            if not replace:
                raise BundleExists(
                    f"{folder} is there already, and is not what would be built now",
                    remedy="Raise the version; or, if nobody has it yet, `--replace`.",
                )
            folder.rename(Path(aside, "old"))
        draft.rename(folder)
        return built


def _is(folder: Path, digest: str) -> bool:
    """Whether a folder holds that very bundle, whole."""
    with suppress(ModelError):
        there = Bundle.open(folder)
        there.verify()
        return there.digest == digest
    return False


def _check_place(folder: Path) -> None:
    """What is no bundle is not written over, and that is said before there is work in one."""
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleExists(
            f"{folder} is there already, and is no bundle",
            remedy="Choose another folder with --out; what is no bundle is never replaced.",
        )


class _Work:
    """What is known while a bundle is built."""

    def __init__(self, recipe: Recipe, requests: Requests | None, state_dir: Path, progress: Progress) -> None:
        if recipe.model is None:
            raise ConfigError("There is no model to build", remedy="Give its file: `hedgerow model build MODEL.onnx`.")
        self.recipe, self._requests, self._state_dir, self._progress = recipe, requests, state_dir, progress
        self.source = resolve(recipe.model, Path())
        path = self.source.path
        self.given = formats.form_of(path)
        self.wanted = formats.check(self.given, recipe.variants)
        self.config = _serving(recipe, path)
        self.trial: SmokeTest | None = None
        metadata, head = {}, {}
        if self.given.format == "gguf":
            head = dict(gguf.read_header(path).metadata)
        else:
            self._progress("Loading", 0)
            self.trial = SmokeTest(path, self.config)
            metadata = dict(next(iter(self.trial.sessions.values())).metadata)
        self.said = statement(recipe, path.stem, metadata, head)
        self.name, self.version = str(self.said["name"]), str(self.said["version"])
        self.real = 0
        self.made: dict[str, str] = {}
        self.refused: dict[str, dict[str, str]] = {}

    def into(self, draft: Path) -> Manifest:
        """Make all files, and the manifest that lists them."""
        if self.trial is None:
            return self._manifest([self._passed_through(draft)])
        session = next(iter(self.trial.sessions.values()))
        samples = self._samples(Signature(self.source.path.name, self.config, session.inputs, session.outputs))
        made = self._forms(draft, samples)
        # What was only copied is loaded already.
        trials = {form.name: SmokeTest(form.files[0], self.config) if form.made_by else self.trial for form in made}
        try:
            return self._tried(draft, self.trial, samples, made, trials)
        finally:
            close_all([*trials.values(), self.trial])

    def _samples(self, fit: Signature) -> list[Sample]:
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
            form = formats.make(self.given, name, draft / "variants" / name, samples if self.real else ())
            self.made[name] = form.made_by or "as it was given"
            made.append(form)
        return made

    def _tried(
        self,
        draft: Path,
        model: SmokeTest,
        samples: Sequence[Sample],
        made: Sequence[Form],
        trials: Mapping[str, SmokeTest],
    ) -> Manifest:
        config, recipe = self.config, self.recipe
        seen = gather(
            model,
            trials,
            made,
            samples,
            hidden=frozenset([*config.state, *config.state.values(), *config.constants]),
            labels=len(self.said.get("labels", ())),
            cases=recipe.golden,
            tolerance=recipe.tolerance,
            progress=self._progress,
        )
        self._check(seen)
        cases = write_golden(draft, samples, seen.golden)
        variants = [self._variant(draft, form, trials[form.name], seen) for form in made]
        manifest = self._manifest(variants, cases, seen.baseline(self.real) if self.real else None)
        manifest = self._agreed(draft, manifest, trials)
        return self._measured(manifest, samples[0], trials)

    def _check(self, seen: Evidence) -> None:
        for name, cost in seen.costs.items():
            if not (loss := cost["rms"]) <= self.recipe.max_loss:
                raise TooLossy(
                    f"{name} ({self.made[name]}) is off by {loss:.1%} of what the outputs vary by"
                    + ("" if self.real else ", on noise"),
                    remedy=f"Leave it out; give more `--samples` of what it meets in use (there are {self.real}); or allow it "
                    f"with `max_loss: {loss * 1.1:.2g}`.",
                )

    def _variant(self, draft: Path, form: Form, trial: SmokeTest, seen: Evidence) -> Variant:
        return Variant(
            name=form.name,
            format=form.format,
            precision=form.precision,
            files=tuple(_file(draft, path) for path in form.files),
            model_digest=digest(form.files[0]),
            needs=Needs(backends=tuple(trial.sessions), devices=self.recipe.devices or ("CPU",)),
            tolerance=seen.tolerances[form.name],
            accuracy=seen.costs[form.name] if form.made_by else {},
        )

    def _agreed(self, draft: Path, manifest: Manifest, trials: Mapping[str, SmokeTest]) -> Manifest:
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

    def _measured(self, manifest: Manifest, sample: Sample, trials: Mapping[str, SmokeTest]) -> Manifest:
        """The manifest with the memory that each variant takes, on the backend that takes most."""
        variants = []
        for number, variant in enumerate(manifest.variants):
            self._progress(f"Measuring {variant.name}", number / len(manifest.variants))
            path = trials[variant.name].path
            most = max(
                footprint(path, backend, self.config, sample, self._state_dir) for backend in variant.needs.backends
            )
            needs = variant.needs.model_copy(update={"memory_bytes": most})
            variants.append(variant.model_copy(update={"needs": needs}))
        return manifest.model_copy(update={"variants": tuple(variants)})

    def _passed_through(self, draft: Path) -> Variant:
        """A language model: what runs it is not asked here, so nothing of it is measured."""
        form = formats.make(self.given, self.given.name, draft / "variants" / self.given.name, ())
        self.made[form.name] = "as it was given"
        return Variant(
            name=form.name,
            format=form.format,
            precision=form.precision,
            files=(_file(draft, form.files[0], self._progress),),
            model_digest=digest(form.files[0]),
            needs=Needs(
                backends=("openvino-genai",),
                devices=self.recipe.devices or ("CPU",),
                memory_bytes=memory.rounded(form.files[0].stat().st_size),
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
                provenance=provenance(said, recipe, self.given.files),
            )
        except ValidationError as error:
            raise ConfigError(
                f"The manifest would not be valid: {first_problem(error, 'manifest')}",
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


def _tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name=spec.name, dtype=str(spec.dtype), shape=spec.shape) for spec in specs)


def _file(draft: Path, path: Path, progress: Progress | None = None) -> File:
    size, done = max(1, path.stat().st_size), 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        if progress is not None:
            progress("Reading", done / size)

    return describe_file(path, path.relative_to(draft).as_posix(), count)


def _unseen(what: str, done: float) -> None:
    pass
