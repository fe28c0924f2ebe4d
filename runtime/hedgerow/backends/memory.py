"""Memory a model takes, measured in a separate process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hedgerow.errors import InferenceError

_TIMEOUT_S: Final = 600
_STEPS: Final = 4


def measure(path: Path, backend: str, device: str, settings: Mapping[str, Any], inputs: Path) -> int:
    """Return the peak memory in bytes that loading and running a model adds, the backend's library not counted.

    Args:
        settings: further fields of `SessionOptions`.
        inputs: an .npz file with the inputs of one run.
    Returns: bytes, rounded up to one of four steps per power of two, so that repeated measurements agree.
    Raises: InferenceError: the process failed.
    """
    request = {"path": str(path), "backend": backend, "device": device, "settings": settings, "inputs": str(inputs)}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", __spec__.name],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        return rounded(int(done.stdout))
    except (subprocess.SubprocessError, ValueError, OSError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise InferenceError(
            f"Cannot measure the memory of {path.name} on {backend}: {''.join(last)}",
            remedy="Check that the model runs at all: `hedgerow tune` on the file shows more.",
        ) from error


def rounded(size: int) -> int:
    """Round a size up to 1, 1¼, 1½ or 1¾ times a power of two, in steps of at least 1 MiB."""
    step = max(1 << 20, (1 << max(0, (size - 1).bit_length() - 1)) // _STEPS)
    return -(-size // step) * step


def _main() -> None:
    import numpy as np

    from hedgerow import backends
    from hedgerow.backends.base import SessionOptions

    request = json.load(sys.stdin)
    backend = backends.get(request["backend"])
    backend.devices()  # loads the library and its devices
    with np.load(request["inputs"], allow_pickle=False) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
    before = _status("VmRSS")
    session = backend.open(Path(request["path"]), SessionOptions(device=request["device"], **request["settings"]))
    for _ in range(3):
        session.run(inputs)
    print(max(0, _status("VmHWM") - before))  # noqa: T201 - read by `measure`


def _status(field: str) -> int:
    """Return a size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} in /proc/self/status")


if __name__ == "__main__":
    _main()
