"""Who was refused what, by the log of a Mosquitto that is verbose (2.0: `-v`). Pure: lines in, refusals out.

- A connection whose certificate does not count: TLS ends it, and who it was is not known.
- A publish that the access list forbids: "Denied PUBLISH".
- A subscription to what the access list lets the user read nothing of. Mosquitto takes it like any other and delivers
  nothing, so the list itself has to be asked; without one, subscriptions are not judged.

Who is who is told by lines that only the broker writes; a client's id may hold anything but control characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from hedgerow.topics import overlap

What = Literal["connect", "publish", "subscribe"]

_LINE: Final = re.compile(r"(?:^|\s)(\d{9,11}): (.*)$")  # behind what a container's or the system's log puts before it
_CONNECTED: Final = re.compile(r"New client connected from \S+ as (.*) \(p\d, c\d, k\d+(?:, u'(.*)')?\)\.")
_GONE: Final = re.compile(r"Client (.*?) (?:disconnected|closed its connection|has exceeded timeout)")
_DENIED: Final = re.compile(r"Denied PUBLISH from (.*) \(d\d, q\d, r\d, m\d+, '(.*)', \.\.\. \(\d+ bytes\)\)")
_SUBSCRIBE: Final = re.compile(r"Received SUBSCRIBE from (.*)")
_FILTER: Final = re.compile(r"\t(.*) \(QoS \d\)")
_CAUSES: Final = {
    "did not return a certificate": "no certificate",
    "certificate verify failed": "a certificate that does not count",
    "wrong version number": "no TLS 1.3",
    "unsupported protocol": "no TLS 1.3",
    "http request": "no MQTT",
}
"""What OpenSSL says, and what it means for who tried."""
_CHATTER: Final = re.compile(r"(?:^|\s)\d{9,11}: (?:Received P(?:UB|ING)|Sending )")


class AccessDenial(NamedTuple):
    """Something that somebody tried and may not do.

    Attributes:
        at: Unix seconds.
        user: the common name of the certificate; "" if there was none that counts.
        client: what the client calls itself; "" if it got no further than TLS.
        detail: the topic or filter, or why the connection was refused.
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
    Attributes:
        counts: how many there were, by what and user.
    """

    def __init__(self, may_read: Mapping[str, Iterable[str]] | None = None) -> None:
        self._may_read = may_read
        self._users: dict[str, str] = {}
        self._asking = ""
        self.counts: Counter[tuple[What, str]] = Counter()

    def take(self, line: str) -> AccessDenial | None:
        """What a line says was refused; None if nothing."""
        found = _LINE.search(line.rstrip("\r\n"))
        if found is None:
            return None
        refusal = self._read(int(found[1]), found[2])
        if refusal is not None:
            self.counts[refusal.what, refusal.user] += 1
        return refusal

    def _read(self, at: int, said: str) -> AccessDenial | None:
        if said.startswith("\t"):
            return self._subscription(at, said)
        if said.startswith(("Will message", "Received UNSUBSCRIBE")):  # what they list looks like what is subscribed to
            self._asking = ""
        elif (match := _CONNECTED.fullmatch(said)) is not None:
            self._users[match[1]] = match[2] or ""
        elif (match := _GONE.match(said)) is not None:
            self._users.pop(match[1], None)
            if said.endswith(", not authorised."):
                return AccessDenial(at, "connect", "", "", "no user or password that counts")
        elif (match := _DENIED.fullmatch(said)) is not None:
            return AccessDenial(at, "publish", self._users.get(match[1], ""), match[1], match[2])
        elif (match := _SUBSCRIBE.fullmatch(said)) is not None:
            self._asking = match[1]
        elif said.startswith("OpenSSL Error"):
            cause = next((told for words, told in _CAUSES.items() if words in said), None)
            return AccessDenial(at, "connect", "", "", cause) if cause is not None else None
        return None

    def _subscription(self, at: int, said: str) -> AccessDenial | None:
        match = _FILTER.fullmatch(said)
        if match is None or not self._asking or self._may_read is None:
            return None
        user, wanted = self._users.get(self._asking, ""), match[1]
        bare = wanted.split("/", 2)[2] if wanted.startswith("$share/") and wanted.count("/") > 1 else wanted
        if any(overlap(bare, one) for one in self._may_read.get(user, ())):
            return None
        return AccessDenial(at, "subscribe", user, self._asking, wanted)


def is_chatter(line: str) -> bool:
    """Whether a line is one of those that a verbose broker writes for every message there is."""
    return _CHATTER.search(line) is not None


def readable(acl: str) -> dict[str, list[str]]:
    """Topic filters that each user may read, by an access list as `acl.py` writes them: a section for each user."""
    found: dict[str, list[str]] = {}
    user = ""
    for line in acl.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            user = rest
            found.setdefault(user, [])
        elif word == "topic":
            right, _, pattern = rest.partition(" ")
            if right in ("read", "readwrite"):
                found.setdefault(user, []).append(pattern)
    return found
