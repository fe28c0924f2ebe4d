"""Children of tests, benchmarks and demos begin with default signals, and end with whoever started them."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hedgerow.testing import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what this needs")

PATIENCE_S = 60
WAYS = {
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
    """A process that runs a script, in a shell that has done something first."""
    modules = "asyncio, os, pathlib, psutil, signal, sys, threading, time"
    command = [sys.executable, "-c", f"import {modules}\nfrom hedgerow.testing import processes\n{script}"]
    shell = ["sh", "-c", f'{prefix} exec "$@"', "-", *command]
    return processes.start(shell, cwd=tmp_path, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("way", WAYS)
def test_one_ends_with_a_parent_that_is_killed(tmp_path: Path, way: str) -> None:
    """And not with the thread that started it."""
    child = "import pathlib, time; pathlib.Path('runs').touch(); time.sleep(3600)"
    script = f"""
command = [sys.executable, "-c", {child!r}]
{WAYS[way]}
while not pathlib.Path("runs").exists(): time.sleep(0.01)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = parent(tmp_path, script)
    said, _ = process.communicate(timeout=PATIENCE_S)

    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(said)).wait(PATIENCE_S)


@pytest.mark.parametrize("way", ["start", "start_async"])
def test_signals_that_the_parent_ignores_end_it(tmp_path: Path, way: str) -> None:
    """As when a shell started the tests in the background."""
    wait = "child.wait()" if way == "start" else "loop.run_until_complete(child.wait())"
    script = f"""
command = ["sleep", "3600"]
for name in ("INT", "QUIT", "TERM", "HUP"):
    {WAYS[way]}
    while b"sleep" not in pathlib.Path(f"/proc/{{child.pid}}/cmdline").read_bytes().split(b"\\0")[0]: pass
    child.send_signal(signal.Signals[f"SIG{{name}}"])
    print({wait})
"""
    process = parent(tmp_path, script, "trap '' INT QUIT TERM HUP;")
    said, _ = process.communicate(timeout=PATIENCE_S)

    assert [-int(word) for word in said.split()] == [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP]


def test_one_that_does_not_end_when_asked_is_killed() -> None:
    process = processes.start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    processes.end(process, 0.1)
    process.stdout.close()

    assert process.returncode == -signal.SIGKILL
