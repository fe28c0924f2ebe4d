"""Manifest of a bundle: its files, requirements and provenance. Pure.

A bundle is a folder with a `manifest.json` and the files it lists:

    manifest.json
    variants/onnx-fp32/model.onnx
    variants/openvino-int8/model.xml, model.bin
    golden/0.inputs.npz, golden/onnx-fp32/0.outputs.npz

Rules:
- The digest of the manifest's bytes identifies a bundle. The manifest has the digest of every file and of every chunk, so
  its digest covers everything, and each part can be checked as it arrives.
- A manifest's bytes are canonical: sorted keys, no spaces, UTF-8, no duplicate keys. So all readers read the same. Its
  digest is computed from the bytes received, never from a new encoding.
- Readers refuse an unknown schema, paths that lead out of the bundle, and values that would make any check pass: NaN, an
  infinite tolerance.
- A manifest has no access to the node that reads it: options of vendors' libraries, some of which name files to read or
  write, are only allowed in the node's own file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hedgerow.config import ModelConfig, Name
from hedgerow.errors import ModelError, first_problem
from hedgerow.wire.fleet import Digest, Version

if TYPE_CHECKING:  # a region reads manifests, but does not need frames, which import numpy
    from hedgerow.frame import Buffer

MANIFEST: Final = "manifest.json"
LARGEST_MANIFEST: Final = 8 << 20
"""Largest size of a manifest in bytes: enough for the chunk digests of some 20 GB of files."""

PIPELINES: Final = "pipelines.json"
"""File name of signed pipelines in a repository."""

LARGEST_PIPELINES: Final = 4 << 20
"""Largest size of signed pipelines in bytes, with their files: for labels and calibrations, not for models."""

MOST_CASES: Final = 64
"""Largest number of golden cases; a node runs them all before it serves."""

_LONGEST_PATH, _LONGEST_NAME = 1024, 255
"""Limits of file systems in bytes."""

_LARGEST_DIM: Final = 2**31 - 1
_MOST_DIMS: Final = 32
_MOST_BYTES: Final = 1 << 62
"""Largest byte count: fits into a signed 64-bit integer everywhere."""


class BadManifest(ModelError):
    """A manifest is invalid."""

    code = "bad-manifest"


def digest_of(content: Buffer) -> str:
    """Return `sha256:…` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def check_path(text: str) -> str:
    """Return the path of a file inside a bundle. Raises: ValueError: it leads out of it, or is no path for a file system."""
    path = PurePosixPath(text)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in text or "\0" in text or str(path) != text:
        raise ValueError("must be the path of a file inside the bundle, with `/` and without `..`")
    if text == MANIFEST:
        raise ValueError("a manifest must not list itself")
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    if len(text.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
        raise ValueError(f"too long for file systems: more than {_LONGEST_PATH} bytes, or {_LONGEST_NAME} in a name")
    return text


Dtype = Literal[
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "object",
]
"""Type of a tensor's values, by its numpy name; `object` is text."""


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping as it is after a JSON round trip. Refuses NaN and infinity, which would be read back as null."""
    try:
        plain: dict[str, Any] = orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"not valid as JSON: {error}") from error
    if not _finite(value):
        raise ValueError("numbers must be finite")
    return plain


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


Settings = Annotated[dict[str, Any], AfterValidator(_json)]


class Part(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Chunk(Part):
    """A piece of a file, as it is stored and sent."""

    digest: Digest
    size: int = Field(ge=1, le=1 << 20)


class File(Part):
    """A file of the bundle."""

    path: Annotated[str, AfterValidator(check_path)]
    size: int = Field(ge=0)
    digest: Digest
    chunks: tuple[Chunk, ...]

    @model_validator(mode="after")
    def _whole(self) -> File:
        if sum(chunk.size for chunk in self.chunks) != self.size:
            raise ValueError("the sizes of its chunks do not add up to the file's size")
        return self


class Tensor(Part):
    """An input or output. A dimension is a size, or null if it is dynamic."""

    name: str = Field(max_length=1024)
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=0, le=_LARGEST_DIM)] | None, ...] = Field(max_length=_MOST_DIMS)


class Tolerance(Part):
    """How far outputs may differ from the golden ones: `|a - b| ≤ absolute + relative · |b|`, except for outliers."""

    relative: float = Field(1e-3, ge=0, le=1)
    absolute: float = Field(1e-4, ge=0)
    outliers: float = Field(0.0, ge=0, lt=1, description="Share of an output's values that may differ more.")
    outputs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Absolute tolerance by output, where it differs: boxes in pixels, for example, beside scores.",
    )

    def of(self, output: str) -> Tolerance:
        """Return the tolerance of an output."""
        absolute = self.outputs.get(output)
        return (
            self if absolute is None else Tolerance(relative=self.relative, absolute=absolute, outliers=self.outliers)
        )


class Needs(Part):
    """Requirements of a variant."""

    backends: tuple[Literal["onnxruntime", "openvino", "openvino-genai"], ...] = Field(min_length=1)
    devices: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        ("CPU",),
        min_length=1,
        description="Devices by their names in the backend; the first that is available is used.",
    )
    memory_bytes: int = Field(0, ge=0, le=_MOST_BYTES, description="Measured memory that a session adds to a process.")


class Variant(Part):
    """One form of the model. Backends open `files[0]`; the others belong to it."""

    name: Name
    format: Literal["onnx", "openvino", "tflite", "gguf"]
    precision: str = Field(description="fp32, fp16, bf16, int8, int4 …", max_length=16)
    files: tuple[File, ...] = Field(min_length=1)
    model_digest: Digest = Field(description="Digest in the lineage of its results; see `model_file.digest`.")
    needs: Needs
    tolerance: Tolerance = Tolerance()
    accuracy: dict[str, float] = Field(
        default_factory=dict, description="Accuracy loss against the original model, on the author's samples."
    )


class GoldenCase(Part):
    """Inputs, and each variant's outputs for them: .npz files with arrays by tensor name."""

    inputs: File
    outputs: dict[Name, File]


class Distribution(Part):
    """Distribution of a tensor's finite values over the author's samples.

    `edges`, usually deciles, separate the bins of `counts`; there is also a bin below the first and above the last edge.
    """

    values: int = Field(ge=0)
    not_finite: int = Field(0, ge=0)
    mean: float
    deviation: float = Field(ge=0)
    minimum: float
    maximum: float
    edges: tuple[float, ...] = ()
    counts: tuple[Annotated[int, Field(ge=0)], ...] = ()

    @model_validator(mode="after")
    def _binned(self) -> Distribution:
        if len(self.counts) != (len(self.edges) + 1 if self.edges else 0):
            raise ValueError("there must be one more bin in `counts` than `edges`, or none of both")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must be ascending")
        return self


class Baseline(Part):
    """Distributions of inputs and outputs, by tensor name."""

    samples: int = Field(ge=0)
    inputs: dict[str, Distribution] = Field(default_factory=dict)
    outputs: dict[str, Distribution] = Field(default_factory=dict)


class Origin(Part):
    """A file the model was made from."""

    file: str
    digest: Digest


class Provenance(Part):
    """Where the model comes from."""

    author: str = ""
    training_data: str = Field("", description="Name or URL of the training data.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Metrics that the author measured.")
    made_from: tuple[Origin, ...] = ()
    made_by: str = Field("", description="Tools and their versions.")
    made_at: str = Field("", description="UTC, ISO 8601.")


class Manifest(Part):
    """Description of a bundle."""

    schema_: Literal["hedgerow.model/1"] = Field("hedgerow.model/1", alias="schema")
    name: Name
    version: Version
    description: str = ""
    licence: str = Field("", description="SPDX expression.")
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...] = Field((), description="Names of the classes, by index.")
    parameters: Settings = Field(
        default_factory=dict, description="Values for pre- and post-processing: sizes, means, thresholds."
    )
    serving: Settings = Field(
        default_factory=dict,
        description="How to run the model: the settings of a model in a node's file, except `path` and `options`.",
    )
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=64)
    golden: tuple[GoldenCase, ...] = Field((), max_length=MOST_CASES)
    baseline: Baseline | None = None
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        for case in self.golden:
            if unknown := case.outputs.keys() - set(names):
                raise ValueError(f"golden outputs for an unknown variant: {sorted(unknown)[0]}")
        seen: dict[str, str] = {}
        for file in self.files():
            if seen.setdefault(file.path, file.digest) != file.digest:
                raise ValueError(f"{file.path} is listed twice, with different digests")
        for path in seen:
            if above := next((str(one) for one in PurePosixPath(path).parents if str(one) in seen), None):
                raise ValueError(f"{above} is both a file and a folder")
        if "path" in self.serving:
            raise ValueError("`serving` must not have a `path`")
        if self.serving.get("options"):
            raise ValueError("`serving` must not have `options`: they are only allowed in a node's own file")
        ModelConfig.model_validate({"path": self.name, **self.serving})
        return self

    def files(self) -> list[File]:
        """Return all files of the bundle."""
        files = [file for variant in self.variants for file in variant.files]
        for case in self.golden:
            files += [case.inputs, *case.outputs.values()]
        return files

    def files_for(self, variant: Variant) -> list[File]:
        """Return the files that a node needs to serve a variant: its own, and its golden cases."""
        files = list(variant.files)
        for case in self.golden:
            if variant.name in case.outputs:
                files += [case.inputs, case.outputs[variant.name]]
        return files

    def variant(self, name: str) -> Variant:
        """Return a variant by name. Raises: BadManifest: no variant has this name."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        names = ", ".join(variant.name for variant in self.variants)
        raise BadManifest(f"{self.name} {self.version} has no variant {name!r}", remedy=f"Use one of {names}.")

    def encode(self) -> bytes:
        """Return the canonical bytes, whose digest identifies the bundle."""
        return orjson.dumps(self.model_dump(by_alias=True, exclude_defaults=False), option=orjson.OPT_SORT_KEYS)

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical bytes."""
        return digest_of(self.encode())


