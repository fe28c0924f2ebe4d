"""What runs models. Vendors' libraries are imported here and nowhere else, and only when they are first used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hedgerow.backends.base import Backend
from hedgerow.backends.onnxruntime import OnnxRuntime
from hedgerow.backends.openvino import OpenVino
from hedgerow.errors import BackendMissing, ConfigError, ModelUnreadable

_BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (OnnxRuntime(), OpenVino())}


def backends() -> tuple[Backend, ...]:
    """Every backend Hedgerow knows, installed or not, the one to try first in front."""
    return tuple(_BACKENDS.values())


class LocalDevices(Mapping[str, tuple[str, ...]]):
    """Devices of this machine by installed backend. A library is loaded when its devices are looked at, and no sooner."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name not in self:
            raise KeyError(name)
        try:
            return tuple(_BACKENDS[name].devices())
        except BackendMissing:  # installed, and cannot be loaded
            return ()

    def __contains__(self, name: object) -> bool:
        return any(name == there for there in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, backend in _BACKENDS.items() if backend.installed is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def get(name: str) -> Backend:
    """The backend of that name.

    Raises: ConfigError: there is none.
    """
    try:
        return _BACKENDS[name]
    except KeyError:
        raise ConfigError(f"No backend {name!r}", remedy=f"Use one of {', '.join(_BACKENDS)}, or `auto`.") from None


def candidates(path: Path, wanted: str = "auto") -> tuple[Backend, ...]:
    """The backends that may open a file, going by its ending, installed or not; the one to try first in front.

    Args:
        wanted: a backend's name, or `auto` for all that can.
    Raises:
        ModelUnreadable: none can, or not the one wanted.
        ConfigError: there is no backend of that name.
    """
    suffix = path.suffix.lower()
    able = tuple(backend for backend in backends() if suffix in backend.suffixes)
    if not able:
        endings = sorted(set().union(*(backend.suffixes for backend in backends())))
        raise ModelUnreadable(
            f"No backend opens {suffix or 'extensionless'} files such as {path.name}",
            remedy=f"Export the model to one of {', '.join(endings)}.",
        )
    if wanted == "auto":
        return able
    if get(wanted) not in able:
        raise ModelUnreadable(
            f"{wanted} does not open {suffix} files such as {path.name}",
            remedy=f"Set `backend: {able[0].name}`, or `auto`.",
        )
    return (get(wanted),)
