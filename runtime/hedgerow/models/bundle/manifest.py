"""A model's manifest: what a bundle holds, what it needs, where it comes from. Pure.

A bundle is a folder with a `manifest.json` and the files it names:

    manifest.json
    variants/onnx-fp32/model.onnx
    variants/openvino-int8/model.xml, model.bin
    golden/0.inputs.npz, golden/onnx-fp32/0.outputs.npz

Rules:
- A bundle is identified by the digest of its manifest's bytes. The manifest has the digest of every file, and of every
  chunk of every file, so that digest identifies it all, and a part can be checked as it comes.
- The bytes of a manifest are canonical: keys sorted, no spaces, UTF-8, each key once. So two readers cannot read two
  things. Its digest is that of the bytes that came, never of what would be written for them now.
- A reader refuses a schema that it does not know, paths that lead out of the bundle, and whatever would let everything
  pass: numbers that are none, a tolerance without end.
- A manifest does not reach into the node that reads it: options of vendors' libraries, some of which name files to read
  or write, are for the node's own file.
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

if TYPE_CHECKING:  # a region reads manifests and has no frames, nor the arrays that come with them
    from hedgerow.frame import Buffer

MANIFEST: Final = "manifest.json"
LARGEST_MANIFEST: Final = 8 << 20
"""Bytes a manifest may have: chunk digests of some 20 GB of files."""

MOST_CASES: Final = 64
"""Golden cases a bundle may have; a node runs them all before it serves."""

_LONGEST_PATH, _LONGEST_NAME = 1024, 255
"""Bytes that file systems take."""

_LARGEST_DIM: Final = 2**31 - 1
_MOST_DIMS: Final = 32
_MOST_BYTES: Final = 1 << 62
"""What every reader can count with."""


class BadManifest(ModelError):
    """A manifest cannot be used."""

    code = "bad-manifest"


def digest_of(content: Buffer) -> str:
    """`sha256:…` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in text or "\0" in text or str(path) != text:
        raise ValueError("the path of a file inside the bundle, with `/` and without `..`")
    if text == MANIFEST:
        raise ValueError("a manifest does not list itself")
    if not text.isprintable():
        raise ValueError("a path of signs that can be printed")
    if len(text.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
        raise ValueError("a path that a file system takes")
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
"""What values of a tensor are, in numpy's words; `object` are texts."""


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """A mapping as it will be read again. Numbers that are none would come back as null."""
    try:
        plain: dict[str, Any] = orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"what JSON can hold ({error})") from error
    if not _finite(value):
        raise ValueError("finite numbers only")
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

    path: Annotated[str, AfterValidator(_inside)]
    size: int = Field(ge=0)
    digest: Digest
    chunks: tuple[Chunk, ...]

    @model_validator(mode="after")
    def _whole(self) -> File:
        if sum(chunk.size for chunk in self.chunks) != self.size:
            raise ValueError("its chunks are not as long as the file")
        return self


class Tensor(Part):
    """An input or output. A dimension is a size, or null where it is dynamic."""

    name: str = Field(max_length=1024)
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=0, le=_LARGEST_DIM)] | None, ...] = Field(max_length=_MOST_DIMS)


class Tolerance(Part):
    """How far outputs may be from the golden ones: `|a - b| ≤ absolute + relative · |b|`, but for a share of the values."""

    relative: float = Field(1e-3, ge=0, le=1)
    absolute: float = Field(1e-4, ge=0)
    outliers: float = Field(0.0, ge=0, lt=1, description="Share of an output's values that may be further off.")
    outputs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="Absolute ones of outputs that need another: a box in pixels beside a score."
    )

    def of(self, output: str) -> Tolerance:
        """That of one output."""
        absolute = self.outputs.get(output)
        return (
            self if absolute is None else Tolerance(relative=self.relative, absolute=absolute, outliers=self.outliers)
        )


class Needs(Part):
    """What a variant needs of a node."""

    backends: tuple[Literal["onnxruntime", "openvino", "openvino-genai"], ...] = Field(min_length=1)
    devices: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        ("CPU",), min_length=1, description="In the backend's words; the first that is there."
    )
    memory_bytes: int = Field(0, ge=0, le=_MOST_BYTES, description="Measured: what a session adds to a process.")


class Variant(Part):
    """One form of the model. `files[0]` is what a backend opens; the others belong to it."""

    name: Name
    format: Literal["onnx", "openvino", "tflite", "gguf"]
    precision: str = Field(description="fp32, fp16, bf16, int8, int4 …", max_length=16)
    files: tuple[File, ...] = Field(min_length=1)
    model_digest: Digest = Field(description="What results made by it carry: see `models.source.digest`.")
    needs: Needs
    tolerance: Tolerance = Tolerance()
    accuracy: dict[str, float] = Field(
        default_factory=dict, description="What it costs against the first variant, on the author's samples."
    )


