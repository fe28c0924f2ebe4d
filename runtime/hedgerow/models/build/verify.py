"""Whether a bundle's variants compute here what they computed where it was built: golden cases, on every backend they name.

What cannot be run here is said, with the reason; it is not the same as passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hedgerow import backends
from hedgerow.backends.base import Session
from hedgerow.config import ModelConfig
from hedgerow.errors import BackendMissing, DeviceMissing, HedgerowError, ModelMismatch
from hedgerow.frame import Array
from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.golden import check_golden
from hedgerow.models.bundle.manifest import Manifest, Tensor, Variant
from hedgerow.models.bundle.model_file import ModelFile
from hedgerow.models.session.load import load
from hedgerow.models.session.memory import free_bytes

State = Literal["passed", "failed", "not-run"]

_RUNNABLE: Final = frozenset(backend.name for backend in backends.backends())


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A way to run a variant here, or why there is none.

    Attributes:
        backend, device: which.
        why_not: why it cannot be run like this here; None: it can.
    """

    backend: str
    device: str
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class VerificationOutcome:
    """What came of one variant on one backend and device.

    Attributes:
        worst: how far the worst value was off, in tolerances; None: nothing was compared.
        detail: what was compared, what is wrong, or why it was not run.
    """

    variant: str
    backend: str
    device: str
    state: State
    detail: str
    worst: float | None = None


def ways(variant: Variant) -> list[DeviceChoice]:
    """How a variant could be run by what it needs, and what of that is here."""
    found: list[DeviceChoice] = []
    free = free_bytes()
    for name in variant.needs.backends:
        if name not in _RUNNABLE:
            found.append(DeviceChoice(name, variant.needs.devices[0], f"nothing here runs models by {name}"))
            continue
        try:
            there = backends.get(name).devices()
        except BackendMissing as error:
            found.append(DeviceChoice(name, variant.needs.devices[0], str(error)))
            continue
        for device in variant.needs.devices:
            why = None
            if device not in there:
                why = f"{name} has no {device} here (it has: {', '.join(there)})"
            elif free is not None and variant.needs.memory_bytes > free:
                why = f"it needs {variant.needs.memory_bytes:,} bytes of memory, and {free:,} are free"
            found.append(DeviceChoice(name, device, why))
    return found


def serving_config(bundle: Bundle, variant: Variant, way: DeviceChoice) -> ModelConfig:
    """How a variant is run that way, as its manifest says."""
    path = str(bundle.path(variant.files[0]))
    own = {"path": path, "backend": way.backend, "device": way.device, "if_device_missing": "fail"}
    return ModelConfig.model_validate({**bundle.manifest.serving, **own})


def verify_golden(bundle: Bundle, variant: Variant) -> Iterator[VerificationOutcome]:
    """Run a variant's golden cases in every way it names. Its files are believed: check them before.

    Raises: BadArrays: a golden file cannot be read.
    """
    for way in ways(variant):
        if way.why_not is not None:
            yield VerificationOutcome(variant.name, way.backend, way.device, "not-run", way.why_not)
        else:
            yield _run(bundle, variant, way)


def _run(bundle: Bundle, variant: Variant, way: DeviceChoice) -> VerificationOutcome:
    manifest = bundle.manifest
    # One thread, as where the cases were made: sums are then added up in the same order.
    changes = {"threads": 1, "streams": 1, "static_batches": False}
    config = serving_config(bundle, variant, way).model_copy(update=changes)
    source = ModelFile(bundle.path(variant.files[0]), variant.model_digest)
    try:
        session = load(source, config, 1, None).session
    except DeviceMissing as error:  # the library knows it, and the machine lacks a driver
        return VerificationOutcome(variant.name, way.backend, way.device, "not-run", str(error))
    except HedgerowError as error:
        return VerificationOutcome(variant.name, way.backend, way.device, "failed", str(error))
    try:
        if why := _other_tensors(manifest, session):
            return VerificationOutcome(variant.name, way.backend, session.device, "failed", why)
        if not any(variant.name in case.outputs for case in manifest.golden):
            return VerificationOutcome(
                variant.name, way.backend, session.device, "not-run", "it loads, and has no golden cases"
            )
        outcome = check_golden(lambda inputs: _checked(session, inputs), bundle.folder, manifest, variant)
        state: State = "passed" if outcome.passed else "failed"
        return VerificationOutcome(variant.name, way.backend, session.device, state, outcome.detail, outcome.worst)
    finally:
        session.close()


def _checked(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a batch that fits. Backends differ in what they do with one that does not: some convert it."""
    for spec in session.inputs:
        array = inputs.get(spec.name)
        if array is None or not spec.accepts(array):
            got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise ModelMismatch(f"the model takes {spec}, and the golden inputs have {got}", remedy="Build it again.")
    if more := inputs.keys() - {spec.name for spec in session.inputs}:
        raise ModelMismatch(f"the golden inputs have {min(more)}, which is no input", remedy="Build it again.")
    return session.run(inputs)


def _other_tensors(manifest: Manifest, session: Session) -> str | None:
    """What the manifest says otherwise of inputs and outputs; shapes aside, on which backends do not agree."""
    for kind, said, specs in (
        ("inputs", manifest.inputs, session.inputs),
        ("outputs", manifest.outputs, session.outputs),
    ):
        there = {spec.name: str(spec.dtype) for spec in specs}
        if _dtypes(said) != there:
            return f"the manifest says of {kind} {_dtypes(said)}, and the model has {there}"
    return None


def _dtypes(tensors: tuple[Tensor, ...]) -> dict[str, str]:
    return {tensor.name: tensor.dtype for tensor in tensors}
