"""Numbers from other machines: any is within its range, or refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hedgerow.wire.fleet import Desired, Quarantined, Reported, ReportedModel
from hedgerow.wire.messages import Event, Health, ModelHealth, OutboxHealth, PipelineHealth, Status, WireMessage
from hedgerow.wire.ranges import LATEST_TIME, MAX_COUNT, MAX_GENERATION

DIGEST = "sha256:" + "0" * 64
NUMBERS = st.integers() | st.floats() | st.integers(-(2**70), 2**70) | st.integers(MAX_COUNT - 2, MAX_COUNT + 2)
MINIMAL: list[tuple[type[WireMessage], dict[str, Any]]] = [
    (Status, {"state": "online", "session": "s", "node": "n", "version": "0"}),
    (Health, {"node": "n", "session": "s", "at": 1, "uptime_s": 1, "state": "ok"}),
    (PipelineHealth, {"state": "running"}),
    (ModelHealth, {"digest": "d", "backend": "b", "device": "c", "device_asked": "c"}),
    (OutboxHealth, {}),
    (Event, {"kind": "k", "node": "n", "session": "s", "at": 1}),
    (Reported, {"node": "n", "session": "s", "at": 1}),
    (ReportedModel, {"file_digest": "d", "backend": "b", "device": "c", "since": 1}),
    (Quarantined, {"digest": DIGEST, "name": "n", "version": "1.0.0", "code": "c", "reason": "r", "at": 1}),
    (Desired, {"node": "n", "generation": 1, "at": 1}),
]


def numeric(kind: type[WireMessage]) -> list[str]:
    """Return the fields of a message that are numbers."""
    return [
        name
        for name, field in kind.model_fields.items()
        if any(word in str(field.annotation) for word in ("int", "float"))
    ]


FIELDS = [(kind, body, name) for kind, body in MINIMAL for name in numeric(kind)]


def test_every_message_has_its_numbers_listed() -> None:
    assert len(FIELDS) > 40


@pytest.mark.parametrize(
    ("kind", "body", "name"), FIELDS, ids=lambda one: getattr(one, "__name__", one) if not isinstance(one, dict) else ""
)
@given(number=NUMBERS)
def test_any_number_is_within_its_range_or_refused(
    kind: type[WireMessage], body: dict[str, Any], name: str, number: float
) -> None:
    value: Any = {"x": number} if name in ("dropped", "dead", "lost") else number
    try:
        read = getattr(kind.model_validate_json(json.dumps(body | {name: value})), name)
    except ValidationError:
        return
    read = read["x"] if isinstance(read, dict) else read
    if read is None:
        return
    assert math.isfinite(read)
    assert abs(read) <= (MAX_COUNT if isinstance(read, int) else max(LATEST_TIME, 1e18))
    assert name != "generation" or read <= MAX_GENERATION
