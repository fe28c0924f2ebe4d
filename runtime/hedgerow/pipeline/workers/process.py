"""Main module of a worker process: builds the pipeline and runs the lists that the node sends."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import mmap
import os
import select
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.models.monitor.observations import Observations
from hedgerow.models.serving.observer import Observer
from hedgerow.models.serving.pool import ModelNotAssigned, ModelPool
from hedgerow.models.serving.warmup import prepare
from hedgerow.models.session.memory import resident_bytes
from hedgerow.pipeline.chain import progress
from hedgerow.pipeline.chain.progress import StageProgress, this_thread
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.local_pipeline import LocalPipeline
from hedgerow.pipeline.workers.pipe import pack, unpack
from hedgerow.telemetry import logs


def main(descriptor: int, shared: int, lifeline: int) -> None:
    """Build the pipeline that the node names, then run lists until the node closes the pipe.

    Args:
        descriptor: the pipe.
        shared: a file whose first bytes tell the node which stage runs.
        lifeline: a pipe whose other end closes when the node ends.
    """
    _end_with_node(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the node drains first, then closes the pipe
    if sys.stderr is not None:
        faulthandler.enable()  # a native crash leaves its stack in the log
        faulthandler.register(signal.SIGUSR2)  # so does a hang, before the node ends it
    this_thread.progress = StageProgress(memoryview(mmap.mmap(shared, mmap.PAGESIZE))[: progress.SIZE], shared=True)
    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):
        task = unpack(pipe.recv_bytes())
        events: list[tuple[str, dict[str, Any]]] = []
        pool = ModelPool(cores=task["cores"])
        try:
            config = NodeConfig.model_validate(task["config"])
            logs.configure(config.log.level, config.log.format)
            pool = ModelPool(cores=task["cores"], state_dir=config.node.state_dir)
            for version in map(ModelVersion.from_dict, task["versions"]):
                pool.assign(version.name, version)
            built = LocalPipeline(
                config,
                task["name"],
                Path(task["base_dir"]),
                pool,
                task["cores"],
                lambda kind, detail: events.append((kind, detail)),
            )
            for slot in pool.slots():
                if slot.name in task["warm_up"] and slot.serving is not None:
                    prepare(slot.serving, task["warm_up"][slot.name])
        except ModelNotAssigned as error:
            pipe.send_bytes(pack({"not_assigned": (error.model, error.path)}))
            return
        except HedgerowError as error:
            pipe.send_bytes(pack({"error": (error.code, str(error), error.remedy, error.outside)}))
            return
        this_thread.progress.leave()
        models = [model.as_dict() for model in built.models()]
        pipe.send_bytes(pack({"models": models, "stateful": built.stateful, "batch": built.batch}))
        try:
            _serve(pipe, built, pool, events)
        finally:
            built.close()
            pool.close()
            logs.report_repeats(final=True)


def _end_with_node(lifeline: int) -> None:
    """Have the kernel kill this process and its children when the node ends: a stage that hangs reads no pipe."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())  # the node starts each worker in a group of its own
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it has ended already
        sys.exit(1)


def _serve(pipe: Connection, built: LocalPipeline, pool: ModelPool, events: list[tuple[str, dict[str, Any]]]) -> None:
    models_sent_at = 0.0
    observed = _ObservedModel(None, pool)
    while True:
        frames, forgotten, model = unpack(pipe.recv_bytes())
        for stream in forgotten:
            built.forget(stream)
        if model != observed.name:
            observed.end()
            observed = _ObservedModel(model, pool)
        deliveries = [_delivery(*fields) for fields in frames]
        completed = built.run(deliveries, 0)
        position = {id(delivery): index for index, delivery in enumerate(deliveries)}
        settlements = [
            (position[id(each.delivery)], each.results, each.dropped, each.dead, each.reason)
            for each in completed.settlements
        ]
        with_results = [index for index, results, *_ in settlements if results]
        new_events = events[:]
        del events[: len(new_events)]
        logs.report_repeats()
        models: list[dict[str, Any]] = []
        if time.monotonic() - models_sent_at > 1.0:  # counters need not be sent with every list
            models_sent_at = time.monotonic()
            models = [model.as_dict() for model in built.models()]
        last = max(with_results, default=None)
        observations = observed.observations()
        ran = (settlements, completed.timings, completed.columns)
        pipe.send_bytes(pack((*ran, last, new_events, built.failing(), models, observations)))


class _ObservedModel:
    """Observes a model in this process until `end`; None: observes nothing."""

    def __init__(self, name: str | None, pool: ModelPool) -> None:
        self.name = name
        slots = pool.slots(name) if name is not None else ()
        self._observers = [Observer(slot.serving) for slot in slots if slot.serving is not None]
        self._resident = resident_bytes() if self._observers else 0

    def observations(self) -> dict[str, Any] | None:
        if not self._observers:
            return None
        growth = Observations(growth_bytes=max(0, resident_bytes() - self._resident))
        return sum((observer.observations() for observer in self._observers), growth).as_dict()

    def end(self) -> None:
        for observer in self._observers:
            observer.stop()


def _delivery(
    topic: str,
    payload: bytes,
    flags: int,
    packet_id: int,
    received_at: float,
    raw_properties: bytes,
    stream: str,
    sequence: int,
    dispatched_at: float,
) -> Delivery:
    message = Message(topic, payload, flags, packet_id, received_at, raw_properties)
    delivery = Delivery(message, stream, sequence, None)
    delivery.dispatched_at = dispatched_at
    return delivery


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
