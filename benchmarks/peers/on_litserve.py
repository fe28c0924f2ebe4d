"""Voice activity on LitServe, over HTTP.

    python -m benchmarks.peers.on_litserve PORT MODEL

Settings, by its reference (docstrings of `LitServer` and `LitServer.run`, and "Batching" in its manual):

- `max_batch_size` is the number of streams, `batch_timeout` 1 ms: 0 made an idle worker spin and was slower, 5 ms was
  no faster.
- `fast_queue`: "for high-throughput scenarios (>100 RPS)".
- `num_api_servers=2`, of the suggested "2-8": 1.5 times as fast as one here; three were no faster.
- One worker, because a stream's state is in one process. `log_level="warning"`: "good for production".
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import Any

import litserve

from benchmarks.harness.silero import SIZES, Batches


class Vad(litserve.LitAPI):  # type: ignore[misc]  # has no types in this project's environment
    """Keeps the streams' states. Clients have one frame in flight per stream, so no batch has two frames of one."""

    def __init__(self, model: str) -> None:
        super().__init__(max_batch_size=SIZES[-1], batch_timeout=0.001)
        self._path = model

    def setup(self, _: Any) -> None:
        self._vad = Batches(self._path)

    def decode_request(self, request: dict[str, str]) -> tuple[str, bytes]:
        return request["stream"], base64.b64decode(request["audio"])

    def batch(self, inputs: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
        return inputs

    def predict(self, inputs: Sequence[tuple[str, bytes]]) -> list[float]:
        return self._vad(*zip(*inputs, strict=True))

    def unbatch(self, probabilities: list[float]) -> list[float]:
        return probabilities

    def encode_response(self, probability: float) -> dict[str, float]:
        return {"probability": probability}


if __name__ == "__main__":
    litserve.LitServer(Vad(sys.argv[2]), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True).run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=2,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
        timeout_keep_alive=3600,  # connections are idle during the turns of other contenders
    )
