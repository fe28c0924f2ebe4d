"""Added latency at half load: the node's latency beyond that of broker and model alone.

Open loop: frames are sent when due, and latency counts from then. Half load is half of the slowest contender's
capacity, so none is near its limit. Added latency is the node's p50 or p99 minus that of the control (`control.py`) at
the same rate in the same repeat. Percentiles do not add up, so the p99 of one inference and two broker hops must be
measured in one place. For comparison, the report has the sum of the medians of one inference (batch 1, in a loop) and
two hops.

The node runs as its manual recommends for latency: `lanes: 0`, and a backend that computes in the calling thread.
"""

from __future__ import annotations

from benchmarks.data_path import vad
from benchmarks.harness.arena import Arena, Contender
from benchmarks.harness.cells import Cell, Options, cell, percentile, ratio
from benchmarks.harness.process import raw

MODEL = {
    "path": "package:silero_vad/data/silero_vad_16k_op15.onnx",
    "backend": "onnxruntime",  # computes in the calling thread
    "threads": 1,
    "constants": {"sr": 16_000},
    "state": {"state": "stateN"},
    "batch_axis": {"state": 1, "stateN": 1},
}
"""At half the load of a loop without batching there is little to batch, so this backend has the lowest latency."""


def run(options: Options) -> list[Cell]:
    """Voice activity, 64 streams, QoS 0."""
    sums: list[float] = []
    with Arena() as arena:
        loop = arena.add_peer("loop", "vad-paho")
        node = arena.add_node("node", {**vad.PIPELINE, "lanes": 0}, {"vad": MODEL})
        control = arena.add_peer("control", "vad", module="benchmarks.harness.control")
        contenders = (loop, control, node)
        payloads = arena.payloads(vad.sound())
        full = [arena.load(each, vad.STREAMS, payloads, options, window=vad.WINDOW).rate for each in contenders]
        rate = round(min(full) / 2)
        for _ in range(options.repeats):
            model_ms = raw("vad", min(options.seconds, 1.0) / 2, batches=[1])["1x1"]["call_ms"]
            hop = arena.load_broker(vad.STREAMS, payloads, options, rate, content_type="audio/pcm")
            sums.append(model_ms + 2 * percentile(hop.latencies_ms, 0.5))
            for each in contenders:
                arena.load(each, vad.STREAMS, payloads, options, rate=float(rate))
    at = f"at {rate} frames/s"
    cells = [cell("latency.vad.sum_p50", "one inference and two broker hops: sum of medians", sums, "ms", at)]
    for q in (0.5, 0.99):
        name = f"p{q * 100:.0f}"
        tail = {each.name: [percentile(run.latencies_ms, q) for run in each.runs[1:]] for each in contenders}
        base = tail[control.name]
        cells += [
            cell(f"latency.vad.{name}_{each.name}", f"{each.name}: {name}", tail[each.name], "ms", _lost(each))
            for each in contenders
        ]
        for each in (loop, node):
            key = f"latency.vad.added_{name}" + ("" if each is node else "_loop")
            added = [ours - theirs for ours, theirs in zip(tail[each.name], base, strict=True)]
            cells.append(cell(key, f"{each.name}: {name} added to one inference and two broker hops", added, "ms", at))
        per_loop = f"latency.vad.{name}_per_loop"
        cells.append(ratio(per_loop, f"{name}, node ÷ loop", tail[node.name], tail[loop.name], unit="latency ×"))
    return cells


def _lost(contender: Contender) -> str:
    lost, sent = sum(run.lost for run in contender.runs[1:]), sum(run.sent for run in contender.runs[1:])
    return f"{lost / sent:.1%} of the frames had no result" if lost > 0.001 * sent else ""
