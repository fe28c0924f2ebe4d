"""Who hears the results while the load runs, for benchmarks that ask what a result says and not only that it came."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import orjson
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

_SUBSCRIBED_S = 10.0


class Audience:
    """A subscriber in a thread of its own; results are kept as they came and read when it is over.

    Args:
        port: of the broker on 127.0.0.1.
        results: filter of the topics that results come on.
        qos: to subscribe with.
    """

    def __init__(self, port: int, results: str, qos: int = 0) -> None:
        self._heard: list[tuple[float, bytes]] = []
        self._subscribed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(results, qos)
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda *given: self._heard.append((time.monotonic(), given[2].payload))
        self._client.connect("127.0.0.1", port)

    def _on_subscribe(self, *_: Any) -> None:
        self._subscribed = True

    def __enter__(self) -> Self:
        self._client.loop_start()
        deadline = time.monotonic() + _SUBSCRIBED_S
        while not self._subscribed:
            if time.monotonic() > deadline:
                raise RuntimeError("The broker did not let the audience subscribe")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def __len__(self) -> int:
        return len(self._heard)

    def results(self, skip_s: float = 0.0) -> list[dict[str, Any]]:
        """Results that came, but for those of the first `skip_s` after the very first."""
        heard = list(self._heard)
        since = heard[0][0] + skip_s if heard else 0.0
        return [orjson.loads(payload) for at, payload in heard if at >= since]
