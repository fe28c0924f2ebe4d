"""A verified model version on this node's disk, and the choice of its variant. Pure."""

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
    """A version's file does not match its manifest."""

    code = "wrong-digest"

    def __init__(self, version: ModelVersion, digest: str) -> None:
        super().__init__(
            f"The file of {version.ref} is {digest}, not {version.variant.model_digest}",
            remedy="The file is damaged on disk. The next desired document makes the node fetch the damaged parts again; if "
            "this happens often, replace the disk.",
        )


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version that can serve.

    Attributes:
        name: the model's name in the node's file.
        ref: name, version and digest of the bundle.
        manifest: manifest of the bundle.
        variant: the variant to run.
        folder: folder of the bundle's files, all of them verified.
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
        """Return plain values, to send to another process of this node."""
        return {
            "name": self.name,
            "ref": self.ref.model_dump(),
            "manifest": self.manifest.model_dump_json(by_alias=True),
            "variant": self.variant.name,
            "folder": str(self.folder.absolute()),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelVersion:
        """Create a version from the values of `as_dict`."""
        manifest = Manifest.model_validate_json(fields["manifest"])
        variant = manifest.variant(fields["variant"])
        return cls(fields["name"], ModelRef.model_validate(fields["ref"]), manifest, variant, Path(fields["folder"]))

    def config(self, local: ModelConfig) -> ModelConfig:
        """Return the configuration to run it: the manifest's settings, overridden by the node's file.

        Args:
            local: this model's settings in the node's file.
        """
        overrides = local.model_dump(include=local.model_fields_set)
        return ModelConfig.model_validate({**self.manifest.serving, **overrides, "path": str(self.path)})


def choose_variant(manifest: Manifest, backends: Mapping[str, Sequence[str]], free_bytes: int | None) -> Variant:
    """Return the first variant in the manifest's order whose requirements this machine meets.

    Args:
        backends: this machine's devices by backend.
        free_bytes: free memory; None: unknown.
    Raises: DeviceMissing: no variant can run here; the message gives the reason for each.
    """
    reasons = []
    for variant in manifest.variants:
        needs = variant.needs
        installed = [name for name in needs.backends if name in backends]
        if not installed:
            reasons.append(f"{variant.name} needs {' or '.join(needs.backends)}")
        elif not any(device in backends[name] for name in installed for device in needs.devices):
            reasons.append(f"{variant.name} needs {' or '.join(needs.devices)}")
        elif free_bytes is not None and needs.memory_bytes > free_bytes:
            reasons.append(f"{variant.name} needs {needs.memory_bytes:,} bytes of memory, but {free_bytes:,} are free")
        else:
            return variant
    raise DeviceMissing(
        f"No variant of {manifest.name} {manifest.version} can run on this machine: {'; '.join(reasons)}",
        remedy="Build the model with a variant for this hardware, or choose nodes that meet its requirements.",
    )
