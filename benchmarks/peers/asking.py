"""How a client asks each of the servers: one frame of a stream at a time, the answer its probability of speech."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Final

Ask = Callable[[str, bytes], Awaitable[float]]
"""From a stream and its next frame to the probability. Raises: OSError, or what gRPC raises: the server did not answer."""


async def litserve(port: int) -> Ask:
    """A connection of its own, kept open. Audio is base64 in JSON, which LitServe reads quicker than a form with a file.

    Plain streams in place of an HTTP library: those cost more than what they would measure.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(stream: str, audio: bytes) -> float:
        body = b'{"stream":"%b","audio":"%b"}' % (stream.encode(), base64.b64encode(audio))
        head = b"POST /predict HTTP/1.1\r\nHost: vad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        status, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(each[15:]) for each in headers if each.startswith(b"content-length:"))
        answer = await reader.readexactly(length)
        if b" 200 " not in status:
            raise ConnectionError(f"LitServe answered {answer.decode()}")
        return float(json.loads(answer)["probability"])

    return ask


async def mlserver(port: int) -> Ask:
    """A call of its own, kept open: "inference streaming". All are on one channel; gRPC carries a hundred on each."""
    from mlserver.grpc import dataplane_pb2 as messages
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    call = GRPCInferenceServiceStub(_channel(port)).ModelStreamInfer()
    tensor, request = messages.ModelInferRequest.InferInputTensor, messages.ModelInferRequest

    async def ask(_: str, audio: bytes) -> float:
        given = tensor(name="audio", datatype="BYTES", shape=[1, 1], contents={"bytes_contents": [audio]})
        await call.write(request(model_name="vad", inputs=[given]))
        answer = await call.read()
        return float(answer.outputs[0].contents.fp32_contents[0])

    return ask


@cache
def _channel(port: int) -> Any:
    import grpc

    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


CLIENTS: Final[dict[str, Callable[[int], Awaitable[Ask]]]] = {"litserve": litserve, "mlserver": mlserver}