class GoldenCase(Part):
    """Inputs, and what each variant makes of them: npz files, arrays by tensor name."""

    inputs: File
    outputs: dict[Name, File]


class Distribution(Part):
    """How the values of a tensor are distributed over the author's samples; only finite ones are counted in.

    `edges` are the borders of the bins of `counts`, deciles at first: below the first and above the last edge there is a bin too.
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
            raise ValueError("there is a bin below and above each edge, or there are neither")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges rise")
        return self


class Baseline(Part):
    """What inputs and outputs looked like, by tensor name."""

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
    training_data: str = Field("", description="Where that is described: a name, an address.")
    metrics: dict[str, float] = Field(default_factory=dict, description="As the author measured them.")
    made_from: tuple[Origin, ...] = ()
    made_by: str = Field("", description="Tools and their versions.")
    made_at: str = Field("", description="UTC, ISO 8601.")


class Manifest(Part):
    """What a bundle is."""

    schema_: Literal["hedgerow.model/1"] = Field("hedgerow.model/1", alias="schema")
    name: Name
    version: Version
    description: str = ""
    licence: str = Field("", description="SPDX expression.")
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...] = Field((), description="Names of the classes, by index.")
    parameters: Settings = Field(
        default_factory=dict, description="What pre- and post-processing need: sizes, means, thresholds."
    )
    serving: Settings = Field(
        default_factory=dict,
        description="How it is to be run: what a node's file may say of a model, but for where it is.",
    )
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=64)
    golden: tuple[GoldenCase, ...] = Field((), max_length=MOST_CASES)
    baseline: Baseline | None = None
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have one name")
        for case in self.golden:
            if unknown := case.outputs.keys() - set(names):
                raise ValueError(f"golden outputs of a variant that is not there: {sorted(unknown)[0]}")
        seen: dict[str, str] = {}
        for file in self.files():
            if seen.setdefault(file.path, file.digest) != file.digest:
                raise ValueError(f"{file.path} is there twice, with different content")
        for path in seen:
            if above := next((str(one) for one in PurePosixPath(path).parents if str(one) in seen), None):
                raise ValueError(f"{above} is a file and a folder")
        if "path" in self.serving:
            raise ValueError("`serving` does not say where the model is")
        if self.serving.get("options"):
            raise ValueError("`serving` has no `options`: they are for a node's own file")
        ModelConfig.model_validate({"path": self.name, **self.serving})
        return self

    def files(self) -> list[File]:
        """All files of the bundle."""
        files = [file for variant in self.variants for file in variant.files]
        for case in self.golden:
            files += [case.inputs, *case.outputs.values()]
        return files

    def files_for(self, variant: Variant) -> list[File]:
        """The files that a node needs to serve a variant: its own, and its golden cases."""
        files = list(variant.files)
        for case in self.golden:
            if variant.name in case.outputs:
                files += [case.inputs, case.outputs[variant.name]]
        return files

    def variant(self, name: str) -> Variant:
        """The variant of that name. Raises: BadManifest: there is none."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        there = ", ".join(variant.name for variant in self.variants)
        raise BadManifest(f"{self.name} {self.version} has no variant {name!r}", remedy=f"It has: {there}.")

    def encode(self) -> bytes:
        """The canonical bytes; their digest identifies the bundle."""
        return orjson.dumps(self.model_dump(by_alias=True, exclude_defaults=False), option=orjson.OPT_SORT_KEYS)

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical bytes."""
        return digest_of(self.encode())


def read_manifest(content: Buffer, digest: str | None = None) -> Manifest:
    """Read a manifest.

    Args:
        digest: what its bytes must have, if it is known.
    Raises: BadManifest: it is too large, does not have that digest, is not canonical, is of another schema, or does not
        hold together.
    """
    if len(content) > LARGEST_MANIFEST:
        raise BadManifest(
            f"The manifest has {len(content):,} bytes, more than {LARGEST_MANIFEST:,}",
            remedy="Build the model again; a manifest lists files and does not hold them.",
        )
    if digest is not None and digest_of(content) != digest:
        raise BadManifest(
            f"The manifest is {digest_of(content)}, not {digest}",
            remedy="It was changed or damaged on its way: fetch the model again, from another source if that does not help.",
        )
    if not _canonical(content):
        raise BadManifest(
            "The manifest is no JSON with its keys in order, each once, and numbers that are some",
            remedy="It was edited, or damaged: fetch it again, or build the model again.",
        )
    try:
        return Manifest.model_validate_json(bytes(content))
    except ValidationError as error:
        raise BadManifest(
            f"The manifest cannot be used: {first_problem(error, 'manifest')}",
            remedy="Build the model with this version of Hedgerow, or update the one that reads it.",
        ) from error


def _canonical(content: Buffer) -> bool:
    try:
        return orjson.dumps(orjson.loads(content), option=orjson.OPT_SORT_KEYS) == bytes(content)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return False
