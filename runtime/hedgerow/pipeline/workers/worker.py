"""One worker process, seen from the node: started, given lists, watched, joined."""

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
class WatchedModel:
    """A model that a worker is to watch, and what came of it; another one for another model, since lists are under way.

    Attributes:
        model: its name; None: none.
        told: what the process has told since it was started.
        ended: what those before it had told, and that they crashed.
    """

    model: str | None = None
    told: Observations = field(default_factory=Observations)
    ended: Observations = field(default_factory=Observations)

    @property
    def conduct(self) -> Observations:
        """What all processes have told since it is watched."""
        return self.ended + self.told

    def crashed(self, lost: Observations) -> None:
        """The process has ended: count that, and what was under way in it."""
        told, self.told = self.told, Observations()
        self.ended += told + lost + Observations(crashes=1)


class Worker:
    """One process, seen from the node.

    Args:
        task: the pipeline it is to build, for `pipeline/workers/process.py`.
    Attributes:
        models: those it runs, as it told last.
        failing: its stages that keep failing.
        forgotten: streams it is to forget with its next list.
        watched: the model it watches.
        pid, returncode: of the process; `returncode` once it has ended.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.models: list[ServedModel] = []
        self.failing: list[str] = []
        self.forgotten: list[str] = []
        self.watched = WatchedModel()
        self.pid = 0
        self.returncode: int | None = None
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Start the process and send it what to build. Raises: OSError: it cannot be started."""
        ours, theirs = socket.socketpair()
        # What HEDGEROW_* say is in the configuration that the node sends, but for secrets, which are not for stages.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEDGEROW_")}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "hedgerow.pipeline.workers.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the node, which then hangs up
            )
        self.pid = self._process.pid
        self._pipe = Connection(ours.detach())
        self._pipe.send_bytes(pack(self._task))

    def wait_ready(self) -> None:
        """Raises: ModelNotAssigned, HedgerowError: the pipeline cannot be built there."""
        pipe = self._open_pipe()
        if not pipe.poll(_START_S):
            raise TimeoutError(f"a worker did not get ready within {_START_S:.0f} s")
        answer = unpack(pipe.recv_bytes())
        if "awaited" in answer:
            raise ModelNotAssigned(*answer["awaited"])
        if "error" in answer:
            code, message, remedy = answer["error"]
            error = HedgerowError(message, remedy=remedy)
            error.code = code
            raise error
        self.models = [ServedModel.from_dict(fields) for fields in answer["models"]]

    def ask(self, deliveries: Sequence[Delivery]) -> tuple[Any, Any, Any, Any]:
        """Have a list run. Raises: EOFError, OSError: the process ended."""
        pipe = self._open_pipe()
        forgotten, self.forgotten = self.forgotten, []
        watched = self.watched
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
        pipe.send_bytes(pack((frames, forgotten, watched.model)))
        settlements, timings, last, events, failing, models, conduct = unpack(pipe.recv_bytes())
        self.failing = failing
        if conduct is not None:
            watched.told = Observations(**conduct)
        if models:
            self.models = [ServedModel.from_dict(fields) for fields in models]
        return settlements, timings, last, events

    def hang_up(self) -> None:
        """Close the pipe, on which the process ends."""
        if self._pipe is not None:
            self._pipe.close()

    def join(self) -> None:
        """Wait until the process has ended; end it if it does not."""
        self.hang_up()
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
