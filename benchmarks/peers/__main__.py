"""Runs a peer until terminated.

    echo '{"port": 1883, …}' | python -m benchmarks.peers vad-paho

Peers do less than the node: no queue with a maximum age, no lineage, no health reports, no dead letters, and no delayed
acknowledgement until the result is safe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.peers import adapter, handlers, loops

PEERS: dict[
    str, tuple[Callable[[handlers.Handler, dict[str, Any]], None], Callable[[dict[str, Any]], handlers.Handler]]
] = {
    "vad-paho": (loops.paho, handlers.vad),
    "vad-aiomqtt": (loops.aiomqtt, handlers.vad),
    "vad-gmqtt": (loops.gmqtt, handlers.vad),
    "vad-faststream": (loops.faststream, handlers.vad),
    "text-paho": (loops.paho, handlers.text),
    "telemetry-paho": (loops.paho, handlers.telemetry),
    "noop-paho": (loops.paho, handlers.noop),
    "count-paho": (loops.paho, handlers.count),
    "count-aiomqtt": (loops.aiomqtt, handlers.count),
}


def main() -> None:
    """Run the peer named on the command line: a loop, or a server behind the adapter."""
    options = json.load(sys.stdin)
    name = sys.argv[1]
    if name in PEERS:
        loop, make = PEERS[name]
        loop(make(options), options)
    else:
        adapter.run(name.removeprefix("vad-"), options)


if __name__ == "__main__":
    main()
