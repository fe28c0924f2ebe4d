"""The node's end of one worker process: starts it, sends it lists, and joins it."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

from hedgerow.errors import HedgerowError
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.pool import ModelNotAssigned
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.models.session.memory import resident_bytes
from hedgerow.pipeline.chain import progress
from hedgerow.pipeline.chain.progress import StageCall, StageProgress
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.workers.pipe import pack, unpack

_START_S: Final = 300.0
_STOP_S: Final = 5.0

CRASHED: Final = "crashed"
HUNG: Final = "stage-timeout"
OVER_MEMORY: Final = "memory"
NOT_STARTED: Final = "not-started"
STOPPED: Final = "stopped"


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker process ended.

    Attributes:
        reason: `CRASHED`, or why the node killed it, or that it did not start.
        how: as a clause: "was killed by SIGSEGV".
        call: the stage it was in; None: none.
        returncode: exit status, or the negative number of the signal; None: it was never started.
    """

    reason: str
    how: str
    call: StageCall | None
    returncode: int | None


@dataclass(slots=True)
class WorkerObservations:
    """Observations of a model by one worker, across restarts of its process.

    Observing another model needs another object, because a list in flight still reports on the old one.

    Attributes:
        model: name of the model; None: no model is observed.
        current: last report of the running process.
        previous: last reports and crashes of the processes before it.
    """

    model: str | None = None
    current: Observations = field(default_factory=Observations)
    previous: Observations = field(default_factory=Observations)

    @property
    def total(self) -> Observations:
        """Observations of all processes since observing started."""
        return self.previous + self.current

    def crashed(self, lost: Observations) -> None:
        """Count a crash of the process, and the frames lost with it."""
        current, self.current = self.current, Observations()
        self.previous += current + lost + Observations(crashes=1)

    def replaced(self) -> None:
        """Go on with another process, although this one did not crash."""
        current, self.current = self.current, Observations()
        self.previous += current


