"""A region's service with an honest neighbour, on a real broker with access rules, and clients of attackers.

The rules are those of a rendered region's broker: a site publishes below its own name only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from tests.region.conftest import REGION, CollectorProcess, result

from hedgerow.region.rollouts.inventory import inventory
from hedgerow.region.rollouts.progress import history
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import status
from hedgerow.testing import Mosquitto
from hedgerow.wire.messages import encode_json

PATIENCE_S = 90.0
UP = ("status", "health", "event/#", "result/#", "reported", "reply/#", "blob/#")
ATTACKER, NEIGHBOUR, FLOODER, SLOW = "s1", "s2", "s3", "s4"
"""Sites. Those that use up their rate are others than the one of the other attempts, which may come after them."""


class Attempt(NamedTuple):
    """A message of an attacker.

    Attributes:
        topic: below its node's own.
        payload: bytes, or what is encoded as JSON.
        user: user properties.
        times: how often it is sent; `{n}` in topic, user properties and texts is the number.
    """

    topic: str
    payload: Any = b""
    user: Sequence[tuple[str, str]] = ()
    content_type: str = "application/json"
    retain: bool = False
    times: int = 1
    qos: int = 1


QUOTAS = (
    "too-many-nodes",
    "too-many-rows",
    "too-many-bytes",
    "too-many-events",
    "too-many-epochs",
    "too-many-messages",
)


def refused_for(reason: str, refused: dict[tuple[str, str], int]) -> int:
    """Return how many of the attacker's messages were refused for a reason, or for any quota if it is one.

    Which quota of the day is used up first depends on the attempts made before.
    """
    return sum(refused.get((ATTACKER, one), 0) for one in (QUOTAS if reason in QUOTAS else (reason,)))


class MqttClient:
    """A client with a user name, which waits for every acknowledgement."""

    def __init__(self, broker: Mosquitto, user: str) -> None:
        self.refused: list[int] = []
        self.received: list[paho.MQTTMessage] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"c-{user}", protocol=paho.MQTTv5)
        self._client.username_pw_set(user)
        self._client.max_inflight_messages_set(500)
        self._client.max_queued_messages_set(0)
        self._client.on_publish = self._on_publish
        self._client.on_message = lambda _client, _data, message: self.received.append(message)
        self._acknowledged = self._sent = 0
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def _on_publish(self, _client: Any, _data: Any, _mid: int, reason: Any, _properties: Any) -> None:
        self._acknowledged += 1
        if reason.value >= 0x80:
            self.refused.append(reason.value)

    def subscribe(self, topic: str) -> None:
        self._client.subscribe(topic, qos=1)

    def publish(
        self, topic: str, payload: bytes, user: Sequence[tuple[str, str]], content_type: str, retain: bool, qos: int = 1
    ) -> None:
        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if content_type:
            properties.ContentType = content_type
        if user:
            properties.UserProperty = list(user)
        self._sent += 1
        self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)

    def flush(self) -> None:
        """Wait until the broker has everything."""
        until(lambda: self._acknowledged >= self._sent, lambda: (self._acknowledged, self._sent))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def until(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "it") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what()}"
        time.sleep(0.01)


class RegionUnderAttack:
    """The service, its broker, and a neighbour that sends numbered results."""

    def __init__(self, folder: Path, url: str | None = None, **quotas: Any) -> None:
        acl = folder / "acl"
        lines = ["user region", "topic readwrite #"]
        for site in (ATTACKER, NEIGHBOUR, FLOODER, SLOW):
            lines += [f"user {site}", *(f"topic write hedgerow/v1/{REGION}/{site}/+/{tail}" for tail in UP)]
            lines += [f"topic read hedgerow/v1/{REGION}/{site}/+/{tail}" for tail in ("ack", "desired", "command/#")]
        lines += ["user s1/stolen", *(f"topic write hedgerow/v1/{REGION}/s1/stolen/{tail}" for tail in UP)]
        lines += [f"topic read hedgerow/v1/{REGION}/s1/stolen/{tail}" for tail in ("ack", "desired", "command/#")]
        acl.write_text("\n".join(lines) + "\n")
        self.broker = Mosquitto(config=[f"acl_file {acl}"])
        self.broker.start()
        self.store = url or str(folder / "region.db")
        self.collector = CollectorProcess(self.broker.url, self.store, folder)
        self.collector.configure(broker={"username": "region"}, quotas=quotas)
        self.collector.start()
        self.neighbour = MqttClient(self.broker, NEIGHBOUR)
        self.neighbour.subscribe(f"hedgerow/v1/{REGION}/s2/honest/#")
        self.sent = 0

    def close(self) -> None:
        self.neighbour.close()
        self.collector.close()
        self.broker.close()

    def attack(self, client: MqttClient, node: str, attempts: Sequence[Attempt]) -> None:
        """Send messages below `hedgerow/v1/REGION/NODE/`, until the broker has them."""
        for attempt in attempts:
            for n in range(attempt.times):
                payload, address = attempt.payload, f"{REGION}/{node.replace('{n}', str(n))}"
                if not isinstance(payload, bytes):
                    if isinstance(payload, dict) and "node" in payload:  # a body that names another is refused for that
                        payload = payload | {"node": address}
                    payload = json.dumps(payload).replace("{n}", str(n)).encode()
                user = [(name, value.replace("{n}", str(n))) for name, value in attempt.user]
                topic = f"hedgerow/v1/{address}/{attempt.topic.replace('{n}', str(n))}"
                client.publish(topic, payload, user, attempt.content_type, attempt.retain, attempt.qos)
        if any(attempt.qos for attempt in attempts):
            client.flush()

    def neighbour_goes_on(self) -> None:
        """Send a durable result as the neighbour, after what was sent before, and wait until it is stored."""
        self.sent += 1
        self.neighbour.publish(
            f"hedgerow/v1/{REGION}/s2/honest/result/p",
            result("p", self.sent),
            [("number", f"e1/0/{self.sent}"), ("ack", "now")],
            "application/json",
            retain=False,
        )
        self.neighbour.flush()
        until(
            lambda: self.stored("s2") == self.sent, lambda: (self.stored("s2"), self.sent, self.collector.log[-1500:])
        )

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(open_database(self.store, write=False)) as database:
            return database.rows(sql, values)

    def stored(self, site: str) -> int:
        query = "SELECT count(*) FROM result r JOIN node n ON n.id = r.node WHERE n.site = ?"
        return int(self.rows(query, site)[0][0])

    def refused(self) -> dict[tuple[str, str], int]:
        """Return the messages refused so far, by site and reason."""
        return {(site, reason): count for site, reason, count in self.rows("SELECT site, reason, count FROM refusal")}

    def status(self) -> dict[str, Any]:
        """Return what `region status --json` prints; `nodes` and `rollout history` must work too."""
        with closing(open_database(self.store, write=False)) as database:
            encode_json(inventory(database, time.time()))
            encode_json(history(database, 10))
            current = status(database, time.time())
            encode_json(current)
            return current


@contextmanager
def region_under_attack(folder: Path, url: str | None = None, **quotas: Any) -> Iterator[RegionUnderAttack]:
    region = RegionUnderAttack(folder, url, **quotas)
    try:
        region.neighbour_goes_on()  # so that the neighbour is known, whichever attempt comes first
        yield region
    finally:
        region.close()
