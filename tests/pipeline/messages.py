"""Builds messages as a sensor sends them, and a pipeline configuration for them."""

from __future__ import annotations

import time
from typing import Any

from tests.wire import unchecked

from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property
from hedgerow.config import PipelineConfig


def config(**fields: Any) -> PipelineConfig:
    return PipelineConfig.model_validate({"subscribe": "#", "stages": ["parse"], **fields})


def message(
    payload: bytes = b"x", *, topic: str = "plant/line3/door", qos: int = 1, content_type: str = "", **user: str
) -> Message:
    pairs: list[tuple[Property, Any]] = [(Property.USER, pair) for pair in user.items()]
    if content_type:
        pairs.append((Property.CONTENT_TYPE, content_type))
    return Message(topic, payload, qos << 1, 5 if qos else 0, time.monotonic(), unchecked.properties(pairs))
