"""The way there and back: 64 bytes in, a stage that does nothing, a small result out."""

from __future__ import annotations

from benchmarks.arena import Arena, cheaper, costs
from benchmarks.cells import Cell, Options, ratio

STREAMS = 64
WINDOW = 512
_NOTE = {
    0: "",
    1: "the node acknowledges a frame when the broker has its result; the loops at once, and may lose it",
}


def run(options: Options) -> list[Cell]:
    """Saturating load, QoS 0 and 1; results have the QoS of the frames."""
    cells: list[Cell] = []
    for qos in (0, 1):
        pipeline = {
            "stages": ["noop"],
            "qos": qos,
            "publish": {"qos": qos},
            "receive_maximum": 1000,
            "queue": {"policy": "fifo", "max_frames_per_stream": 64},
        }
        with Arena() as arena:
            node = arena.add_node("node", pipeline)
            paho = arena.add_peer("paho", "noop-paho", qos)
            loops = [paho] if qos else [paho, arena.add_peer("aiomqtt", "noop-aiomqtt", workers=8)]
            payloads = arena.payloads([bytes(64)])
            for _ in range(options.repeats):
                for contender in (node, *loops):
                    arena.load(contender, STREAMS, payloads, options, window=WINDOW, qos=qos)
        case, note = f"noop.qos{qos}", _NOTE[qos]
        for contender in (node, *loops):
            cells += costs(case, contender, f"QoS {qos}, ")
        for loop in loops:
            name = loop.name
            cells.append(ratio(f"{case}.node_per_{name}", f"QoS {qos}, node ÷ {name}", node.rates, loop.rates, note))
            cells.append(cheaper(f"{case}.cpu_{name}_per_node", loop, node))
    return cells
