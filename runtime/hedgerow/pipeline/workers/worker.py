"""The node's end of one worker process: starts it, sends it lists, and joins it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

from hedgerow.errors import HedgerowError
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.pool import ModelNotAssigned
from hedgerow.models.serving.served_model import ServedModel
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.workers.pipe import pack, unpack

_START_S: Final = 300.0
_STOP_S: Final = 5.0


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
        returncode: exit status of the process once it has ended.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.models: list[ServedModel] = []
        self.failing: list[str] = []
        self.forgotten: list[str] = []
        self.observed = WorkerObservations()
        self.pid = 0
        self.returncode: int | None = None
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Start the process and send it the task.

        Raises: OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        # HEDGEROW_* overrides are in the task already, except for secrets, which stages must not see.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "hedgerow.pipeline.workers.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C must reach only the node, which then closes the pipe
            )
        self.pid = self._process.pid
        self._pipe = Connection(ours.detach())
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
            code, message, remedy = reply["error"]
            error = HedgerowError(message, remedy=remedy)
            error.code = code
            raise error
        self.models = [ServedModel.from_dict(fields) for fields in reply["models"]]

    def run(self, deliveries: Sequence[Delivery]) -> tuple[Any, Any, Any, Any]:
        """Run a list; return settlements, timings, the position of the last frame with results, and events.

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
        pipe.send_bytes(pack((frames, forgotten, observed.model)))
        settlements, timings, last, events, failing, models, observations = unpack(pipe.recv_bytes())
        self.failing = failing
        if observations is not None:
            observed.current = Observations(**observations)
        if models:
            self.models = [ServedModel.from_dict(fields) for fields in models]
        return settlements, timings, last, events

    def close_pipe(self) -> None:
        """Close the pipe; the process then ends."""
        if self._pipe is not None:
            self._pipe.close()

    def join(self) -> None:
        """Close the pipe and wait until the process has ended; kill it if it takes too long."""
        self.close_pipe()
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.returncode = self._process.returncode

    def _open_pipe(self) -> Connection:
        if self._pipe is None or self._pipe.closed:
            raise EOFError("the worker is not running")
        return self._pipe
