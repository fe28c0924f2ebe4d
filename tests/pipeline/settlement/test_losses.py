"""Lost frames by topic: bounded, and the topic with the most is found whatever others invent."""

from __future__ import annotations

import pytest

from hedgerow.bus.message import Message
from hedgerow.pipeline.delivery import Delivery
from hedgerow.pipeline.settlement.losses import Losses, TopicCounts
from hedgerow.telemetry.tally import DropReason


def delivery(stream: str, qos: int = 1) -> Delivery:
    return Delivery(Message(stream.partition("#")[0], b"", qos << 1, 1, 0.0), stream, 0, None)


def test_the_topic_with_the_most_is_found_among_thousands_that_are_invented() -> None:
    counts = TopicCounts()
    for n in range(5000):
        counts.add(delivery(f"invented/{n}"))
        if n % 10 == 0:
            counts.add(delivery("plant/7#name"))

    most = counts.most()
    assert most is not None
    assert most[0] == "plant/7"
    assert 500 - 5500 / 65 <= most[1] <= 500
    assert len(counts) <= 64


@pytest.mark.parametrize("reason", DropReason)
def test_only_drops_under_overload_count(reason: DropReason) -> None:
    losses = Losses()
    losses.dropped(delivery("a"), reason)
    losses.dropped(delivery("a", qos=0), reason)

    counted = reason in ("expired", "rate", "superseded", "queue-full")
    assert losses.most() == (("a", 2) if counted else None)
    assert losses.limited == (reason in ("superseded", "queue-full"))


def test_a_stages_own_reason_does_not_count() -> None:
    losses = Losses()
    losses.dropped(delivery("a"), "no-speech")

    assert losses.most() is None
