"""Measures the cost of each step of a frame in a lane: voice activity, in one process, without broker or other threads.

    python -m benchmarks.data_path.steps --batch 20
    python -m benchmarks.data_path.steps --batch 20 --frames   # without columns
    python -m benchmarks.data_path.steps --batch 20 --noop     # a stage that does nothing

CPU time of the thread, best of many lists: other work on the machine hardly matters, so a change of a microsecond
shows. Of the event loop's part only settlement and packets are included; see docs/contributor/performance.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from benchmarks.data_path import vad
from benchmarks.stages.noop import Noop
from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.frame import Frame
from hedgerow.models.serving.observer import Observer
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Pins
from hedgerow.pipeline.built_pipeline import Completed
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.pipeline.chain.chain import Chain, ChainStep
from hedgerow.pipeline.chain.live import Live
from hedgerow.pipeline.delivery import BatchSettlement, Delivery, Settlement
from hedgerow.pipeline.frame_maker import FrameMaker
from hedgerow.pipeline.result_encoder import ResultEncoder
from hedgerow.pipeline.settlement.settler import Settler
from hedgerow.stage import Stage, StageConfig
from hedgerow.telemetry.tally import Tally

T = TypeVar("T")
_WARMUP = 3
_BACKEND = "stage infer: backend alone"


class Stopwatch:
    """CPU time by step, one entry per list of frames."""

    def __init__(self) -> None:
        self.durations_ns: defaultdict[str, list[int]] = defaultdict(list)

    def __call__(self, step: str, work: Callable[[], T]) -> T:
        """Do some work and record its CPU time."""
        began = time.thread_time_ns()
        result = work()
        self.durations_ns[step].append(time.thread_time_ns() - began)
        return result


def measure(
    batch: int,
    lists: int,
    *,
    watched: bool = False,
    columns: bool = True,
    stages: Sequence[tuple[str, Stage[Any]]] = (),
) -> dict[str, float]:
    """Return microseconds per frame, by step.

    Args:
        watched: observe the outputs, as during canary analysis.
        columns: let frames travel as columns where stages take them.
        stages: other stages than those of voice activity.
    """
    pipeline = {"subscribe": "n/#", **vad.PIPELINE}
    config = NodeConfig.model_validate({"models": {"vad": vad.MODEL}, "pipelines": {"main": pipeline}})
    pool = ModelPool(cores=1)
    main = config.pipelines["main"]
    context = PipelineContext("main", config.models, Path(), pool)
    chain = build_chain(stages or main.stages, context)
    encoder = ResultEncoder(config.node.address, "main", main.publish, "0" * 12, [])
    sound, watch = vad.sound(), Stopwatch()
    bench = _Bench(chain, encoder, FrameMaker(main), watch, columns=columns and chain.first_columnar is not None)
    if context.slots:
        engine: Any = context.slots[0].serving
        if watched:
            Observer(engine)
        _watch_backend(engine._session, watch)
    try:
        for number in range(_WARMUP + lists):
            if number == _WARMUP:
                watch.durations_ns.clear()  # includes the slot's comparison of a batch with single runs
            payloads = [sound[(number + stream) % len(sound)] for stream in range(batch)]
            watch("pin and unpin versions", partial(_pin, context))
            with Pins(context.slots):
                bench.run(payloads, number)
    finally:
        chain.close()
        context.release()
        pool.close()
    return {step: min(durations) / 1e3 / batch for step, durations in watch.durations_ns.items()}


def _watch_backend(session: Any, watch: Stopwatch) -> None:
    """Measure the backend's part of `infer`."""
    run, bound = session.run, session.bound

    def watched(rows: int) -> Any:
        request = bound(rows)
        if request is not None and "run" not in vars(request):
            request.run = partial(watch, _BACKEND, request.run)
        return request

    if (request := bound(1)) is None:
        session.run = lambda inputs: watch(_BACKEND, lambda: run(inputs))
    else:
        request.release()
        session.bound = watched


def _pin(context: PipelineContext) -> None:
    with Pins(context.slots):
        pass


