"""Passwords that are rotated: the file is read for every connection, and a reload uses it at once."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from trial_site import Site, until

from hedgerow.testing import Mosquitto


class Rotation:
    """A broker with a password for the node, and the node's password file."""

    def __init__(self, broker: Mosquitto, site: Site, folder: Path) -> None:
        self.broker = broker
        self.site = site
        self._folder = folder

    def at_the_broker(self, password: str) -> None:
        set_password(self._folder, password)
        self.broker.reload()

    def at_the_node(self, password: str) -> None:
        (self._folder / "secret").write_text(f"{password}\n")

    @property
    def section(self) -> dict[str, Any]:
        file = str(self._folder / "secret")
        return {"broker": {"url": self.broker.url, "username": "node", "password_file": file}}


def set_password(folder: Path, password: str) -> None:
    command = ["mosquitto_passwd", "-b", "-c", str(folder / "users"), "node", password]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
async def rotation(tmp_path: Path) -> AsyncIterator[Rotation]:
    set_password(tmp_path, "first")
    with Mosquitto(config=[f"password_file {tmp_path / 'users'}"]) as broker:
        async with Site(broker.port, tmp_path) as site:
            rotation = Rotation(broker, site, tmp_path)
            rotation.at_the_node("first")
            yield rotation


async def test_a_rotated_password_is_used_when_the_broker_closes_the_connection(rotation: Rotation) -> None:
    async with rotation.site.node(**rotation.section) as node:
        rotation.at_the_node("second")
        rotation.at_the_broker("second")  # Mosquitto closes the connections that used the old one
        rotation.broker.restart()
        await until(lambda: node._link.reconnects and node._link.connected and node.runners["p"].connected)


async def test_a_reload_uses_a_rotated_password(rotation: Rotation) -> None:
    async with rotation.site.node(**rotation.section) as node:
        rotation.at_the_broker("second")
        rotation.at_the_node("second")
        await until(lambda: node._link.reconnects and node._link.connected)  # Mosquitto ends the links of the old one
        reply = await rotation.site.command("reload")
        await until(lambda: not node._link.password_changed and node._link.connected)
        await until(lambda: node.runners["p"].connected)

    assert reply["ok"]
    assert not rotation.site.events("reload-refused")


async def test_a_reload_with_a_password_that_the_broker_refuses_changes_nothing(rotation: Rotation) -> None:
    async with rotation.site.node(**rotation.section) as node:
        rotation.at_the_node("too early")
        reply = await rotation.site.command("reload")
        assert node._link.connected
        assert node._link.reconnects == 0

    assert not reply["ok"]
    assert "not authorised" in reply["error"]["message"]
    assert "too early" not in str(reply)
    offline = [status.body for status in rotation.site.published("status") if status.body["state"] == "offline"]
    assert [status["reason"] for status in offline] == ["stopped"], "the attempt published no will"


async def test_a_reload_with_an_unreadable_password_file_is_refused(rotation: Rotation, tmp_path: Path) -> None:
    async with rotation.site.node(**rotation.section):
        (tmp_path / "secret").unlink()
        reply = await rotation.site.command("reload")

    assert not reply["ok"]
    assert "password file" in reply["error"]["message"]
