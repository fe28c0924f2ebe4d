"""How much memory a model takes: measured in a process of its own, which does nothing else."""

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
    """The most bytes that loading a model and running it adds to a process that has the backend's library already.

    Args:
        settings: further fields of `SessionOptions`.
        inputs: an .npz file with the inputs of one run.
    Returns: that, rounded up to one of four steps between powers of two, so that it is the same next time.
    Raises: InferenceError: the process died.
    """
    asked = {"path": str(path), "backend": backend, "device": device, "settings": settings, "inputs": str(inputs)}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", __spec__.name],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        return rounded(int(done.stdout))
    except (subprocess.SubprocessError, ValueError, OSError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise InferenceError(
            f"The memory of {path.name} on {backend} cannot be measured: {''.join(last)}",
            remedy="Does it run at all? `hedgerow tune` on the file says more.",
        ) from error


def rounded(size: int) -> int:
    """A size, rounded up: 1, 1¼, 1½ or 1¾ times a power of two, of at least a megabyte."""
    step = max(1 << 20, (1 << max(0, (size - 1).bit_length() - 1)) // _STEPS)
    return -(-size // step) * step


def _main() -> None:
    import numpy as np

    from hedgerow import backends
    from hedgerow.backends.base import SessionOptions

    asked = json.load(sys.stdin)
    backend = backends.get(asked["backend"])
    backend.devices()  # loads the library and its devices
    with np.load(asked["inputs"], allow_pickle=False) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    session = backend.open(Path(asked["path"]), SessionOptions(device=asked["device"], **asked["settings"]))
    for _ in range(3):
        session.run(inputs)
    print(max(0, _status("VmHWM") - before))  # noqa: T201 - the answer


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} in /proc/self/status")


if __name__ == "__main__":
    _main()
