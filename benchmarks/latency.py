"""Added latency at half load: how much later a result comes than broker and model alone would have it.

Open loop: frames are sent when they are due, and latency counts from then. What is subtracted is the median of one
inference (batch 1, in a loop) and twice the median of one pass through the broker at the same rate; a frame and its
result both pass it. Half load is half of what the slower contender manages.
"""

from __future__ import annotations

from benchmarks import vad
from benchmarks.arena import Arena, Contender
from benchmarks.cells import Cell, Options, cell, percentile, ratio
from benchmarks.process import raw


def run(options: Options) -> list[Cell]:
    """Voice activity, 64 streams, QoS 0."""
    bases: list[float] = []
    with Arena() as arena:
        loop, node = vad.contenders(arena)
        payloads = arena.payloads(vad.sound())
        full = [
            arena.load(contender, vad.STREAMS, payloads, options, window=vad.WINDOW).rate for contender in (loop, node)
        ]
        rate = round(min(full) / 2)
        for _ in range(options.repeats):
            model_ms = raw("vad", min(options.seconds, 1.0) / 2, batches=[1])["1x1"]["call_ms"]
            passing = arena.passing(vad.STREAMS, payloads, options, rate, content_type="audio/pcm")
            bases.append(model_ms + 2 * percentile(passing.latencies_ms, 0.5))
            for contender in (loop, node):
                arena.load(contender, vad.STREAMS, payloads, options, rate=float(rate))
    at = f"at {rate} frames/s"
    cells = [cell("latency.vad.base", "one inference and two passes through the broker", bases, "ms", at)]
    for contender in (loop, node):
        for q in (0.5, 0.99):
            name = f"p{q * 100:.0f}"
            ours = [percentile(run.latencies_ms, q) for run in contender.runs[1:]]
            added = [each - base for each, base in zip(ours, bases, strict=True)]
            suffix = "" if contender is node else "_loop"
            cells.append(cell(f"latency.vad.{name}{suffix}", f"{contender.name}: {name}", ours, "ms", at))
            note = _lost(contender)
            cells.append(
                cell(f"latency.vad.added_{name}{suffix}", f"{contender.name}: {name} added", added, "ms", note)
            )
    tail = {c.name: [percentile(run.latencies_ms, 0.99) for run in c.runs[1:]] for c in (loop, node)}
    name = "p99, node ÷ loop (less is better)"
    cells.append(ratio("latency.vad.p99_per_loop", name, tail["node"], tail["loop"], unit="latency ×"))
    return cells


def _lost(contender: Contender) -> str:
    share = sum(run.results for run in contender.runs[1:]) / sum(run.sent for run in contender.runs[1:])
    return "" if share > 0.99 else f"only {share:.0%} of the frames had a result"
