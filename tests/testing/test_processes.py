"""Child processes start with default signal handlers and die with their parent."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hedgerow.testing import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

TIMEOUT_S = 60
METHODS = {
    "start": "child = processes.start(command)",
    "start in a thread": """
thread = threading.Thread(target=lambda: globals().update(child=processes.start(command)))
thread.start()
thread.join()""",
    "start_async": "loop = asyncio.new_event_loop(); child = loop.run_until_complete(processes.start_async(command))",
    "run": """
threading.Thread(target=processes.run, args=[command], daemon=True).start()
while not (children := psutil.Process().children()): pass
child = children[0]""",
}


def parent(tmp_path: Path, script: str, prefix: str = "") -> subprocess.Popen[str]:
    """Start a process that runs a script, in a shell that first runs `prefix`."""
    modules = "asyncio, os, pathlib, psutil, signal, sys, threading, time"
    command = [sys.executable, "-c", f"import {modules}\nfrom hedgerow.testing import processes\n{script}"]
    shell = ["sh", "-c", f'{prefix} exec "$@"', "-", *command]
    return processes.start(shell, cwd=tmp_path, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_child_dies_with_its_killed_parent(tmp_path: Path, method: str) -> None:
    """But not with the thread that started it."""
    child = "import pathlib, time; pathlib.Path('runs').touch(); time.sleep(3600)"
    script = f"""
command = [sys.executable, "-c", {child!r}]
{METHODS[method]}
while not pathlib.Path("runs").exists(): time.sleep(0.01)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = parent(tmp_path, script)
    output, _ = process.communicate(timeout=TIMEOUT_S)

    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(output)).wait(TIMEOUT_S)


@pytest.mark.parametrize("method", ["start", "start_async"])
def test_signals_ignored_by_the_parent_end_the_child(tmp_path: Path, method: str) -> None:
    """Shells ignore signals in background jobs, for instance."""
    wait = "child.wait()" if method == "start" else "loop.run_until_complete(child.wait())"
    script = f"""
command = ["sleep", "3600"]
for name in ("INT", "QUIT", "TERM", "HUP"):
    {METHODS[method]}
    while b"sleep" not in pathlib.Path(f"/proc/{{child.pid}}/cmdline").read_bytes().split(b"\\0")[0]: pass
    child.send_signal(signal.Signals[f"SIG{{name}}"])
    print({wait})
"""
    process = parent(tmp_path, script, "trap '' INT QUIT TERM HUP;")
    output, _ = process.communicate(timeout=TIMEOUT_S)

    assert [-int(word) for word in output.split()] == [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP]


def test_a_process_that_does_not_end_in_time_is_killed() -> None:
    process = processes.start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    processes.end(process, 0.1)
    process.stdout.close()

    assert process.returncode == -signal.SIGKILL
