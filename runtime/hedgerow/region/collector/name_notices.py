"""Tells nodes of which two run under one name about each other: at brokers of different sites they see no status of each other.

The notice travels with a `ping`, since all bridges carry that and all versions take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from hedgerow.bus.client import Client
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.errors import BusError
from hedgerow.region.collector.pinger import COMMAND
from hedgerow.region.store.twins.rows import SeenRun
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import NamedRun, NameNotice

_EVERY_S: Final = 5.0
"""Least time between two notices to one name: each of its nodes reports its health every ten seconds."""
_KEPT_S: Final = 60
_MOST: Final = 1000


class NameNotices:
    """Sends the notices.

    Args:
        client: connection to the region's broker.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sent: dict[Address, float] = {}

    def send(self, names: Mapping[Address, Sequence[SeenRun]], now: float) -> None:
        """Tell all nodes of some names who uses these, unless they were told just now.

        Args:
            names: the runs under each name.
            now: monotonic seconds.
        """
        for address, runs in names.items():
            if now - self._sent.get(address, float("-inf")) < _EVERY_S:
                continue
            if len(self._sent) >= _MOST:
                self._sent = {name: at for name, at in self._sent.items() if now - at < _EVERY_S}
            if len(self._sent) >= _MOST:
                return  # their next reports bring them here again
            self._sent[address] = now
            notice = NameNotice(runs=[NamedRun(session=run.session, instance=run.instance) for run in runs])
            properties = encode_properties([(Property.EXPIRY, _KEPT_S), (Property.USER, notice.pair())])
            with suppress(BusError):
                self._client.publish(address.topic(Channel.COMMAND, COMMAND), b"", qos=1, properties=properties)
