"""The watch over a node's certificate files, a look at a time; no broker: the link it is given never comes up."""

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
WHO = parse("site/node")


class Watched:
    """A watch, with what it has told."""

    def __init__(self, folder: Path) -> None:
        self.pki = Pki(folder, lambda: NOW)
        self.pki.init("test", ["site"])
        self.home = self.pki.issue(WHO, timedelta(days=8)).folder
        self.pki.issue(parse("site/other"), timedelta(days=8))
        files = {"ca": "trust.crt", "cert": "tls.crt", "key": "tls.key", "crl": "trust.crl"}
        options = ClientOptions(
            url="mqtts://localhost:1", **{f"{part}_file": self.home / name for part, name in files.items()}
        )
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.watch = CertificateWatch(Client(options, self._hears), self._renew, lambda *event: self.told.append(event))

    def _hears(self, messages: list[Message]) -> None:
        raise AssertionError(messages)

    async def _renew(self) -> None:
        raise AssertionError("the node's own link goes first, and it never comes up")

    async def looks(self, at: datetime = NOW, times: int = 3) -> list[str]:
        """The kinds of what it tells at some looks."""
        self.told.clear()
        for _ in range(times):
            await self.watch.check(at)
        return [kind for kind, _ in self.told]

    @property
    def ends(self) -> float:
        return {name: value for name, _, _, value in self.watch.gauges()}["hedgerow_certificate_ends_seconds"]


@pytest.fixture
async def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_a_certificate_that_is_good_is_not_spoken_of(watched: Watched) -> None:
    assert await watched.looks() == []
    assert watched.watch.reasons() == []


async def test_a_certificate_that_ends_soon_is_told_once_a_day_with_what_to_do(watched: Watched) -> None:
    assert await watched.looks(NOW + timedelta(days=6)) == ["certificate-ending"]
    assert "hedgerow pki renew" in watched.told[0][1]["remedy"]
    assert await watched.looks(NOW + timedelta(days=7)) == []
    assert await watched.looks(NOW + timedelta(days=9)) == ["certificate-ending"]
    assert "expired on" in watched.told[0][1]["detail"]


async def test_a_clock_that_is_behind_is_told_as_such(watched: Watched) -> None:
    assert await watched.looks(NOW - timedelta(days=2)) == ["clock-doubtful"]


async def test_files_are_taken_when_two_looks_have_found_the_same(watched: Watched) -> None:
    """A renewal puts one file after the other; halfway, the key is not that of the certificate."""
    before = watched.ends
    Pki(watched.pki.folder, lambda: NOW + timedelta(days=1)).renew([WHO], new_key=True)
    assert await watched.looks(times=1) == []
    assert watched.ends == before

    assert await watched.looks(times=1) == []
    assert watched.ends == before + 86_400


async def test_files_that_cannot_be_used_are_told_once(watched: Watched) -> None:
    """And again when they are others that cannot be used."""
    before = watched.ends
    (watched.home / "tls.crt").write_text("no certificate")
    assert await watched.looks(times=5) == ["certificate-unusable"]
    for name in ("tls.crt", "tls.key"):
        shutil.copy(watched.home.parent / "other" / name, watched.home / name)
    assert await watched.looks(times=5) == ["certificate-unusable"]
    assert "is the certificate of 'site/other'" in watched.told[0][1]["error"]
    assert watched.ends == before
