"""Finds refused requests, and what limits have ended, in the log of a verbose Mosquitto (2.0: `-v`). Pure: lines in, refusals out.

- A connection without a valid certificate: TLS closes it, and the client is unknown.
- A publish that the access list forbids: "Denied PUBLISH".
- Whatever a limit of the broker ends: connections, packets, memory, messages in a queue, sessions of absent clients.
- A last will that the access list forbids. Mosquitto drops it without a word, so it is checked when the client connects.
- A subscription without read access. Mosquitto accepts it and delivers nothing, so it is checked against the access
  list; without a list, subscriptions are not judged.

Users are identified from lines that only the broker writes; a client id may hold anything but control characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from hedgerow.errors import without_token
from hedgerow.topics import matches, overlap

What = Literal["connect", "publish", "will", "subscribe", "disconnect", "drop", "expire"]

_LINE: Final = re.compile(r"(?:^|\s)(\d{9,11}): (.*)$")  # after any prefix of a container's or the system's log
_CONNECTED: Final = re.compile(r"New client connected from \S+ as (.*) \(p\d, c\d, k\d+(?:, u'(.*)')?\)\.")
_FAILED: Final = re.compile(r"Client connection from \S+ failed: error:")
"""In place of an OpenSSL error, if the client's first bytes came with the connection."""
_GONE: Final = re.compile(r"Client (.*?) (?:disconnected|closed its connection|has exceeded timeout)")
_ENDED: Final = re.compile(r"Client (.*) disconnected due to (.*)\.|Bad socket read/write on client (.*): (.*?)\.?")
_DROPPED: Final = re.compile(r"Outgoing messages are being dropped for client (.*)\.")
_EXPIRED: Final = re.compile(r"Expiring client (.*) due to timeout\.")
_TOO_MANY: Final = re.compile(r"Client connection from (\S+) denied(: max_connections exceeded| access by tcpd)\.")
_TOO_MANY_FILES: Final = "Unable to accept new connection, system socket count has been exceeded"
_DENIED: Final = re.compile(r"Denied PUBLISH from (.*) \(d\d, q\d, r\d, m\d+, '(.*)', \.\.\. \(\d+ bytes\)\)")
_SUBSCRIBE: Final = re.compile(r"Received SUBSCRIBE from (.*)")
_FILTER: Final = re.compile(r"\t(.*) \(QoS \d\)")
_CAUSES: Final = {
    "did not return a certificate": "no certificate",
    "certificate verify failed": "an invalid certificate",
    "wrong version number": "no TLS 1.3",
    "unsupported protocol": "no TLS 1.3",
    "http request": "not MQTT",
}
"""OpenSSL's error texts, and what each means for the client."""
_CHATTER: Final = re.compile(r"(?:^|\s)\d{9,11}: (?:Received P(?:UB|ING)|Sending )")


class AccessDenial(NamedTuple):
    """A refused request.

    Attributes:
        at: Unix seconds.
        user: the common name of the certificate; "" without a valid one.
        client: the client id, without its token; "" if it got no further than TLS.
        detail: the topic or filter, or why the broker refused or ended it.
    """

    at: int
    what: What
    user: str
    client: str
    detail: str


