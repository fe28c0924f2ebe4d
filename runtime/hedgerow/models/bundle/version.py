"""A version of a model that lies on this node's disk, checked, and which of its variants is to run here. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hedgerow.config import ModelConfig
from hedgerow.errors import DeviceMissing, ModelError
from hedgerow.models.bundle.manifest import Manifest, Variant
from hedgerow.wire.fleet import ModelRef


class DamagedModel(ModelError):
    """A version's file is not what its manifest says."""

    code = "wrong-digest"

    def __init__(self, candidate: ModelVersion, digest: str) -> None:
        super().__init__(
            f"The file of {candidate.ref} is {digest}, not {candidate.variant.model_digest}",
            remedy="The disk has damaged it. What is damaged of it is fetched again with the next desired document; if that "
            "happens often, replace the disk.",
        )


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version that could serve.

    Attributes:
        name: the model's name in the node's file.
        ref: which version of which bundle.
        manifest: of that bundle.
        variant: the one to run.
        folder: where the bundle's files are; each has been checked.
    """

    name: str
    ref: ModelRef
    manifest: Manifest
    variant: Variant
    folder: Path

    @property
    def path(self) -> Path:
        """The file that a backend opens."""
        return self.folder / self.variant.files[0].path

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for another process of this node."""
        return {
            "name": self.name,
            "ref": self.ref.model_dump(),
            "manifest": self.manifest.model_dump_json(by_alias=True),
            "variant": self.variant.name,
            "folder": str(self.folder.absolute()),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelVersion:
        """What `as_dict` was called on."""
        manifest = Manifest.model_validate_json(fields["manifest"])
        variant = manifest.variant(fields["variant"])
        return cls(fields["name"], ModelRef.model_validate(fields["ref"]), manifest, variant, Path(fields["folder"]))

    def config(self, local: ModelConfig) -> ModelConfig:
        """How to run it: as the manifest says, but for what the node's file says otherwise.

        Args:
            local: what the node's file says of this model.
        """
        said = local.model_dump(include=local.model_fields_set)
        return ModelConfig.model_validate({**self.manifest.serving, **said, "path": str(self.path)})


def choose_variant(manifest: Manifest, backends: Mapping[str, Sequence[str]], free_bytes: int | None) -> Variant:
    """The variant to run here: the first in the manifest's order whose needs are met.

    Args:
        backends: devices by backend, as they are here.
        free_bytes: memory there is; None: nobody knows.
    Raises: DeviceMissing: none can run here; the message says why each cannot.
    """
    reasons = []
    for variant in manifest.variants:
        needs = variant.needs
        there = [name for name in needs.backends if name in backends]
        if not there:
            reasons.append(f"{variant.name} needs {' or '.join(needs.backends)}")
        elif not any(device in backends[name] for name in there for device in needs.devices):
            reasons.append(f"{variant.name} needs {' or '.join(needs.devices)}")
        elif free_bytes is not None and needs.memory_bytes > free_bytes:
            reasons.append(f"{variant.name} needs {needs.memory_bytes:,} bytes of memory, and {free_bytes:,} are free")
        else:
            return variant
    raise DeviceMissing(
        f"No variant of {manifest.name} {manifest.version} can run here: {'; '.join(reasons)}",
        remedy="Build the model with a variant for this hardware, or choose nodes that have what it needs.",
    )
