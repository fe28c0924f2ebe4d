"""The frame: one unit of sensor data on its way through the stages of a pipeline.

Rules:
- A frame is a value. `with_*` return a new frame that shares what did not change; nothing is copied.
- A frame's `id` is the same for every delivery of the same frame, so duplicates can be told.
- `payload` may be a view into a receive buffer: read it, never write to it.
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
    """A stage's decision that a frame goes no further.

    Attributes:
        reason: short, stable, kebab-case; it becomes the label of a counter, so keep the set small.
    """

    reason: str


class Frame:
    """One unit of sensor data.

    Attributes:
        id: the same for every delivery of this frame.
        stream: the ordered sequence (one sensor, usually) that the frame belongs to.
        topic: the MQTT topic it came on.
        sequence: its number in the stream on this node, counted from 0.
        captured_at: when the sensor took it, Unix seconds; when it was received, if the sensor does not say.
        content_type: MIME type of `payload`, lower case, without parameters; "" if unknown.
        payload: the bytes as received.
        tensors: arrays by name on their way into or out of a model.
        meta: small facts that stages add for the stages behind them. It begins with `rate` and `channels`, as texts,
            where the content type says them (`audio/l16; rate=8000`). `begins: True` says that the stream starts anew here: hidden state of
            models is reset.
        result: what will be published, once a stage has set it: numbers, strings, lists, mappings, numpy values,
            or bytes to be published as they are.
        traceparent: W3C trace context, or None.
    """

    __slots__ = (
        "_array",
        "captured_at",
        "content_type",
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
                "The frame has no array yet",
                code="not-decoded",
                remedy="Put a decoding stage (`decode`, `parse`, `pcm16`) before this one.",
            )
        return self._array

    @property
    def has_array(self) -> bool:
        """Whether a stage has decoded the payload."""
        return self._array is not None

    def with_array(self, array: Array, **meta: Any) -> Frame:
        """The same frame with another array (and more meta, if given)."""
        frame = self._copy()
        frame._array = array
        if meta:
            frame.meta = {**self.meta, **meta}
        return frame

    def with_tensors(self, tensors: Mapping[str, Array], **meta: Any) -> Frame:
        """The same frame with other tensors (and more meta, if given)."""
        frame = self._copy()
        frame.tensors = tensors
        if meta:
            frame.meta = {**self.meta, **meta}
        return frame

    def with_meta(self, **meta: Any) -> Frame:
        """The same frame with more meta."""
        frame = self._copy()
        frame.meta = {**self.meta, **meta}
        return frame

    def with_result(self, result: Any) -> Frame:
        """The same frame with a result to publish."""
        frame = self._copy()
        frame.result = result
        return frame

    def with_payload(self, payload: Buffer, content_type: str) -> Frame:
        """The same frame with other bytes and their type."""
        frame = self._copy()
        frame.payload = payload
        frame.content_type = content_type
        return frame

    def _copy(self) -> Frame:
        # Written out: `copy.copy` and dataclasses.replace cost five times as much, and every stage pays it.
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
        frame.meta = self.meta
        frame.result = self.result
        frame.traceparent = self.traceparent
        return frame

    def __repr__(self) -> str:
        shape = "" if self._array is None else f" {self._array.dtype}{list(np.shape(self._array))}"
        return f"<Frame {self.id or '?'} {self.stream or '?'}#{self.sequence} {len(self.payload)} B{shape}>"
