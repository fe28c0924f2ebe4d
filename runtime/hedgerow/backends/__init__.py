"""Backends: the libraries that run models. Vendor packages are imported only in this package, on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hedgerow.backends.base import Backend
from hedgerow.backends.onnxruntime import OnnxRuntime
from hedgerow.backends.openvino import OpenVino
from hedgerow.errors import BackendMissing, ConfigError, ModelUnreadable

_BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (OnnxRuntime(), OpenVino())}


def backends() -> tuple[Backend, ...]:
    """Return every known backend in order of preference, installed or not."""
    return tuple(_BACKENDS.values())


class LocalDevices(Mapping[str, tuple[str, ...]]):
    """Devices of this machine by installed backend. Looking up a backend's devices loads its library."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name not in self:
            raise KeyError(name)
        try:
            return tuple(_BACKENDS[name].devices())
        except BackendMissing:  # installed, but cannot be loaded
            return ()

    def __contains__(self, name: object) -> bool:
        return any(name == installed for installed in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, backend in _BACKENDS.items() if backend.installed is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def get(name: str) -> Backend:
    """Return a backend by name.

    Raises: ConfigError: no backend has this name.
    """
    try:
        return _BACKENDS[name]
    except KeyError:
        raise ConfigError(
            f"Unknown backend {name!r}", remedy=f"Use one of {', '.join(_BACKENDS)}, or `auto`."
        ) from None


def candidates(path: Path, requested: str = "auto") -> tuple[Backend, ...]:
    """Return the backends that open files with this suffix in order of preference, installed or not.

    Args:
        requested: a backend's name, or `auto` for all of them.
    Raises:
        ModelUnreadable: no backend opens the file, or the requested one does not.
        ConfigError: no backend has this name.
    """
    suffix = path.suffix.lower()
    matching = tuple(backend for backend in backends() if suffix in backend.suffixes)
    if not matching:
        suffixes = sorted(set().union(*(backend.suffixes for backend in backends())))
        raise ModelUnreadable(
            f"No backend opens {suffix or 'extensionless'} files such as {path.name}",
            remedy=f"Export the model to one of {', '.join(suffixes)}.",
        )
    if requested == "auto":
        return matching
    if get(requested) not in matching:
        raise ModelUnreadable(
            f"{requested} does not open {suffix} files such as {path.name}",
            remedy=f"Set `backend: {matching[0].name}`, or `auto`.",
        )
    return (get(requested),)
