"""Builds a bundle from a model file, its author's recipe and samples.

Rules:
- Builds are reproducible: the same file, recipe, samples and tools make the same bundle, byte for byte. So a bundle does
  not depend on the clock, and measured memory is rounded, and measured once per file and machine.
- Claims of a manifest are tested: which backends run a variant, how much accuracy it loses, how much memory it takes.
- A bundle appears atomically.
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
from hedgerow.models.build.provenance import manifest_fields, provenance
from hedgerow.models.build.recipe import Recipe
from hedgerow.models.build.samples import Sample
from hedgerow.models.build.smoke_test import SmokeTest, close_all
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.golden import check_golden
from hedgerow.models.bundle.manifest import MANIFEST, Baseline, File, GoldenCase, Manifest, Needs, Tensor, Variant
from hedgerow.models.bundle.model_file import digest, resolve
from hedgerow.models.session.load import with_state
from hedgerow.models.session.signature import Signature

Requests = Callable[[Path, ModelConfig, int], Sequence[Mapping[str, Array]]]
"""Returns the requests that stages make to a model, from its file, its configuration and the largest number of them."""


class BundleExists(ModelError):
    """The bundle's folder already exists, with other content."""

    code = "bundle-exists"


class TooLossy(ModelError):
    """A variant's outputs differ too much from those of the model it was made from."""

    code = "too-lossy"


@dataclass(slots=True)
class Built:
    """Result of a build.

    Attributes:
        bundle: the bundle.
        samples: number of samples; 0: golden inputs are noise.
        made: how each variant was made.
        refused: why a backend was excluded, by variant and backend.
        unchanged: whether the same bundle existed already.
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
        out: folder of the bundle; by default `bundles/NAME-VERSION`.
        requests: makes samples with a pipeline's stages; None: samples are files with arrays.
        state_dir: folder that caches measurements.
        replace: replace an existing bundle with other content.
    Raises:
        ConfigError: the recipe is invalid, or the folder cannot be written.
        BundleExists: the folder exists with other content, and `replace` is not set.
        TooLossy: a variant loses more accuracy than the recipe allows.
        ModelError: the model cannot be read, or a variant cannot be made or run.
    """
    work = _Build(recipe, requests, state_dir, progress or _no_progress)
    folder = out or Path("bundles", f"{work.name}-{work.version}")
    _check_folder(folder)
    try:
        return _write(work, folder, replace=replace)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            remedy="Choose another folder with --out, or free disk space; measurements are cached in --state-dir.",
        ) from error


def _write(work: _Build, folder: Path, *, replace: bool) -> Built:
    """Build into a temporary folder, verify the bundle, and move it into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as temp:
        draft = Path(temp, "new")
        draft.mkdir()
        manifest = work.write(draft)
        (draft / MANIFEST).write_bytes(manifest.encode())
        bundle = Bundle.open(draft)
        bundle.verify()
        built = Built(Bundle(folder, manifest, bundle.digest), work.sample_count, work.made, work.refused)
        if folder.exists():
            built.unchanged = _holds(folder, bundle.digest)
            if built.unchanged:
                return built
            if not replace:
                raise BundleExists(
                    f"{folder} already exists, with other content than this build",
                    remedy="Raise the version; or pass `--replace` if the old bundle has not been published.",
                )
            folder.rename(Path(temp, "old"))
        draft.rename(folder)
        return built


def _holds(folder: Path, digest: str) -> bool:
    """Return whether a folder holds the bundle with this digest, undamaged."""
    with suppress(ModelError):
        existing = Bundle.open(folder)
        existing.verify()
        return existing.digest == digest
    return False


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not a bundle, before any work is done. Raises: BundleExists."""
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleExists(
            f"{folder} already exists, and is not a bundle",
            remedy="Choose another folder with --out. Only bundles can be replaced.",
        )


