"""Voice activity on MLServer, over gRPC.

    python -m benchmarks.peers.on_mlserver PORT MODEL

Settings, by its manual:

- Streaming ("Streaming"): one call per microphone. That was 1.3 times as fast as one call per frame with its best
  "Adaptive Batching" (up to 32 frames within 10 ms).
- `parallel_workers=0`, required for streaming ("Streaming"): inference runs in the server's process.
- `debug=False`, no metrics, no compression ("MLServer Settings"); uvloop, like `mlserver start`.
- Audio as `BYTES`, which is passed on without conversion to a list of numbers ("Content Types").
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import numpy as np
import uvloop
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.harness.silero import session


class Vad(MLModel):  # type: ignore[misc]  # has no types in this project's environment
    """Processes one frame at a time; a stream's state lives as long as its call."""

    async def load(self) -> bool:
        self._session = session(self.settings.parameters.uri)
        return True

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        context, state = np.zeros((1, 64), np.float32), np.zeros((2, 1, 128), np.float32)
        async for payload in payloads:
            samples = np.frombuffer(payload.inputs[0].data[0], "<i2").astype(np.float32)[np.newaxis]
            window = np.concatenate((context, samples * np.float32(1 / 32768)), axis=1)
            probability, state = self._session.run(None, {"input": window, "state": state})
            context = window[:, -64:]
            output = ResponseOutput(name="probability", shape=[1, 1], datatype="FP32", data=[float(probability[0, 0])])
            yield InferenceResponse(model_name=self.name, outputs=[output])


async def main(port: int, model: str) -> None:
    """Serve until terminated. The REST server cannot be disabled, so it gets a random port."""
    settings = Settings(
        host="127.0.0.1",
        grpc_port=port,
        http_port=0,
        parallel_workers=0,
        debug=False,
        metrics_endpoint=None,
        gzip_enabled=False,
        load_models_at_startup=False,
    )
    vad = ModelSettings(
        name="vad", implementation="benchmarks.peers.on_mlserver.Vad", parameters=ModelParameters(uri=model)
    )
    await MLServer(settings).start([vad])


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
