"""64 bytes through a stage that does nothing: receiving alone, and the round trip."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.arena import Arena, Contender, costs, cpu_ratio
from benchmarks.harness.cells import Cell, Options, ratio

STREAMS = 64
WINDOW = 512
EACH = 64
_QUEUE = {"policy": "fifo", "max_frames_per_stream": 64}


def run(options: Options) -> list[Cell]:
    """Saturating load. QoS 0 received only, with a result per 64 frames; then QoS 0 and 1 with a result per frame."""
    return [*_received(options), *_round_trip(options, 0), *_round_trip(options, 1)]


def _received(options: Options) -> list[Cell]:
    pipeline = {"stages": [{"count": {"each": EACH}}], "qos": 0, "publish": {"qos": 0}, "queue": _QUEUE}
    with Arena() as arena:
        node = arena.add_node("node", pipeline)
        loops = [arena.add_peer(name, f"count-{name}", each=EACH) for name in ("paho", "aiomqtt")]
        _take_turns(arena, [node, *loops], options, window=2 * WINDOW, frames_a_result=EACH)
    return _cells("noop.received", "received", node, loops)


def _round_trip(options: Options, qos: int) -> list[Cell]:
    pipeline = {
        "stages": ["noop"],
        "qos": qos,
        "publish": {"qos": qos},
        **({"receive_maximum": 1000} if qos else {}),
        "queue": _QUEUE,
    }
    with Arena() as arena:
        node, paho = arena.add_node("node", pipeline), arena.add_peer("paho", "noop-paho", qos)
        _take_turns(arena, [node, paho], options, window=WINDOW, qos=qos)
    note = "the node acknowledges a frame once the broker has its result; the loop does so immediately and may lose it"
    return _cells(f"noop.qos{qos}", f"QoS {qos}", node, [paho], note if qos else "")


def _take_turns(arena: Arena, contenders: list[Contender], options: Options, **spec: Any) -> None:
    payloads = arena.payloads([bytes(64)])
    for _ in range(options.repeats):
        for contender in contenders:
            arena.load(contender, STREAMS, payloads, options, **spec)


def _cells(key: str, case: str, node: Contender, loops: list[Contender], note: str = "") -> list[Cell]:
    cells: list[Cell] = []
    for contender in (node, *loops):
        cells += costs(key, contender, f"{case}, ")
    for loop in loops:
        name = loop.name
        cells.append(ratio(f"{key}.node_per_{name}", f"{case}, node ÷ {name}", node.rates, loop.rates, note))
        cells.append(cpu_ratio(f"{key}.cpu_{name}_per_node", loop, node))
    return cells
