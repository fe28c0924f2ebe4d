"""Compares a broker's version with the known holes of Mosquitto in what Hedgerow uses of it.

Distributions mend holes without a new version, so a hole is never certain: where the broker's package is on this machine, its
changelog says what was mended.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hedgerow.cli.base.client import payload_of
from hedgerow.cli.base.connection import connected
from hedgerow.config import BrokerSection
from hedgerow.errors import HedgerowError

TOPIC: Final = "$SYS/broker/version"
_PATIENCE_S: Final = 2.0
_VERSION: Final = re.compile(r"mosquitto version (\d{1,4})\.(\d{1,4})\.(\d{1,4})")
_CHANGELOG: Final = Path("/usr/share/doc/mosquitto/changelog.Debian.gz")
_CVE: Final = re.compile(r"CVE-\d{4}-\d{4,7}")


@dataclass(frozen=True, slots=True)
class Hole:
    """A known hole: its id, the first version without it (None: not known), what it lets others do, and the first version with it."""

    name: str
    mended_in: tuple[int, int, int] | None
    what: str
    since: tuple[int, int, int] = (0, 0, 0)


HOLES: Final = (
    Hole("CVE-2021-34432", (2, 0, 8), "a publish to an empty topic ends the broker"),
    Hole("CVE-2021-28166", (2, 0, 10), "a client that sends CONNACK ends the broker"),
    Hole("CVE-2021-34431", (2, 0, 11), "crafted CONNECT packets use up memory"),
    Hole("CVE-2021-41039", (2, 0, 12), "many user properties in CONNECT use up a core"),
    Hole("CVE-2023-0809", (2, 0, 16), "a first packet other than CONNECT uses up memory"),
    Hole("CVE-2023-3592", (2, 0, 16), "wills with invalid properties use up memory"),
    Hole("CVE-2023-28366", (2, 0, 21), "repeated QoS 2 messages use up memory; 2.0.16 mended most of it"),
    Hole(
        "CVE-2024-3935",
        (2, 0, 19),
        "the broker behind a bridge that renames topics, unlike rendered ones, ends this one",
    ),
    Hole("CVE-2024-8376", (2, 0, 19), "mixed shared and ordinary subscriptions end the broker"),
    Hole(
        "eclipse-mosquitto/mosquitto#3226",
        (2, 0, 22),
        "it ends clients at random where `max_keepalive` is set, as rendered brokers have it",
        since=(2, 0, 21),
    ),
    Hole(
        "eclipse-mosquitto/mosquitto#2634",
        (2, 0, 19),
        "restarted, it ends its own bridge for good where `persistent_client_expiration` is set, as rendered brokers have it",
        since=(2, 0, 15),
    ),
    Hole(
        "eclipse-mosquitto/mosquitto#3728",
        None,
        "restarted after an outage longer than `persistent_client_expiration`, it drops what waits for its bridge",
        since=(2, 1, 0),
    ),
)
"""Of Mosquitto in what Hedgerow uses: MQTT 5, TLS, bridges, persistence. From its ChangeLog up to 2.1.2, and the CVE records of
November 2026. Left out is what rendered brokers do not use: the plugin for dynamic security (CVE-2021-34434), the PROXY protocol
(CVE-2026-129705, 2.1.0 to 2.1.2); and holes of its client library alone (CVE-2024-10525)."""

_GOOD: Final = "2.0.22 or 2.0.23"

Verdict = tuple[Literal["ok", "warning"], str, str]
"""A state, what was found, and what to do about it."""


def check(broker: BrokerSection) -> Verdict:
    """Ask a broker for its version, and judge it."""
    try:
        text = asyncio.run(_ask(broker))
    except HedgerowError as error:
        return "warning", f"its version is not known: {error}", error.remedy
    local = re.search(r"//(localhost|127\.|\[::1\])", broker.url) is not None or broker.url.startswith("unix:")
    return judge(text, _package() if local else "", _mended() if local else ())


def judge(text: str | None, package: str, mended: Collection[str]) -> Verdict:
    """Judge a version.

    Args:
        text: what the broker says; None: nothing.
        package: revision of its package; "": not known.
        mended: ids that the package's changelog names.
    """
    if text is None:
        return (
            "warning",
            f"its version is not known: this user may not read {TOPIC}",
            "Run doctor on the broker's machine, or compare its version with docs/operator/security.md.",
        )
    found = _VERSION.fullmatch(text.strip())
    shown = f"{text.strip()[:80]!r}{f', package {package}' if package else ''}"
    if found is None:
        return (
            "warning",
            f"{shown}: not known here",
            "Look up its known vulnerabilities; Hedgerow knows those of Mosquitto.",
        )
    version = (int(found[1]), int(found[2]), int(found[3]))
    known = [hole for hole in HOLES if hole.since <= version and (hole.mended_in is None or version < hole.mended_in)]
    holes = [hole for hole in known if hole.name not in mended]
    if not holes:
        backported = len(known)
        return "ok", f"{shown}, without known holes{f' ({backported} mended by the package)' if backported else ''}", ""
    listed = "; ".join(f"{hole.name}: {hole.what}" for hole in holes)
    return (
        "warning",
        f"{shown} may have known holes: {listed}",
        f"Use {_GOOD}; or check that its package has them mended: `apt changelog mosquitto`.",
    )


async def _ask(broker: BrokerSection) -> str | None:
    async with connected(broker, timeout=5) as client:
        await client.subscribe(TOPIC)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                async for message in client.messages:
                    return payload_of(message).decode("utf-8", "replace")
        except TimeoutError:
            pass
    return None


def _package() -> str:
    """Return the revision of this machine's package; "" if it has none, or none that can be read."""
    program = shutil.which("dpkg-query")
    if program is None:
        return ""
    command = [program, "--show", "--showformat=${Version}", "mosquitto"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - a path from which
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _mended() -> frozenset[str]:
    """Return the ids that the changelog of this machine's package names."""
    try:
        with gzip.open(_CHANGELOG, "rt", errors="replace") as file:
            return frozenset(_CVE.findall(file.read(1 << 20)))
    except OSError:
        return frozenset()
