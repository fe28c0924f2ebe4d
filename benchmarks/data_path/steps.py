"""Measures the cost of each step of a frame in a lane: voice activity, in one process, without broker or other threads.

    python -m benchmarks.data_path.steps --batch 20

CPU time of the thread, best of many lists: other work on the machine hardly matters, so a change of a microsecond
shows. The event loop's part is not included; see docs/contributor/performance.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.data_path import vad
from hedgerow.bus.message import Message
from hedgerow.config import NodeConfig
from hedgerow.frame import Frame
from hedgerow.models.serving.observer import Observer
from hedgerow.models.serving.pool import ModelPool
from hedgerow.models.serving.slot import Pins
from hedgerow.pipeline.chain.build import PipelineContext, build_chain
from hedgerow.pipeline.chain.chain import Chain
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.frame_maker import FrameMaker
from hedgerow.pipeline.result_encoder import ResultEncoder

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


def measure(batch: int, lists: int, *, watched: bool = False) -> dict[str, float]:
    """Return microseconds per frame, by step.

    Args:
        watched: observe the outputs, as during canary analysis.
    """
    pipeline = {"subscribe": "n/#", **vad.PIPELINE}
    config = NodeConfig.model_validate({"models": {"vad": vad.MODEL}, "pipelines": {"main": pipeline}})
    pool = ModelPool(cores=1)
    main = config.pipelines["main"]
    context = PipelineContext("main", config.models, Path(), pool)
    chain = build_chain(main.stages, context)
    encoder = ResultEncoder(config.node.address, "main", main.publish, "0" * 12, [])
    maker, sound, watch = FrameMaker(main), vad.sound(), Stopwatch()
    engine: Any = context.slots[0].serving
    session = engine._session
    run = session.run
    if watched:
        Observer(engine)
    session.run = lambda inputs: watch(_BACKEND, lambda: run(inputs))
    try:
        for number in range(_WARMUP + lists):
            if number == _WARMUP:
                watch.durations_ns.clear()  # includes the slot's comparison of a batch with single runs
            payloads = [sound[(number + stream) % len(sound)] for stream in range(batch)]
            watch("pin and unpin versions", partial(_pin, context))
            with Pins(context.slots):
                _one(chain, encoder, maker, watch, payloads, number)
    finally:
        chain.close()
        context.release()
        pool.close()
    return {step: min(durations) / 1e3 / batch for step, durations in watch.durations_ns.items()}


def _pin(context: PipelineContext) -> None:
    with Pins(context.slots):
        pass


def _one(
    chain: Chain, encoder: ResultEncoder, maker: FrameMaker, watch: Stopwatch, payloads: list[bytes], number: int
) -> None:
    now, offset = time.monotonic(), time.time() - time.monotonic()
    deliveries = [
        Delivery(Message(f"n/{stream}", payload, 0, 0, now), f"n/{stream}", number, None)
        for stream, payload in enumerate(payloads)
    ]
    live: list[Frame] = watch(
        "frames", lambda: [maker.complete(maker.bare(each, offset), each.message) for each in deliveries]
    )
    for step in chain.steps:
        outcomes = watch(f"stage {step.name}", partial(step.run, live))
        live = [_only(each) for each in outcomes]
    lineage = encoder.lineage([(step.name, 0.001, 1) for step in chain.steps])
    at = time.time()
    watch("encode results", lambda: [encoder.results([frame], lineage, 0.1, at) for frame in live])


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
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    steps = measure(args.batch, args.lists, watched=args.watched)
    if args.json:
        print(json.dumps(steps, indent=1))
        return
    for step, cost in steps.items():
        print(f"{step:34}{cost:8.2f} µs")
    whole = sum(cost for step, cost in steps.items() if step != _BACKEND)
    print(f"{'total':34}{whole:8.2f} µs")


if __name__ == "__main__":
    main()
