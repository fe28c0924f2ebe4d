"""`hedgerow watch` while its broker goes away and comes back, and when it is stopped with Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import aiomqtt
import pytest
from tests.cli.frames.test_watch import result, say
from tests.cli.terminals import terminal

from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import encode_json

PRESS = Address("plant", "hall-1", "press")


def coming(stream: IO[str]) -> list[str]:
    """The lines of a stream, as they come."""
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")), daemon=True).start()
    return lines


async def publish_until(mosquitto: Mosquitto, condition: Callable[[], bool], sequence: int = 0) -> None:
    """Publish results until somebody has heard enough; a broker that was started again may need a moment."""
    async with (
        asyncio.timeout(60),
        aiomqtt.Client("127.0.0.1", mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        while not condition():
            await say(client, PRESS.topic(Channel.RESULT, "doors"), encode_json(result(sequence)))
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody tells: it is what another process writes
            await asyncio.sleep(0.02)


def whole_tables(shown: str) -> list[str]:
    """The tables that were drawn, from the first heading on to the last."""
    return shown.split("PIPELINE")[1:-1]


@pytest.mark.parametrize("form", ["--json", "--lines"])
async def test_lines_go_on_when_the_broker_is_back_until_ctrl_c(mosquitto, start, form: str) -> None:
    """It says on stderr that the broker is away and back; stdout holds results alone."""
    process = start("watch", form, "--broker", mosquitto.url)
    out, err = coming(process.stdout), coming(process.stderr)

    await publish_until(mosquitto, lambda: len(out) > 0)
    mosquitto.stop()
    await until(lambda: len(err) > 0)
    before = len(out)
    mosquitto.start()
    await publish_until(mosquitto, lambda: len(out) > before)
    process.send_signal(signal.SIGINT)
    code = await asyncio.to_thread(process.wait, 60)
    await until(lambda: len(err) > 1)

    assert code == 130
    assert err[0].startswith(f"broker away, trying again… (The connection to the broker at {mosquitto.url} was lost: ")
    assert err[1:] == ["broker back\n"]
    assert all(("plant/hall-1/press" in line) and ("broker" not in line) for line in out)


async def test_the_table_goes_on_when_the_broker_is_back_until_ctrl_c(mosquitto) -> None:
    with terminal("watch", "--broker", mosquitto.url) as shell:
        await publish_until(mosquitto, lambda: "2 face" in shell.output)
        mosquitto.stop()
        away = f"Broker away, trying again… (The connection to the broker at {mosquitto.url} was lost: "
        await until(lambda: away in shell.output)
        mosquitto.start()
        seen = len(shell.output)
        await publish_until(mosquitto, lambda: "Broker away" not in (whole_tables(shell.output[seen:]) or [away])[-1])
        code, shown = await asyncio.to_thread(shell.interrupt)

    assert code == 130
    assert "Traceback" not in shown
    assert shown.rindex("PIPELINE") > shown.rindex("Broker away"), "the last table does not say it any more"


async def test_ctrl_c_ends_it_while_the_broker_is_away(mosquitto) -> None:
    with terminal("watch", "--broker", mosquitto.url) as shell:
        await publish_until(mosquitto, lambda: "2 face" in shell.output)
        mosquitto.stop()
        await until(lambda: "Broker away" in shell.output)
        code, shown = await asyncio.to_thread(shell.interrupt)

    assert code == 130
    assert "Traceback" not in shown
    assert shown.count("\x1b[?25h") == shown.count("\x1b[?25l") > 0, "the cursor is back"


def test_a_broker_that_was_never_there_ends_it(hedgerow) -> None:
    said = hedgerow("watch", "--broker", "mqtt://127.0.0.1:1")

    assert said.code == 3
    assert "cannot be reached" in said.err


async def test_a_broker_that_refuses_it_when_it_is_back_ends_it(start, tmp_path: Path) -> None:
    """It would refuse for ever."""
    with Mosquitto() as mosquitto:
        process = start("watch", "--lines", "--broker", mosquitto.url)
        out, err = coming(process.stdout), coming(process.stderr)
        await publish_until(mosquitto, lambda: len(out) > 0)
        mosquitto.stop()
        await until(lambda: len(err) > 0)
        port = mosquitto.port
        (tmp_path / "passwords").touch(0o600)
        with Mosquitto(port=port, config=[f"password_file {tmp_path / 'passwords'}", "allow_anonymous false"]):
            assert await asyncio.to_thread(process.wait, 60) == 3

    await until(lambda: len(err) > 2)
    assert err[1].startswith(f"error: The broker at {mosquitto.url} refuses the connection: ")
