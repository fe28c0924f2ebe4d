"""The control of the latency benchmark: one inference between two broker hops, and nothing else.

    echo '{"port": 1883, …}' | python -m benchmarks.harness.control vad

One thread on a raw socket. The model's input and the reply are prepared beforehand; only the frame's id is copied.
There is no state per stream, and payloads are ignored.
"""

from __future__ import annotations

import json
import re
import sys

import numpy as np

from benchmarks.harness.load import Connection
from benchmarks.harness.raw import vad_session
from hedgerow.bus.packets import PUBLISH, encode_publish_head
from hedgerow.bus.properties import Property, encode_properties

_ID = re.compile(rb"id\x00.(f\d+)", re.DOTALL)


def main() -> None:
    """Reply to every frame until terminated."""
    options = json.load(sys.stdin)
    session = vad_session(threads=1)
    inputs = {
        "input": np.random.default_rng(0).normal(0, 0.05, (1, 576)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16_000, np.int64),
    }
    feed = {each.name: inputs[each.name] for each in session.get_inputs()}
    link = Connection(options["port"], options["frames"], "control")
    print("ready", flush=True)
    while True:
        link.receive()
        for first, start, stop in link.packets():
            if first & 0xF0 != PUBLISH:
                continue
            session.run(None, feed)
            found = _ID.search(link.body(start, stop))
            properties = encode_properties([(Property.USER, ("id", found[1].decode()))] if found else [])
            link.socket.sendall(encode_publish_head(options["results"], 2, properties=properties) + b"{}")


if __name__ == "__main__":
    main()