class Worker:
    """One worker process.

    Args:
        task: the pipeline to build, for `process.py`.
    Attributes:
        models: models it runs, as last reported.
        failing: stages whose circuit breaker is open.
        forgotten: streams to forget; sent with the next list.
        observed: the model to observe, and its observations.
        pid: id of the process.
        frames: frames it has run.
        running: number of frames in the list in progress; 0: none is.
        memory_bytes: resident memory when last measured.
        stateful: names of the stages that keep state by stream.
        batch: most frames in one list.
        progress: the stage it is in.
        ready: its pipeline is built.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.models: list[ServedModel] = []
        self.failing: list[str] = []
        self.forgotten: list[str] = []
        self.observed = WorkerObservations()
        self.pid = 0
        self.frames = 0
        self.running = 0
        self.memory_bytes = 0
        self.stateful: list[str] = []
        self.batch = 0
        self.ready = False
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._socket: socket.socket | None = None
        self._lifeline: int | None = None
        self._memory = os.memfd_create("hedgerow-progress")
        os.ftruncate(self._memory, mmap.PAGESIZE)
        self.progress = StageProgress(memoryview(mmap.mmap(self._memory, mmap.PAGESIZE))[: progress.SIZE])
        self._killed_for = ""
        self._interrupted: StageCall | None = None

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self._cut_lifeline()
            os.close(self._memory)

    def start(self) -> None:
        """Start the process and send it the task.

        Raises: OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        # HEDGEROW_* overrides are in the task already, except for secrets, which stages must not see.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        lifeline, self._lifeline = os.pipe()
        descriptors = (theirs.fileno(), self._memory, lifeline)
        self.progress.leave()
        self.frames = self.running = self.memory_bytes = 0
        self.ready = False
        self._killed_for, self._interrupted = "", None
        with theirs, os.fdopen(lifeline, "rb"):
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "hedgerow.pipeline.workers.process", *map(str, descriptors)],
                pass_fds=descriptors,
                env=environment,
                start_new_session=True,  # Ctrl-C must reach only the node, which then closes the pipe
            )
        self.pid = self._process.pid
        self._socket = ours
        self._pipe = Connection(os.dup(ours.fileno()))
        self._pipe.send_bytes(pack(self._task))

    def wait_ready(self) -> None:
        """Wait until the pipeline is built.

        Raises:
            ModelNotAssigned: the region has not assigned a version yet.
            HedgerowError: the pipeline cannot be built.
            EOFError, OSError: the process ended or is not ready in time.
        """
        pipe = self._open_pipe()
        if not pipe.poll(_START_S):
            raise TimeoutError(f"a worker was not ready within {_START_S:.0f} s")
        reply = unpack(pipe.recv_bytes())
        if "not_assigned" in reply:
            raise ModelNotAssigned(*reply["not_assigned"])
        if "error" in reply:
            code, message, remedy, outside = reply["error"]
            error = HedgerowError(message, remedy=remedy, outside=outside)
            error.code = code
            raise error
        self.models = [ServedModel.from_dict(fields) for fields in reply["models"]]
        self.stateful, self.batch, self.ready = reply["stateful"], reply["batch"], True

    def run(self, deliveries: Sequence[Delivery]) -> tuple[Any, Any, Any, Any, Any]:
        """Run a list; return settlements, timings, frames run as columns, the position of the last frame with results, and events.

        Raises: EOFError, OSError: the process ended.
        """
        pipe = self._open_pipe()
        forgotten, self.forgotten = self.forgotten, []
        observed = self.observed
        frames = [
            (
                delivery.message.topic,
                delivery.message.payload,
                delivery.message.qos << 1,
                delivery.message.packet_id,
                delivery.message.received_at,
                delivery.message.raw_properties,
                delivery.stream,
                delivery.sequence,
                delivery.dispatched_at,
            )
            for delivery in deliveries
        ]
        self.running = len(frames)
        pipe.send_bytes(pack((frames, forgotten, observed.model)))
        reply = pipe.recv_bytes()
        if self._interrupted is not None:
            self.kill(HUNG)
            raise EOFError("the worker was interrupted")
        self.running = 0
        self.frames += len(frames)
        settlements, timings, columns, last, events, failing, models, observations = unpack(reply)
        self.failing = failing
        if observations is not None:
            observed.current = Observations(**observations)
        if models:
            self.models = [ServedModel.from_dict(fields) for fields in models]
        return settlements, timings, columns, last, events

    def measure(self) -> int:
        """Return its resident memory in bytes, and remember it."""
        self.memory_bytes = resident_bytes(self.pid) if self._process is not None else 0
        return self.memory_bytes

    def has_ended(self) -> bool:
        """Whether the process has ended; its exit status can still be read."""
        process = self._process
        return process is None or _exited(process)

    def call(self) -> StageCall | None:
        """Return the stage in progress; None: no list is. Outside the stages it is the last step, encoding results."""
        return self.progress.now() or StageCall(-1, self.frames, 0, self.running) if self.running else None

    def interrupt(self, call: StageCall) -> None:
        """End a list whose stage hangs: first make the process write its stack to its log, then, called again, kill it.

        Whatever it replies after that is discarded: the signal may have interrupted native code, which then gives a wrong
        result.

        Args:
            call: the call that hangs; nothing happens if it has returned since.
        """
        if self._interrupted is not None:
            self.kill(HUNG)
            return
        self._interrupted = call  # before the check: the thread that gets the reply looks at it after the call
        if self.call() != call:
            self._interrupted = None
        elif not self.has_ended():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR2)

    def kill(self, reason: str) -> None:
        """(any thread) Kill the process and its children; the thread that waits for its reply then ends it."""
        if not self._killed_for and not self.has_ended():
            self._killed_for = reason
            self._kill_group()
        self.disconnect()

    def disconnect(self) -> None:
        """(any thread) End the connection, even if a child of the process holds it open; the process then ends."""
        connection = self._socket
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> WorkerEnd:
        """Disconnect and wait until the process has ended; kill it if it takes too long. Return how it ended."""
        self.disconnect()
        call = self._interrupted or self.progress.now()
        connections, self._pipe, self._socket = (self._pipe, self._socket), None, None
        for connection in connections:
            if connection is not None:
                with suppress(OSError):  # another thread ends it too
                    connection.close()
        if self._process is None:
            self._cut_lifeline()
            return WorkerEnd(NOT_STARTED, "could not be started", call, None)
        process, self._process = self._process, None
        deadline = time.monotonic() + _STOP_S
        while not _exited(process) and time.monotonic() < deadline:
            time.sleep(0.005)
        by_itself = _exited(process)
        self._kill_group()  # and with it the children it leaves; its own status is fixed if it has ended
        code, self.running = process.wait(), 0
        self._cut_lifeline()
        if reason := HUNG if self._interrupted is not None else self._killed_for:
            return WorkerEnd(reason, "was killed by the node", call, code)
        return WorkerEnd(CRASHED, ended(code) if by_itself else "closed its pipe, and did not end", call, code)

    def _kill_group(self) -> None:
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads a session of its own

    def _cut_lifeline(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)

    def _open_pipe(self) -> Connection:
        if self._pipe is None or self._pipe.closed:
            raise EOFError("the worker is not running")
        return self._pipe


def _exited(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process has ended, without taking its exit status: until then no other gets its id."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # its status has been taken
        return True


def ended(returncode: int) -> str:
    """Return how a process ended, as a clause."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    number = -returncode
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    likely = ", probably because the machine or its container ran out of memory" if number == signal.SIGKILL else ""
    return f"was killed by {name}{likely}"