class _Build:
    """State of a build."""

    def __init__(self, recipe: Recipe, requests: Requests | None, state_dir: Path, progress: Progress) -> None:
        if recipe.model is None:
            raise ConfigError("No model to build", remedy="Name the model's file: `hedgerow model build MODEL.onnx`.")
        self.recipe, self._requests, self._state_dir, self._progress = recipe, requests, state_dir, progress
        self.source = resolve(recipe.model, Path())
        path = self.source.path
        self.original = formats.form_of(path)
        self.variants = formats.check(self.original, recipe.variants)
        self.config = _serving(recipe, path)
        self.smoke_test: SmokeTest | None = None
        metadata, gguf_metadata = {}, {}
        if self.original.format == "gguf":
            gguf_metadata = dict(gguf.read_header(path).metadata)
        else:
            self._progress("Loading", 0)
            self.smoke_test = SmokeTest(path, self.config)
            session = next(iter(self.smoke_test.sessions.values()))
            self.config = with_state(self.config, session)
            metadata = dict(session.metadata)
        self.fields = manifest_fields(recipe, path.stem, metadata, gguf_metadata)
        self.name, self.version = str(self.fields["name"]), str(self.fields["version"])
        self.sample_count = 0
        self.made: dict[str, str] = {}
        self.refused: dict[str, dict[str, str]] = {}

    def write(self, draft: Path) -> Manifest:
        """Write all files, and return the manifest that lists them."""
        if self.smoke_test is None:
            return self._manifest([self._language_model(draft)])
        session = next(iter(self.smoke_test.sessions.values()))
        samples = self._samples(Signature(self.source.path.name, self.config, session.inputs, session.outputs))
        forms = self._make_variants(draft, samples)
        # A copy of the original is loaded already.
        smoke_tests = {
            one.name: SmokeTest(one.files[0], self.config) if one.made_by else self.smoke_test for one in forms
        }
        try:
            return self._evaluate(draft, self.smoke_test, samples, forms, smoke_tests)
        finally:
            close_all([*smoke_tests.values(), self.smoke_test])

    def _samples(self, signature: Signature) -> list[Sample]:
        recipe = self.recipe
        if self._requests is not None:
            self._progress("Running the stages", 0)
            found = sampling.from_requests(self._requests(self.source.path, self.config, recipe.max_samples), signature)
        else:
            found = sampling.from_files(recipe.samples, signature, recipe.max_samples) if recipe.samples else []
        self.sample_count = len(found)
        if not found and (recipe.samples or self._requests is not None):
            raise ConfigError(
                "No sample reaches the model",
                remedy="Add samples that pass the stages before the model; or pass none, so that golden inputs are noise.",
            )
        return found or sampling.noise(signature, recipe.shapes, max(1, recipe.golden))

    def _make_variants(self, draft: Path, samples: Sequence[Sample]) -> list[Form]:
        forms = []
        for number, name in enumerate(self.variants):
            self._progress(f"Making {name}", number / len(self.variants))
            form = formats.make(self.original, name, draft / "variants" / name, samples if self.sample_count else ())
            self.made[name] = form.made_by or "copied"
            forms.append(form)
        return forms

    def _evaluate(
        self,
        draft: Path,
        model: SmokeTest,
        samples: Sequence[Sample],
        forms: Sequence[Form],
        smoke_tests: Mapping[str, SmokeTest],
    ) -> Manifest:
        config, recipe = self.config, self.recipe
        evidence = gather(
            model,
            smoke_tests,
            forms,
            samples,
            hidden=frozenset([*config.state, *config.state.values(), *config.constants]),
            labels=len(self.fields.get("labels", ())),
            cases=recipe.golden,
            tolerance=recipe.tolerance,
            progress=self._progress,
        )
        self._check_losses(evidence)
        cases = write_golden(draft, samples, evidence.golden)
        variants = [self._variant(draft, form, smoke_tests[form.name], evidence) for form in forms]
        manifest = self._manifest(variants, cases, evidence.baseline(self.sample_count) if self.sample_count else None)
        manifest = self._exclude_backends(draft, manifest, smoke_tests)
        return self._add_memory(manifest, samples[0], smoke_tests)

    def _check_losses(self, evidence: Evidence) -> None:
        for name, losses in evidence.losses.items():
            if not (loss := losses["rms"]) <= self.recipe.max_loss:
                raise TooLossy(
                    f"{name} ({self.made[name]}) is off by {loss:.1%} of the outputs' standard deviation"
                    + ("" if self.sample_count else ", on noise")
                    + f", more than `max_loss: {self.recipe.max_loss:g}`",
                    remedy=f"Leave the variant out; add typical `--samples` (there are {self.sample_count}); or allow it with "
                    f"`max_loss: {loss * 1.1:.2g}`.",
                )

    def _variant(self, draft: Path, form: Form, smoke_test: SmokeTest, evidence: Evidence) -> Variant:
        return Variant(
            name=form.name,
            format=form.format,
            precision=form.precision,
            files=tuple(_file(draft, path) for path in form.files),
            model_digest=digest(form.files[0]),
            needs=Needs(backends=tuple(smoke_test.sessions), devices=self.recipe.devices or ("CPU",)),
            tolerance=evidence.tolerances[form.name],
            accuracy=evidence.losses[form.name] if form.made_by else {},
        )

    def _exclude_backends(self, draft: Path, manifest: Manifest, smoke_tests: Mapping[str, SmokeTest]) -> Manifest:
        """Return the manifest without backends that do not reproduce the golden outputs."""
        variants = []
        for variant in manifest.variants:
            smoke_test = smoke_tests[variant.name]
            for name, session in list(smoke_test.sessions.items()):
                outcome = check_golden(session.run, draft, manifest, variant)
                if not outcome.passed:
                    smoke_test.exclude(name, f"its outputs differ from the golden ones: {outcome.detail}")
            needs = variant.needs.model_copy(update={"backends": tuple(smoke_test.sessions)})
            variants.append(variant.model_copy(update={"needs": needs}))
            if smoke_test.refused:
                self.refused[variant.name] = dict(smoke_test.refused)
        return manifest.model_copy(update={"variants": tuple(variants)})

    def _add_memory(self, manifest: Manifest, sample: Sample, smoke_tests: Mapping[str, SmokeTest]) -> Manifest:
        """Return the manifest with each variant's memory, on the backend that takes most."""
        variants = []
        for number, variant in enumerate(manifest.variants):
            self._progress(f"Measuring {variant.name}", number / len(manifest.variants))
            path = smoke_tests[variant.name].path
            most = max(
                footprint(path, backend, self.config, sample, self._state_dir) for backend in variant.needs.backends
            )
            needs = variant.needs.model_copy(update={"memory_bytes": most})
            variants.append(variant.model_copy(update={"needs": needs}))
        return manifest.model_copy(update={"variants": tuple(variants)})

    def _language_model(self, draft: Path) -> Variant:
        """Copy a language model. It is not run here, so its memory is estimated from its size."""
        form = formats.make(self.original, self.original.name, draft / "variants" / self.original.name, ())
        self.made[form.name] = "copied"
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
        fields, recipe = self.fields, self.recipe
        session = next(iter(self.smoke_test.sessions.values())) if self.smoke_test is not None else None
        try:
            return Manifest(
                name=self.name,
                version=self.version,
                description=fields.get("description", ""),
                licence=fields.get("licence", ""),
                inputs=_tensors(session.inputs) if session else (),
                outputs=_tensors(session.outputs) if session else (),
                labels=tuple(fields.get("labels", ())),
                parameters=fields["parameters"],
                serving=recipe.serving,
                variants=tuple(variants),
                golden=tuple(cases),
                baseline=baseline,
                provenance=provenance(fields, recipe, self.original.files),
            )
        except ValidationError as error:
            raise ConfigError(
                f"The manifest would not be valid: {first_problem(error, 'manifest')}",
                remedy="Correct it in the recipe or with an option; both override the model's own metadata.",
            ) from error


def _serving(recipe: Recipe, path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate({**recipe.serving, "path": str(path)})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"serving.{'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy="Use the settings of a model in a node's file, except `path`.",
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


def _no_progress(step: str, share: float) -> None:
    pass