def read_manifest(content: Buffer, digest: str | None = None) -> Manifest:
    """Read a manifest.

    Args:
        digest: expected digest of its bytes, if known.
    Raises: BadManifest: it is too large, has another digest, is not canonical, has another schema, or is inconsistent.
    """
    if len(content) > LARGEST_MANIFEST:
        raise BadManifest(
            f"The manifest has {len(content):,} bytes, more than {LARGEST_MANIFEST:,}",
            remedy="Build the bundle again; a manifest lists files, but does not contain them.",
        )
    if digest is not None and digest_of(content) != digest:
        raise BadManifest(
            f"The manifest is {digest_of(content)}, not {digest}",
            remedy="It was changed or damaged in transit: fetch the model again, if necessary from another origin.",
        )
    if not is_canonical(content):
        raise BadManifest(
            "The manifest is not canonical JSON: sorted keys without duplicates, no spaces, finite numbers",
            remedy="It was edited or damaged: fetch it again, or build the bundle again.",
        )
    try:
        return Manifest.model_validate_json(bytes(content))
    except ValidationError as error:
        raise BadManifest(
            f"The manifest is invalid: {first_problem(error, 'manifest')}",
            remedy="Build the bundle with this version of Hedgerow, or update Hedgerow where it is read.",
        ) from error


def is_canonical(content: Buffer) -> bool:
    """Return whether some bytes are JSON as all readers read it: sorted keys without duplicates, no spaces, finite numbers."""
    try:
        return orjson.dumps(orjson.loads(content), option=orjson.OPT_SORT_KEYS) == bytes(content)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return False