class _Bench:
    """The way of a list through a lane and settlement, with each step measured."""

    def __init__(
        self, chain: Chain, encoder: ResultEncoder, maker: FrameMaker, watch: Stopwatch, *, columns: bool
    ) -> None:
        self._chain, self._encoder, self._maker, self._watch, self._columns = chain, encoder, maker, watch, columns
        self._link = _Link()
        self._tally = Tally()
        link: Any = self._link
        self._settler = Settler(link, link, self._tally, lambda *_: None, lambda: None, None)
        publish = SimpleNamespace(qos=0)
        self._built: Any = SimpleNamespace(name="main", encoder=encoder, config=SimpleNamespace(publish=publish))

    def run(self, payloads: list[bytes], number: int) -> None:
        now, offset = time.monotonic(), time.time() - time.monotonic()
        deliveries = [
            Delivery(Message(f"n/{stream}", payload, 0, 0, now), f"n/{stream}", number, None)
            for stream, payload in enumerate(payloads)
        ]
        self._tally.held.update(deliveries)
        watch = self._watch
        made = watch("frames", lambda: self._maker.frames(deliveries, offset, columns=self._columns))
        live = Live(made.batch, made.rows, made.frames, made.owners)
        for step in self._chain.steps:
            live = watch(f"stage {step.name}", partial(self._step, step, live))
        timings = [(step.name, 0.001, 1) for step in self._chain.steps]
        completed = watch("encode results", lambda: self._encoded(deliveries, live, timings))
        watch("settle, encode packets", lambda: self._settle(completed))
        self._link.write()

    def _step(self, step: ChainStep, live: Live) -> Live:
        if live.batch is not None:
            after, others, _ = step.run_batch(live)
            return (
                after if not others else Live(after.batch, after.rows, [_only(each) for each in others], after.owners)
            )
        return live._replace(frames=[_only(each) for each in step.run(live.frames)])

    def _encoded(self, deliveries: list[Delivery], live: Live, timings: Any) -> Completed:
        encoder, at = self._encoder, time.time()
        lineage = encoder.lineage(timings)
        single = [
            Settlement(deliveries[owner], encoder.results([frame], lineage, 0.1, at))
            for owner, frame in zip(live.owners, live.frames, strict=True)
        ]
        if live.batch is None:
            return Completed([single], timings)
        results: Any = encoder.batch(live.batch, lineage, [0.1] * len(live.rows), at)
        owners = [deliveries[row] for row in live.rows]
        return Completed([BatchSettlement(owners, results), single], timings)

    def _settle(self, completed: Completed) -> None:
        for group in completed.groups:
            if isinstance(group, BatchSettlement):
                self._settler.settle_batch(self._built, group)
            else:
                self._settler.settle(self._built, group)


class _Link(Client):
    """A client whose link is up and writes nowhere."""

    connected = True
    max_packet_bytes = 1 << 28

    def __init__(self) -> None:
        super().__init__(ClientOptions(url="mqtt://nowhere"), lambda _: None)
        link: Any = SimpleNamespace(flush_soon=lambda: None)
        self._session.link = link
        self._session.outbound.link_up(session_present=True, receive_maximum=65_535, max_packet_bytes=1 << 28)

    def write(self) -> None:
        """Take all packets, as the link does when it writes."""
        while self._session.outbound.take() is not None:
            pass


def _only(outcome: Any) -> Frame:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome if isinstance(outcome, Frame) else next(iter(outcome))


def main() -> None:
    """Print the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=20, help="frames in a list")
    parser.add_argument("--lists", type=int, default=300)
    parser.add_argument("--watched", action="store_true", help="observe the outputs, as during canary analysis")
    parser.add_argument("--frames", action="store_true", help="frame by frame, without columns")
    parser.add_argument("--noop", action="store_true", help="a stage that does nothing, instead of voice activity")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    stages = [("noop", Noop(StageConfig()))] if args.noop else []
    steps = measure(args.batch, args.lists, watched=args.watched, columns=not args.frames, stages=stages)
    if args.json:
        print(json.dumps(steps, indent=1))
        return
    for step, cost in steps.items():
        print(f"{step:34}{cost:8.2f} µs")
    whole = sum(cost for step, cost in steps.items() if step != _BACKEND)
    print(f"{'total':34}{whole:8.2f} µs")


if __name__ == "__main__":
    main()
