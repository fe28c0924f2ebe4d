"""Watching a node's certificate files, check by check. There is no broker, so the link never connects."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.node.link.certificates import CertificateWatch
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse

NOW = datetime.now(UTC)
NODE = parse("site/node")


class Watched:
    """A certificate watch and its events."""

    def __init__(self, folder: Path) -> None:
        self.pki = Pki(folder, lambda: NOW)
        self.pki.init("test", ["site"])
        self.home = self.pki.issue(NODE, timedelta(days=8)).folder
        self.pki.issue(parse("site/other"), timedelta(days=8))
        files = {"ca": "trust.crt", "cert": "tls.crt", "key": "tls.key", "crl": "trust.crl"}
        options = ClientOptions(
            url="mqtts://localhost:1", **{f"{part}_file": self.home / name for part, name in files.items()}
        )
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.watch = CertificateWatch(
            Client(options, self._receive), self._renew, lambda *event: self.events.append(event)
        )

    def _receive(self, messages: list[Message]) -> None:
        raise AssertionError(messages)

    async def _renew(self) -> None:
        raise AssertionError("the node's own link reconnects first, and it never connects")

    async def check(self, at: datetime = NOW, times: int = 3) -> list[str]:
        """Check a few times; return the kinds of events."""
        self.events.clear()
        for _ in range(times):
            await self.watch.check(at)
        return [kind for kind, _ in self.events]

    @property
    def expires_at(self) -> float:
        return {name: value for name, _, _, value in self.watch.gauges()}["hedgerow_certificate_ends_seconds"]


@pytest.fixture
async def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_a_valid_certificate_is_not_reported(watched: Watched) -> None:
    assert await watched.check() == []
    assert watched.watch.reasons() == []


async def test_a_certificate_that_expires_soon_is_reported_once_a_day_with_a_remedy(watched: Watched) -> None:
    assert await watched.check(NOW + timedelta(days=6)) == ["certificate-ending"]
    assert "hedgerow pki renew" in watched.events[0][1]["remedy"]
    assert await watched.check(NOW + timedelta(days=7)) == []
    assert await watched.check(NOW + timedelta(days=9)) == ["certificate-ending"]
    assert "expired on" in watched.events[0][1]["detail"]


async def test_a_clock_that_is_behind_is_reported(watched: Watched) -> None:
    assert await watched.check(NOW - timedelta(days=2)) == ["clock-doubtful"]


async def test_files_are_used_once_two_checks_find_the_same_content(watched: Watched) -> None:
    """A renewal replaces one file after the other; halfway, the key does not match the certificate."""
    before = watched.expires_at
    Pki(watched.pki.folder, lambda: NOW + timedelta(days=1)).renew([NODE], new_key=True)
    assert await watched.check(times=1) == []
    assert watched.expires_at == before

    assert await watched.check(times=1) == []
    assert watched.expires_at == before + 86_400


async def test_unusable_files_are_reported_once(watched: Watched) -> None:
    """And again if their content changes and is still unusable."""
    before = watched.expires_at
    (watched.home / "tls.crt").write_text("no certificate")
    assert await watched.check(times=5) == ["certificate-unusable"]
    for name in ("tls.crt", "tls.key"):
        shutil.copy(watched.home.parent / "other" / name, watched.home / name)
    assert await watched.check(times=5) == ["certificate-unusable"]
    assert "is the certificate of 'site/other'" in str(watched.events[0][1]["error"])
    assert watched.expires_at == before


async def test_a_revocation_list_that_expires_soon_is_reported_once_a_day(watched: Watched, tmp_path: Path) -> None:
    """The broker most likely has the same one, and refuses every client once it has expired."""
    watched.pki.renew_lists(timedelta(days=4))
    assert await watched.check(NOW + timedelta(days=2, hours=12)) == []
    assert await watched.check(NOW + timedelta(days=3, hours=12)) == ["revocation-list-ending"]
    assert "has not been renewed" in watched.events[0][1]["detail"]
    assert "a broker refuses every client" in watched.events[0][1]["remedy"]
    assert "revocation-list-ending" not in await watched.check(NOW + timedelta(days=5))
