"""Clients of the servers: one frame of a stream at a time, returning its probability of speech."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Final

Infer = Callable[[str, bytes], Awaitable[float]]
"""Takes a stream and its next frame; returns the probability. Raises: OSError or a gRPC error: the server failed."""


async def litserve(port: int) -> Infer:
    """Open a keep-alive connection. Audio is base64 in JSON, which LitServe decodes faster than a form with a file.

    Uses plain streams: an HTTP library would cost more than the server it measures.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def infer(stream: str, audio: bytes) -> float:
        body = b'{"stream":"%b","audio":"%b"}' % (stream.encode(), base64.b64encode(audio))
        head = b"POST /predict HTTP/1.1\r\nHost: vad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        status, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(each[15:]) for each in headers if each.startswith(b"content-length:"))
        response = await reader.readexactly(length)
        if b" 200 " not in status:
            raise ConnectionError(f"LitServe responded with {status.decode()}: {response.decode()}")
        return float(json.loads(response)["probability"])

    return infer


async def mlserver(port: int) -> Infer:
    """Open a streaming call ("inference streaming"). All share one channel, which carries up to a hundred calls."""
    from mlserver.grpc import dataplane_pb2 as messages
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    call = GRPCInferenceServiceStub(_channel(port)).ModelStreamInfer()
    tensor, request = messages.ModelInferRequest.InferInputTensor, messages.ModelInferRequest

    async def infer(_: str, audio: bytes) -> float:
        inputs = [tensor(name="audio", datatype="BYTES", shape=[1, 1], contents={"bytes_contents": [audio]})]
        await call.write(request(model_name="vad", inputs=inputs))
        response = await call.read()
        return float(response.outputs[0].contents.fp32_contents[0])

    return infer


@cache
def _channel(port: int) -> Any:
    import grpc

    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


CLIENTS: Final[dict[str, Callable[[int], Awaitable[Infer]]]] = {"litserve": litserve, "mlserver": mlserver}
