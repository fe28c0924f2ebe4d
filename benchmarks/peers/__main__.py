"""Run a peer, until it is ended.

    echo '{"port": 1883, …}' | python -m benchmarks.peers vad-paho

They do less than the node, and are not made to do more: no queue bounded in age, no lineage, no health, no dead letters,
no acknowledgement held back until the result is safe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.peers import adapter, answers, loops

PEERS: dict[
    str, tuple[Callable[[answers.Answer, dict[str, Any]], None], Callable[[dict[str, Any]], answers.Answer]]
] = {
    "vad-paho": (loops.paho, answers.vad),
    "vad-aiomqtt": (loops.aiomqtt, answers.vad),
    "vad-gmqtt": (loops.gmqtt, answers.vad),
    "vad-faststream": (loops.faststream, answers.vad),
    "text-paho": (loops.paho, answers.text),
    "noop-paho": (loops.paho, answers.noop),
    "count-paho": (loops.paho, answers.count),
    "count-aiomqtt": (loops.aiomqtt, answers.count),
}


def main() -> None:
    """Run the peer that is named: a loop, or a server behind the adapter."""
    options = json.load(sys.stdin)
    name = sys.argv[1]
    if name in PEERS:
        loop, make = PEERS[name]
        loop(make(options), options)
    else:
        adapter.run(name.removeprefix("vad-"), options)


if __name__ == "__main__":
    main()
