"""Real brokers of a region, an area and sites, with bridges that tests can cut."""

from __future__ import annotations

from tests.region.conftest import REGION

from hedgerow.testing import Mosquitto
from hedgerow.testing.faults import FaultProxy

UP = ("status", "health", "event/#", "result/#", "reply/#")
DOWN = ("ack", "command/#", "desired")


def bridge(name: str, port: int) -> list[str]:
    """Return lines of a broker's configuration: its bridge to the broker above."""
    nodes = f"hedgerow/v1/{REGION}/+/+"
    return [
        f"connection {name}",
        f"address 127.0.0.1:{port}",
        "bridge_protocol_version mqttv50",
        "cleansession false",
        "restart_timeout 1 1",
        "keepalive_interval 60",
        f"remote_clientid hedgerow-bridge/{name}",
        "notifications true",
        "notifications_local_only true",
        f"notification_topic bridge/{name}",
        *(f"topic {nodes}/{up} out {0 if up == 'health' else 1}" for up in UP),
        *(f"topic {nodes}/{down} in 1" for down in DOWN),
    ]


class Brokers:
    """A region's broker, and those of sites: `hall` and `yard` are bridged to it, `far` to the broker of an area, which is.

    Attributes:
        wans: the connection of each bridge, by the name of its lower end.
    """

    ABOVE = {"hall": "region", "yard": "region", "area": "region", "far": "area"}  # noqa: RUF012 - constant

    def __init__(self) -> None:
        self.at: dict[str, Mosquitto] = {"region": Mosquitto()}
        self.wans: dict[str, FaultProxy] = {}
        self.at["region"].start()
        for name, above in self.ABOVE.items():
            self.wans[name] = wan = FaultProxy("127.0.0.1", self.at[above].port)
            wan.__enter__()
            self.at[name] = Mosquitto(config=bridge(name, wan.port))
            self.at[name].start()

    def close(self) -> None:
        for name in reversed(self.at):
            self.at[name].close()
        for wan in self.wans.values():
            wan.__exit__(None, None, None)
