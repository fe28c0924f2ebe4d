"""Runs the command line, in this process or another."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from subprocess import PIPE
from typing import Any

import aiomqtt
import orjson
import pytest
from typer.testing import CliRunner

from hedgerow.cli.main import app
from hedgerow.testing import Mosquitto, processes


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [orjson.loads(line) for line in self.out.splitlines()]


Hedgerow = Callable[..., Result]


@pytest.fixture
def hedgerow(monkeypatch: pytest.MonkeyPatch) -> Hedgerow:
    """Runs a command line in this process."""
    for name in [name for name in os.environ if name.startswith("HEDGEROW_")]:
        monkeypatch.delenv(name)

    def run(*args: object, input: str | bytes | None = None) -> Result:
        # prog_name of the installed command; a wide terminal, so that help is not wrapped.
        result = CliRunner().invoke(app, [*map(str, args)], input=input, prog_name="hedgerow", terminal_width=200)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command line in another process, through `before` if given, and kills it after the test."""
    with ExitStack() as stack:

        def run(*args: object, before: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
            command = [*before, sys.executable, "-m", "hedgerow", *map(str, args)]
            process = processes.start(command, stdout=PIPE, stderr=PIPE, text=True, **options)
            stack.enter_context(process)  # closes its pipes
            stack.callback(process.kill)
            return process

        yield run


Listen = Callable[..., AbstractAsyncContextManager[aiomqtt.Client]]


@pytest.fixture
def listen(broker: Mosquitto) -> Listen:
    """Connects to the shared broker and subscribes to filters."""

    @asynccontextmanager
    async def connect(*filters: str) -> AsyncIterator[aiomqtt.Client]:
        client = aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5)
        async with client:
            for pattern in filters:
                await client.subscribe(pattern, qos=1)
            yield client

    return connect


@pytest.fixture
def in_background(hedgerow: Hedgerow) -> Callable[..., asyncio.Task[Result]]:
    """Runs a command line in a thread, while the test is its counterpart."""

    def run(*args: object, **options: Any) -> asyncio.Task[Result]:
        return asyncio.create_task(asyncio.to_thread(hedgerow, *args, **options))

    return run