class AccessDenials:
    """Reads a log line by line.

    Args:
        may_read: topic filters that a user may read, by user; None: subscriptions are not judged.
        may_write: the same of publishing; None: last wills are not judged.
    Attributes:
        counts: number of refusals, by kind and user.
    """

    def __init__(
        self,
        may_read: Mapping[str, Iterable[str]] | None = None,
        may_write: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._may_read, self._may_write = may_read, may_write
        self._latest: str | None = None
        self._with_will = False
        self._users: dict[str, str] = {}
        self._subscribing = ""
        self.counts: Counter[tuple[What, str]] = Counter()

    def take(self, line: str) -> AccessDenial | None:
        """Return the refusal that a line reports; None if it reports none."""
        found = _LINE.search(line.rstrip("\r\n"))
        if found is None:
            return None
        refusal = self._read(int(found[1]), found[2])
        if refusal is None:
            return None
        self.counts[refusal.what, refusal.user] += 1
        return refusal._replace(client=without_token(refusal.client))

    def _read(self, at: int, message: str) -> AccessDenial | None:
        if message.startswith("\t"):
            return self._will(at, message) if self._with_will else self._subscription(at, message)
        self._with_will = message.startswith("Will message specified")  # its topic is on the next line
        if message.startswith(
            ("Will message", "Received UNSUBSCRIBE")
        ):  # they are followed by lines that look like subscriptions
            self._subscribing = ""
        elif (match := _CONNECTED.fullmatch(message)) is not None:
            self._users[match[1]] = match[2] or ""
            self._latest = match[1]
        elif message.startswith(_TOO_MANY_FILES):
            return AccessDenial(at, "connect", "", "", "too many connections (open files, see `broker.sh`)")
        elif (match := _TOO_MANY.fullmatch(message)) is not None:
            # Debian's Mosquitto cannot read /etc/hosts.allow with its last open file.
            which = (
                "`limits.connections`"
                if "max_connections" in match[2]
                else "open files, see `broker.sh`; or /etc/hosts.deny"
            )
            return AccessDenial(at, "connect", "", "", f"too many connections ({which}); from {match[1]}")
        elif (match := _DROPPED.fullmatch(message)) is not None:
            return AccessDenial(at, "drop", self._users.get(match[1], ""), match[1], "its queue is full")
        elif (match := _EXPIRED.fullmatch(message)) is not None:
            return AccessDenial(
                at, "expire", "", match[1], "it was absent for `limits.session_hours`, or as long as it asked for"
            )
        elif (match := _ENDED.fullmatch(message)) is not None:
            client, why = match[1] or match[3], match[2] or match[4]
            return AccessDenial(at, "disconnect", self._users.pop(client, ""), client, why)
        elif (match := _GONE.match(message)) is not None:
            self._users.pop(match[1], None)
            if message.endswith(", not authorised."):
                return AccessDenial(at, "connect", "", "", "an invalid user or password")
        elif (match := _DENIED.fullmatch(message)) is not None:
            return AccessDenial(at, "publish", self._users.get(match[1], ""), match[1], match[2])
        elif (match := _SUBSCRIBE.fullmatch(message)) is not None:
            self._subscribing = match[1]
        elif message.startswith("OpenSSL Error") or _FAILED.match(message) is not None:
            cause = next((meaning for text, meaning in _CAUSES.items() if text in message), None)
            return AccessDenial(at, "connect", "", "", cause) if cause is not None else None
        return None

    def _will(self, at: int, message: str) -> AccessDenial | None:
        """Judge the topic of a will, which follows the line of the client that connected."""
        self._with_will = False
        client, topic = self._latest, message[1:]
        if self._may_write is None or client is None:
            return None
        user = self._users.get(client, "")
        if any(matches(one, topic) for one in self._may_write.get(user, ())):
            return None
        return AccessDenial(at, "will", user, client, topic)

    def _subscription(self, at: int, message: str) -> AccessDenial | None:
        match = _FILTER.fullmatch(message)
        if match is None or not self._subscribing or self._may_read is None:
            return None
        user, wanted = self._users.get(self._subscribing, ""), match[1]
        bare = wanted.split("/", 2)[2] if wanted.startswith("$share/") and wanted.count("/") > 1 else wanted
        if any(overlap(bare, one) for one in self._may_read.get(user, ())):
            return None
        return AccessDenial(at, "subscribe", user, self._subscribing, wanted)


def is_chatter(line: str) -> bool:
    """Whether a line is one that a verbose broker writes for every message."""
    return _CHATTER.search(line) is not None


def readable(acl: str) -> dict[str, list[str]]:
    """Return the topic filters each user may read, from an access list as written by `acl.py`."""
    return _allowed(acl, "read")


def writable(acl: str) -> dict[str, list[str]]:
    """Return the topic filters each user may publish on."""
    return _allowed(acl, "write")


def _allowed(acl: str, wanted: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    user = ""
    for line in acl.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            user = rest
            found.setdefault(user, [])
        elif word == "topic":
            right, _, pattern = rest.partition(" ")
            if right in (wanted, "readwrite"):
                found.setdefault(user, []).append(pattern)
    return found
