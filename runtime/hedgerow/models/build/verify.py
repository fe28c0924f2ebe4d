"""Verifies that a bundle's variants reproduce their golden outputs on this machine, on every backend and device they name.

Combinations that cannot be run are reported with the reason, and do not count as passed.
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
    """A backend and device on which to run a variant.

    Attributes:
        problem: why this machine cannot run it there; None: it can.
    """

    backend: str
    device: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class VerificationOutcome:
    """Result of verifying a variant on one backend and device.

    Attributes:
        worst: deviation of the worst value, in tolerances; None: nothing was compared.
        detail: what was compared, what is wrong, or why it was not run.
    """

    variant: str
    backend: str
    device: str
    state: State
    detail: str
    worst: float | None = None


def device_choices(variant: Variant) -> list[DeviceChoice]:
    """Return every backend and device that a variant names, and whether this machine can use them."""
    found: list[DeviceChoice] = []
    free = free_bytes()
    for name in variant.needs.backends:
        if name not in _RUNNABLE:
            found.append(DeviceChoice(name, variant.needs.devices[0], f"Hedgerow has no backend {name}"))
            continue
        try:
            available = backends.get(name).devices()
        except BackendMissing as error:
            found.append(DeviceChoice(name, variant.needs.devices[0], str(error)))
            continue
        for device in variant.needs.devices:
            problem = None
            if device not in available:
                problem = f"{name} has no device {device} on this machine (available: {', '.join(available)})"
            elif free is not None and variant.needs.memory_bytes > free:
                problem = f"it needs {variant.needs.memory_bytes:,} bytes of memory, but {free:,} are free"
            found.append(DeviceChoice(name, device, problem))
    return found


def serving_config(bundle: Bundle, variant: Variant, choice: DeviceChoice) -> ModelConfig:
    """Return the configuration to run a variant on a backend and device, with its manifest's settings."""
    path = str(bundle.path(variant.files[0]))
    own = {"path": path, "backend": choice.backend, "device": choice.device, "if_device_missing": "fail"}
    return ModelConfig.model_validate({**bundle.manifest.serving, **own})


def verify_golden(bundle: Bundle, variant: Variant) -> Iterator[VerificationOutcome]:
    """Run a variant's golden cases on every backend and device it names. The caller has verified its files.

    Raises: BadArrays: a golden file cannot be read.
    """
    for choice in device_choices(variant):
        if choice.problem is not None:
            yield VerificationOutcome(variant.name, choice.backend, choice.device, "not-run", choice.problem)
        else:
            yield _run(bundle, variant, choice)


def _run(bundle: Bundle, variant: Variant, choice: DeviceChoice) -> VerificationOutcome:
    manifest = bundle.manifest
    # One thread, as when the cases were recorded, so that sums are added in the same order.
    changes = {"threads": 1, "streams": 1, "static_batches": False}
    config = serving_config(bundle, variant, choice).model_copy(update=changes)
    source = ModelFile(bundle.path(variant.files[0]), variant.model_digest)
    try:
        session = load(source, config, 1, None).session
    except DeviceMissing as error:  # the library supports the device, but its driver is missing
        return VerificationOutcome(variant.name, choice.backend, choice.device, "not-run", str(error))
    except HedgerowError as error:
        return VerificationOutcome(variant.name, choice.backend, choice.device, "failed", str(error))
    try:
        if problem := _tensor_mismatch(manifest, session):
            return VerificationOutcome(variant.name, choice.backend, session.device, "failed", problem)
        if not any(variant.name in case.outputs for case in manifest.golden):
            return VerificationOutcome(
                variant.name, choice.backend, session.device, "not-run", "it loads, but has no golden cases"
            )
        outcome = check_golden(lambda inputs: _checked(session, inputs), bundle.folder, manifest, variant)
        state: State = "passed" if outcome.passed else "failed"
        return VerificationOutcome(variant.name, choice.backend, session.device, state, outcome.detail, outcome.worst)
    finally:
        session.close()


def _checked(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a batch, after checking that it fits: some backends would convert one that does not."""
    for spec in session.inputs:
        array = inputs.get(spec.name)
        if array is None or not spec.accepts(array):
            actual = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise ModelMismatch(
                f"the model takes {spec}, but the golden inputs have {actual}", remedy="Build the bundle again."
            )
    if extra := inputs.keys() - {spec.name for spec in session.inputs}:
        raise ModelMismatch(
            f"the golden inputs have {min(extra)}, which is not an input", remedy="Build the bundle again."
        )
    return session.run(inputs)


def _tensor_mismatch(manifest: Manifest, session: Session) -> str | None:
    """Describe tensors that differ from the manifest's, not counting shapes, on which backends disagree; None: none."""
    for kind, expected, specs in (
        ("inputs", manifest.inputs, session.inputs),
        ("outputs", manifest.outputs, session.outputs),
    ):
        actual = {spec.name: str(spec.dtype) for spec in specs}
        if _dtypes(expected) != actual:
            return f"the manifest lists the {kind} {_dtypes(expected)}, but the model has {actual}"
    return None


def _dtypes(tensors: tuple[Tensor, ...]) -> dict[str, str]:
    return {tensor.name: tensor.dtype for tensor in tensors}
