"""Streams with a sequence number: a bounded number of them, and none that a payload names takes the place of another topic's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Set


class KnownStreams:
    """Numbers the frames of streams.

    Above the limit, the stream silent for longest is forgotten. But a topic that names its streams (`TOPIC#NAME`, see
    `StreamKey`) makes room for a new one by its own, and for others' if it has more than half of all: a sensor can invent names
    without end, and would take the state of all others.
    """

    def __init__(self) -> None:
        self._numbers: OrderedDict[str, int] = OrderedDict()  # by last use
        self._named: dict[str, OrderedDict[str, None]] = {}  # likewise, by topic
        self._greedy: OrderedDict[str, None] | None = None  # the last topic's that named more than half of the limit

    def __len__(self) -> int:
        """Return the number of streams."""
        return len(self._numbers)

    @property
    def names(self) -> Set[str]:
        """The streams."""
        return self._numbers.keys()

    def next_number(self, stream: str, limit: int, forget: Callable[[str], None]) -> int:
        """Return the next number of a stream, from 0.

        Args:
            limit: most streams.
            forget: called with each stream that makes room for it.
        """
        numbers = self._numbers
        number = numbers.get(stream)
        topic = stream.partition("#")[0] if "#" in stream else None  # once per frame, so the usual case first
        if number is None:
            while len(numbers) >= limit:
                own = (self._named.get(topic) if topic is not None else None) or self._greediest(limit)
                forget(self._remove(next(iter(own or numbers))))
            number = 0
        else:
            numbers.move_to_end(stream)
        numbers[stream] = number + 1
        if topic is not None:
            own = self._named.setdefault(topic, OrderedDict())
            own[stream] = None
            own.move_to_end(stream)
            if 2 * len(own) > limit:
                self._greedy = own
        return number

    def _greediest(self, limit: int) -> OrderedDict[str, None] | None:
        """Return the streams of the topic that names more than half of all; None: there is none."""
        greedy = self._greedy
        return greedy if greedy is not None and 2 * len(greedy) > limit else None

    def _remove(self, stream: str) -> str:
        del self._numbers[stream]
        topic, mark, _ = stream.partition("#")
        if mark:
            own = self._named[topic]
            del own[stream]
            if not own:
                del self._named[topic]
        return stream
