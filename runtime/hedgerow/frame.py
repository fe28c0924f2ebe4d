"""The frame: one unit of sensor data that passes through the stages of a pipeline.

Rules:
- A frame is a value. `with_*` methods return a new frame that shares unchanged data with the old one.
- A redelivered frame has the same `id`, so duplicates can be recognised.
- `payload` may be a view of a receive buffer: never write to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hedgerow.errors import FrameError

Buffer = bytes | bytearray | memoryview
Array = NDArray[Any]

_EMPTY: Final[Mapping[str, Any]] = {}


class Drop(NamedTuple):
    """Returned by a stage to drop a frame.

    Attributes:
        reason: short, stable, kebab-case. It labels a counter, so keep the number of reasons small.
    """

    reason: str


class Frame:
    """One unit of sensor data.

    Attributes:
        id: identifies the frame; the same for every delivery of it.
        stream: the ordered sequence of frames it belongs to, usually one sensor.
        topic: MQTT topic it arrived on.
        sequence: number in the stream on this node, from 0.
        captured_at: capture time, Unix seconds; the time of arrival if the sensor does not send one.
        content_type: MIME type of `payload`, lower case, without parameters; "" if unknown.
        payload: the bytes as received.
        tensors: inputs or outputs of a model, by name.
        fields: what the message itself says beside its numbers: the other fields of a JSON or MessagePack map. The sensor
            chose their names and values, so no stage reads one unless the configuration names it.
        meta: small values that stages add for later stages; never taken from the payload. Initially `rate` and `channels`,
            as strings, if the content type has them (`audio/l16; rate=8000`). `begins: True` marks a restart of the
            stream: models reset their hidden state.
        result: what to publish, once a stage has set it: numbers, strings, lists, mappings, numpy values, or bytes,
            which are published unchanged.
        traceparent: W3C trace context, or None.
    """

    __slots__ = (
        "_array",
        "captured_at",
        "content_type",
        "fields",
        "id",
        "meta",
        "payload",
        "result",
        "sequence",
        "stream",
        "tensors",
        "topic",
        "traceparent",
    )

    def __init__(
        self,
        payload: Buffer = b"",
        *,
        id: str = "",
        stream: str = "",
        topic: str = "",
        sequence: int = 0,
        captured_at: float = 0.0,
        content_type: str = "",
        array: Array | None = None,
        tensors: Mapping[str, Array] = _EMPTY,
        fields: Mapping[str, Any] = _EMPTY,
        meta: Mapping[str, Any] = _EMPTY,
        result: Any = None,
        traceparent: str | None = None,
    ) -> None:
        self.payload = payload
        self.id = id
        self.stream = stream
        self.topic = topic
        self.sequence = sequence
        self.captured_at = captured_at
        self.content_type = content_type
        self._array = array
        self.tensors = tensors
        self.fields = fields
        self.meta = meta
        self.result = result
        self.traceparent = traceparent

    @property
    def array(self) -> Array:
        """The frame's data as an array: an image (H, W, 3), samples (n,), features (n,).

        Raises: FrameError: no stage has decoded the payload yet.
        """
        if self._array is None:
            raise FrameError(
                "The frame has no array",
                code="not-decoded",
                remedy="Add a decoding stage (`decode`, `parse`, `pcm16`) before this one.",
            )
        return self._array

    @property
    def has_array(self) -> bool:
        """Whether the payload has been decoded."""
        return self._array is not None

    def with_array(self, array: Array, **meta: Any) -> Frame:
        """Return a copy with another array, and with additional meta."""
        frame = self._copy()
        frame._array = array
        if meta:
            frame.meta = {**self.meta, **meta}
        return frame

    def with_tensors(self, tensors: Mapping[str, Array], **meta: Any) -> Frame:
        """Return a copy with other tensors, and with additional meta."""
        frame = self._copy()
        frame.tensors = tensors
        if meta:
            frame.meta = {**self.meta, **meta}
        return frame

    def with_meta(self, **meta: Any) -> Frame:
        """Return a copy with additional meta."""
        frame = self._copy()
        frame.meta = {**self.meta, **meta}
        return frame

    def with_result(self, result: Any) -> Frame:
        """Return a copy with a result to publish."""
        frame = self._copy()
        frame.result = result
        return frame

    def with_payload(self, payload: Buffer, content_type: str) -> Frame:
        """Return a copy with another payload and its content type."""
        frame = self._copy()
        frame.payload = payload
        frame.content_type = content_type
        return frame

    def _copy(self) -> Frame:
        # Written out: `copy.copy` and `dataclasses.replace` take five times as long, for every stage.
        frame = Frame.__new__(Frame)
        frame.payload = self.payload
        frame.id = self.id
        frame.stream = self.stream
        frame.topic = self.topic
        frame.sequence = self.sequence
        frame.captured_at = self.captured_at
        frame.content_type = self.content_type
        frame._array = self._array
        frame.tensors = self.tensors
        frame.fields = self.fields
        frame.meta = self.meta
        frame.result = self.result
        frame.traceparent = self.traceparent
        return frame

    def __repr__(self) -> str:
        shape = "" if self._array is None else f" {self._array.dtype}{list(np.shape(self._array))}"
        return f"<Frame {self.id or '?'} {self.stream or '?'}#{self.sequence} {len(self.payload)} B{shape}>"
