"""Bill of materials of a bundle, as a CycloneDX ML-BOM (version 1.6, JSON).

The CycloneDX library writes the document except for the model card, which it does not support and which is added to its
output. The same bundle gives the same document: the serial number and timestamp come from the manifest.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, Final

import orjson

from hedgerow.errors import BackendMissing
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.manifest import File, Manifest, Tensor, Variant

_SPACE: Final = uuid.UUID("6f1cbd1c-2d46-5d0b-9d53-0f4e6a4f2c11")
"""UUID namespace of serial numbers, which are derived from bundles' digests."""

_MODEL: Final = "model"


def bom(bundle: Bundle) -> dict[str, Any]:
    """Return the ML-BOM of a bundle.

    Returns: a CycloneDX 1.6 document: the model with its card and ancestors, its variants, and each file with its digest.
    Raises: BackendMissing: the package cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise BackendMissing(
            f"The package cyclonedx-python-lib, which writes ML-BOMs, cannot be imported: {error}",
            remedy="Run `pip install 'hedgerow[build]'`.",
        ) from error
    manifest = bundle.manifest
    model = _model(bundle)
    variants = [_variant(variant) for variant in manifest.variants]
    result = Bom(
        serial_number=uuid.uuid5(_SPACE, bundle.digest),
        metadata=BomMetaData(timestamp=_time(manifest), component=model, tools=_tools(manifest)),
        components=variants,
    )
    result.register_dependency(model, variants)
    data = Component(name=f"{manifest.name} golden cases", type=ComponentType.DATA, bom_ref="golden")
    data.components = [_file(file) for case in manifest.golden for file in (case.inputs, *case.outputs.values())]
    if manifest.golden:
        result.components.add(data)
        result.register_dependency(model, [data])
    document: dict[str, Any] = orjson.loads(JsonV1Dot6(result).output_as_string())
    document["metadata"]["component"]["modelCard"] = model_card(manifest)
    return document


def model_card(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest's data as a CycloneDX model card."""
    provenance = manifest.provenance
    parameters: dict[str, Any] = {
        "inputs": [{"format": _format(tensor)} for tensor in manifest.inputs],
        "outputs": [{"format": _format(tensor)} for tensor in manifest.outputs],
    }
    if isinstance(task := manifest.parameters.get("task"), str):
        parameters["task"] = task
    if isinstance(family := manifest.parameters.get("architecture"), str):
        parameters["architectureFamily"] = family
    if provenance.training_data:
        data: dict[str, Any] = {"type": "dataset", "name": provenance.training_data}
        if provenance.training_data.startswith(("https://", "http://")):
            data["contents"] = {"url": provenance.training_data}
        parameters["datasets"] = [data]
    metrics = [{"type": name, "value": str(value)} for name, value in sorted(provenance.metrics.items())]
    metrics += [
        {
            "type": name,
            "value": str(value),
            "slice": f"variant {variant.name}, compared with the original {manifest.name}",
        }
        for variant in manifest.variants
        for name, value in sorted(variant.accuracy.items())
    ]
    card: dict[str, Any] = {"modelParameters": parameters}
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if manifest.labels:
        card["properties"] = [
            {"name": f"hedgerow:label:{number}", "value": label} for number, label in enumerate(manifest.labels)
        ]
    return card


def _model(bundle: Bundle) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from cyclonedx.model.contact import OrganizationalContact
    from cyclonedx.model.license import LicenseExpression

    manifest = bundle.manifest
    origins = [
        Component(name=origin.file, type=ComponentType.FILE, hashes=[_hash(origin.digest)])
        for origin in manifest.provenance.made_from
    ]
    author = manifest.provenance.author
    return Component(
        name=manifest.name,
        version=manifest.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_MODEL,
        description=manifest.description or None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=bundle.digest.partition(":")[2])],
        licenses=[LicenseExpression(manifest.licence)] if manifest.licence else [],
        authors=[OrganizationalContact(name=author)] if author else [],
        pedigree=Pedigree(ancestors=origins) if origins else None,
        properties=_properties({"hedgerow:manifest:schema": manifest.schema_, **_flat(manifest.parameters)}),
    )


def _variant(variant: Variant) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    needs = variant.needs
    properties = {
        "hedgerow:format": variant.format,
        "hedgerow:precision": variant.precision,
        "hedgerow:backends": ", ".join(needs.backends),
        "hedgerow:devices": ", ".join(needs.devices),
        "hedgerow:memory-bytes": str(needs.memory_bytes),
    }
    return Component(
        name=variant.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"variant/{variant.name}",
        hashes=[_hash(variant.model_digest)],
        properties=_properties(properties),
        components=[_file(file) for file in variant.files],
    )


def _file(file: File) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=PurePosixPath(file.path).name,
        type=ComponentType.FILE,
        bom_ref=f"file/{file.path}",
        hashes=[_hash(file.digest)],
        properties=_properties({"hedgerow:path": file.path, "hedgerow:size": str(file.size)}),
    )


def _hash(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest.partition(":")[2])


def _properties(properties: Mapping[str, str]) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=name, value=value) for name, value in properties.items()]


def _tools(manifest: Manifest) -> Any:
    """Return the build tools that the manifest lists: `hedgerow 1.0, onnxruntime 1.32`."""
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository

    tools = []
    for tool in filter(None, manifest.provenance.made_by.split(", ")):
        name, _, version = tool.partition(" ")
        tools.append(Component(name=name, version=version or None, type=ComponentType.APPLICATION))
    return ToolRepository(components=tools)


def _flat(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"hedgerow:parameter:{name}": value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in parameters.items()
    }


def _time(manifest: Manifest) -> datetime:
    try:
        return datetime.strptime(manifest.provenance.made_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:  # not stated
        return datetime.fromtimestamp(0, UTC)


def _format(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype}[{', '.join('?' if dim is None else str(dim) for dim in tensor.shape)}]"
