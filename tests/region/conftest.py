"""Fixtures: a collector process, gateways with real outboxes, and stores in SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from hedgerow.bus import Client, ClientOptions, Message
from hedgerow.bus.outbox.outbox import Outbox
from hedgerow.bus.outbox.records import Ack, Record
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.node.commands import CommandServer
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database
from hedgerow.testing import Mosquitto, processes
from hedgerow.topics import Address, Channel, late
from hedgerow.wire.messages import Health, Status

PATIENCE_S = 90.0
REGION = "test"


async def eventually(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "it") -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what()}"
        await asyncio.sleep(0.03)  # each check may open the store


def result(pipeline: str, n: int, captured_at: float | None = None, **more: Any) -> bytes:
    """Return the payload of a result."""
    at = time.time() if captured_at is None else captured_at
    frame = {"id": f"f{n}", "stream": "s", "topic": "s", "sequence": n, "captured_at": at}
    body = {"schema": "hedgerow.result/1", "pipeline": pipeline, "id": f"f{n}", "at": at, "frame": frame}
    return json.dumps(body | {"result": {"n": n}, "lineage": {}} | more).encode()


class Gateway:
    """The part of a node that a region sees: a real outbox, status and health, and replies to commands."""

    def __init__(
        self,
        url: str,
        address: Address,
        folder: Path,
        *,
        answers: bool = True,
        file: str | None = None,
        client_id: str = "",
        tls: Mapping[str, Any] = MappingProxyType({}),
        **outbox: Any,
    ) -> None:
        self.address = address
        self.acks: list[Ack] = []
        self.events: list[tuple[str, Any]] = []
        will = Status(state="offline", session="s1", node=str(address), version="0")
        self.will = will
        options = ClientOptions(
            url=url, client_id=client_id or str(address), max_backoff_s=0.3, session_expiry_s=3600, **tls
        )
        self.client = Client(options, self._take, self._state)
        self.outbox = Outbox(
            folder / f"{file or f'{address.site}-{address.node}'}.outbox",
            gap_topic=address.topic(Channel.EVENT, "gap"),
            late=late,
            readdress=address.present,
            publish=self.client.publish,
            on_event=lambda kind, detail: self.events.append((kind, detail)),
            **outbox,
        )
        self._desk = CommandServer(address, self.client, {"ping": self._ping} if answers else {})
        self._answers = answers
        self._tasks: set[asyncio.Task[None]] = set()
        self.count = 0

    def send(self, count: int = 1, *, pipeline: str = "p", priority: int = 0, **more: Any) -> None:
        """Append durable results to the outbox."""
        properties = encode_properties([(Property.CONTENT_TYPE, "application/json"), (Property.USER, ("id", "x"))])
        records = []
        for _ in range(count):
            self.count += 1
            payload = result(pipeline, self.count, **more)
            topic = self.address.topic(Channel.RESULT, pipeline)
            records.append(Record(pipeline, topic, payload, properties, priority, time.time()))
        self.outbox.append(records, [], lambda _: None)

    def status(self, state: str = "online", session: str = "s1") -> None:
        message = Status.model_validate(
            {"state": state, "session": session, "node": str(self.address), "version": "0", "at": time.time()}
        )
        self.client.publish(self.address.topic(Channel.STATUS), message.encode(), qos=1, retain=True)

    def health(self, state: str = "ok", reasons: tuple[str, ...] = ()) -> None:
        region = self.outbox.status.region
        known = {"mark": region.mark, "resent": region.resent, "complete": region.complete}
        message = Health.model_validate(
            {
                "node": str(self.address),
                "session": "s1",
                "at": time.time(),
                "uptime_s": 1,
                "state": state,
                "reasons": reasons,
                "outbox": {"region": known},
            }
        )
        self.client.publish(self.address.topic(Channel.HEALTH), message.encode(), qos=1)

    @property
    def entries(self) -> int:
        """Results and gaps not acknowledged by the region."""
        status = self.outbox.status
        return status.entries + status.appending

    async def __aenter__(self) -> Gateway:
        await self.outbox.__aenter__()
        await self.client.__aenter__()
        await self.client.subscribe({self.address.topic(Channel.ACK): 1})
        if self._answers:
            await self.client.subscribe(self._desk.filters())
        await self.client.wait_connected(PATIENCE_S)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.client.close(timeout_s=0.2)
        await self.outbox.close()

    async def _ping(self, args: Any) -> dict[str, float]:
        return {"at": time.time()}

    def _state(self, up: bool, reason: str) -> None:
        self.outbox.link_changed(up=up)

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic.endswith("/ack"):
                ack = Ack.decode(message.payload)
                self.acks.append(ack)
                self.outbox.acknowledge(ack)
            else:
                task = asyncio.get_running_loop().create_task(self._desk.answer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self.client.ack(message)


class CollectorProcess:
    """`python -m hedgerow region run FILE`."""

    def __init__(self, broker_url: str, store: str, folder: Path) -> None:
        self.file = folder / "region.yaml"
        self.store = store
        self._folder = folder
        self._broker_url = broker_url
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, **sections: Any) -> None:
        config: dict[str, Any] = {
            "region": {"name": REGION},
            "broker": {"url": self._broker_url},
            "store": {"url": self.store},
            "ping": {"every_s": None},
            "metrics": {"port": 0},
        }
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section}
        self.file.write_text(json.dumps(config))

    def start(self, *, wait: bool = True) -> None:
        before = self.log.count('"region-started"') if (self._folder / "region.log").exists() else 0
        with (self._folder / "region.log").open("ab") as log:
            self._process = processes.start(
                [sys.executable, "-m", "hedgerow", "region", "run", str(self.file)], stderr=log, stdout=log
            )
        if wait:
            deadline = time.monotonic() + PATIENCE_S
            while self.log.count('"region-started"') == before or self.probe("readyz")[0] != 200:
                assert time.monotonic() < deadline, self.log[-3000:]
                assert self._process.poll() is None, self.log[-3000:]
                time.sleep(0.02)

    @property
    def started(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        return (self._folder / "region.log").read_text()

    def probe(self, path: str) -> tuple[int, str]:
        """Return the status and body of a probe; status 0 if it cannot be reached."""
        lines = [json.loads(line) for line in self.log.splitlines() if '"probes"' in line]
        try:
            with urllib.request.urlopen(lines[-1]["url"].replace("metrics", path), timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, IndexError):
            return 0, ""

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


@asynccontextmanager
async def sender(url: str) -> AsyncIterator[Client]:
    """A client that only publishes."""
    async with Client(ClientOptions(url=url), lambda _: None) as client:
        await client.wait_connected(PATIENCE_S)
        yield client


class PostgresServer:
    """A private PostgreSQL server on a Unix socket, owned by a user who is not root."""

    def __init__(self, binaries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._binaries = binaries
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        command = [binaries / "initdb", "-D", self._data, "-U", "hedgerow", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*command, "--locale=C"], check=True, capture_output=True, cwd=self.folder, **self._user)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = processes.start(
                [self._binaries / "postgres", "-D", self._data, "-k", self.folder, "-c", "listen_addresses="],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._user,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _answers(self) -> bool:
        command = [self._binaries / "pg_isready", "-h", self.folder, "-U", "hedgerow"]
        ready = subprocess.run(command, capture_output=True, check=False)
        return ready.returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; SIGINT ends connections, as a restart does."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(PATIENCE_S)

    def database(self) -> str:
        """Create a database; return its address."""
        self._databases += 1
        name = f"d{self._databases}"
        subprocess.run([self._binaries / "createdb", "-h", self.folder, "-U", "hedgerow", name], check=True)
        return f"postgresql://hedgerow@/{name}?host={self.folder}"

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if it is not installed."""
    found = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if initdb := shutil.which("initdb"):
        found.append(Path(initdb).resolve().parent)
    return found[-1] if found else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hedgerow[region]'")
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store, in each of the databases."""
    if request.param == "sqlite":
        return str(tmp_path / "region.db")
    url: str = request.getfixturevalue("postgres").database()
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return str(tmp_path / "region.db")


@pytest.fixture
def reading() -> Iterator[Callable[[str], Database]]:
    """A function that opens stores to read."""
    opened: list[Database] = []

    def make(url: str) -> Database:
        opened.append(open_database(url, write=False))
        return opened[-1]

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def collector(mosquitto: Mosquitto, sqlite_url: str, tmp_path: Path) -> Iterator[CollectorProcess]:
    """A collector with SQLite, configured but not started."""
    process = CollectorProcess(mosquitto.url, sqlite_url, tmp_path)
    process.configure()
    yield process
    process.close()


@pytest.fixture
def gateway(mosquitto: Mosquitto, tmp_path: Path) -> Callable[..., Gateway]:
    def make(node: str = "n1", site: str = "s1", url: str | None = None, **options: Any) -> Gateway:
        return Gateway(url or mosquitto.url, Address(REGION, site, node), tmp_path, **options)

    return make
