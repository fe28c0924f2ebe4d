"""`hedgerow watch` during an outage of its broker, and interrupted with Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import aiomqtt
import pytest
from tests.cli.frames.test_watch import make_result, publish
from tests.cli.terminals import terminal

from hedgerow.testing import Mosquitto
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import encode_json

PRESS = Address("plant", "hall-1", "press")


def read_lines(stream: IO[str]) -> list[str]:
    """Return a list that grows as lines of a stream arrive."""
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")), daemon=True).start()
    return lines


async def publish_until(mosquitto: Mosquitto, condition: Callable[[], bool], sequence: int = 0) -> None:
    """Publish results until a condition holds: after a restart, the broker may take a moment."""
    async with (
        asyncio.timeout(60),
        aiomqtt.Client("127.0.0.1", mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        while not condition():
            await publish(client, PRESS.topic(Channel.RESULT, "doors"), encode_json(make_result(sequence)))
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the output of another process
            await asyncio.sleep(0.02)


def complete_tables(output: str) -> list[str]:
    """Return the tables drawn, without the last, which may be incomplete."""
    return output.split("PIPELINE")[1:-1]


@pytest.mark.parametrize("form", ["--json", "--lines"])
async def test_lines_continue_after_an_outage_until_ctrl_c(mosquitto, start, form: str) -> None:
    """Outages are reported on stderr; stdout has only results."""
    process = start("watch", form, "--broker", mosquitto.url)
    out, err = read_lines(process.stdout), read_lines(process.stderr)

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
    assert err[0].startswith(
        f"broker unavailable, reconnecting… (The connection to the broker at {mosquitto.url} was lost: "
    )
    assert err[1:] == ["reconnected\n"]
    assert all(("plant/hall-1/press" in line) and ("broker" not in line) for line in out)


async def test_the_table_continues_after_an_outage_until_ctrl_c(mosquitto) -> None:
    with terminal("watch", "--broker", mosquitto.url) as shell:
        await publish_until(mosquitto, lambda: "2 face" in shell.output)
        mosquitto.stop()
        outage = f"Broker unavailable, reconnecting… (The connection to the broker at {mosquitto.url} was lost: "
        await until(lambda: outage in shell.output)
        mosquitto.start()
        seen = len(shell.output)
        await publish_until(
            mosquitto, lambda: "Broker unavailable" not in (complete_tables(shell.output[seen:]) or [outage])[-1]
        )
        code, output = await asyncio.to_thread(shell.interrupt)

    assert code == 130
    assert "Traceback" not in output
    assert output.rindex("PIPELINE") > output.rindex("Broker unavailable"), (
        "the last table no longer reports the outage"
    )


async def test_ctrl_c_ends_the_watch_during_an_outage(mosquitto) -> None:
    with terminal("watch", "--broker", mosquitto.url) as shell:
        await publish_until(mosquitto, lambda: "2 face" in shell.output)
        mosquitto.stop()
        await until(lambda: "Broker unavailable" in shell.output)
        code, output = await asyncio.to_thread(shell.interrupt)

    assert code == 130
    assert "Traceback" not in output
    assert output.count("\x1b[?25h") == output.count("\x1b[?25l") > 0, "the cursor is visible again"


def test_a_broker_unreachable_from_the_start_ends_the_watch(hedgerow) -> None:
    result = hedgerow("watch", "--broker", "mqtt://127.0.0.1:1")

    assert result.code == 3
    assert "mqtt://127.0.0.1:1 refused the connection: nothing listens there" in result.err


async def test_a_broker_that_refuses_the_connection_after_an_outage_ends_the_watch(start, tmp_path: Path) -> None:
    """Reconnecting would not help."""
    with Mosquitto() as mosquitto:
        process = start("watch", "--lines", "--broker", mosquitto.url)
        out, err = read_lines(process.stdout), read_lines(process.stderr)
        await publish_until(mosquitto, lambda: len(out) > 0)
        mosquitto.stop()
        await until(lambda: len(err) > 0)
        port = mosquitto.port
        (tmp_path / "passwords").touch(0o600)
        with Mosquitto(port=port, config=[f"password_file {tmp_path / 'passwords'}", "allow_anonymous false"]):
            assert await asyncio.to_thread(process.wait, 60) == 3

    await until(lambda: len(err) > 2)
    assert err[1].startswith(f"error: {mosquitto.url} refused the connection: not authorised")
