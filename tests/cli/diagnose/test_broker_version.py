"""What doctor says about a broker's version: what it does not know is a warning, never ok."""

from __future__ import annotations

import pytest

from hedgerow.cli.diagnose import broker_version
from hedgerow.cli.diagnose.broker_version import HOLES, check, judge
from hedgerow.config import BrokerSection
from hedgerow.testing import Mosquitto

ALL = [hole.name for hole in HOLES]


@pytest.mark.parametrize(
    ("text", "mended", "state", "said"),
    [
        ("mosquitto version 2.0.22", (), "ok", "without known holes"),
        ("mosquitto version 2.0.21", (), "warning", "#3226"),
        ("mosquitto version 2.0.20", (), "warning", "CVE-2023-28366"),
        ("mosquitto version 2.0.23", (), "ok", "without known holes"),
        ("mosquitto version 2.1.0", (), "warning", "#3728"),
        ("mosquitto version 10.0.0", (), "warning", "#3728"),
        ("mosquitto version 2.0.14", (), "warning", "CVE-2023-0809"),
        ("mosquitto version 2.0.15", (), "warning", "#2634"),
        ("mosquitto version 2.0.18", (), "warning", "CVE-2024-8376"),
        ("mosquitto version 2.0.11", ALL, "ok", "6 mended by the package"),
        ("mosquitto version 2.0.11", [one for one in ALL if one != "CVE-2024-8376"], "warning", "CVE-2024-8376"),
        ("mosquitto version 1.6.12", (), "warning", "CVE-2021-34432"),
        ("mosquitto version 2.0", (), "warning", "not known here"),
        ("HiveMQ 4.9\x1b[2J", (), "warning", "not known here"),
        ("", (), "warning", "not known here"),
        (None, (), "warning", "may not read"),
    ],
)
def test_a_version_is_compared_with_known_holes(text: str | None, mended: list[str], state: str, said: str) -> None:
    verdict, detail, remedy = judge(text, "", mended)

    assert verdict == state
    assert said in detail
    assert bool(remedy) == (state == "warning")
    assert "\x1b" not in detail


def test_only_holes_of_this_version_are_named() -> None:
    _, detail, remedy = judge("mosquitto version 2.0.16", "2.0.16-1", ())

    assert "CVE-2024-3935" in detail
    assert "CVE-2023-0809" not in detail
    assert "package 2.0.16-1" in detail
    assert "#3226" not in detail
    assert "#2634" in detail
    assert "2.0.22" in remedy


async def _nothing(broker: BrokerSection) -> None:
    return None


def test_a_real_broker_is_asked(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = BrokerSection(url=mosquitto.url)
    _, detail, _ = check(broker)
    assert "'mosquitto version " in detail

    monkeypatch.setattr(broker_version, "_ask", _nothing)
    state, detail, _ = check(broker)
    assert (state, "may not read" in detail) == ("warning", True)


def test_a_broker_that_is_away_is_a_warning() -> None:
    state, detail, remedy = check(BrokerSection(url="mqtt://127.0.0.1:1"))

    assert state == "warning"
    assert "not known" in detail
    assert remedy
