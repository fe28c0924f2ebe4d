"""`hedgerow region restore`, killed with SIGKILL at any step: the store is the old or the new one, and the next call finishes it."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from tests.region.conftest import REGION, Gateway, eventually
from tests.region.kills.fleet import KilledRegion, rows
from tests.region.kills.forks import Command, spread
from tests.region.kills.test_killed_life import differences, together

from hedgerow.testing import Mosquitto
from hedgerow.topics import Address

NODE: Final = Address(REGION, "s1", "n1")
MODELS: Final = {"metadata/1.root.json": "root", "metadata/timestamp.json": "old", "blobs/sha256/ab/cd": "chunk"}
IN_BACKUP, LATER, WAITING = [*range(1, 11)], [*range(11, 21)], [*range(21, 26)]


class BackedUp:
    """A region with a backup, what was stored after it, and results that wait in an outbox."""

    def __init__(self, region: KilledRegion) -> None:
        self.region = region
        self.backup, self.repository = region.folder / "backup", region.folder / "repository"
        self.expected: dict[bool, Any] = {}
        self.count = 0

    async def make(self) -> None:
        """Make the backup in the middle of the region's life."""
        region = self.region
        config = json.loads(region.file.read_text()) | {"models": {"repository": str(self.repository)}}
        region.file.write_text(json.dumps(config))
        for name, content in MODELS.items():
            (self.repository / name).parent.mkdir(parents=True, exist_ok=True)
            (self.repository / name).write_text(content)
        gateway = Gateway(region.broker, NODE, region.folder, answers=False)
        async with gateway as node:
            await asyncio.to_thread(region.start_service)
            node.status()
            node.send(len(IN_BACKUP))
            await eventually(lambda: node.entries == 0)
            backup = region.forks.start("region", "backup", self.backup, "--config", region.file)
            await asyncio.to_thread(backup.finish)
            node.send(len(LATER))
            await eventually(lambda: node.entries == 0)
            await asyncio.to_thread(region.stop_service)
            node.send(len(WAITING))
            await eventually(lambda: node.entries == len(WAITING) and not node.outbox.status.appending)
        (self.repository / "metadata/timestamp.json").write_text("newer")
        (self.repository / "blobs/sha256/ab/cd").unlink()

    def store(self, name: str, *, empty: bool) -> str:
        """Make a store with what the region's has, or an empty one; return its address."""
        url = self.region.store
        if not url.startswith("postgresql:"):
            path = self.region.folder / name / "region.db"
            if not empty:
                assert not Path(f"{url}-wal").exists()
                shutil.copy(url, path)
            return str(path)
        head, _, tail = url.partition("?")
        base = head.rpartition("/")[2]
        with psycopg.connect(url.replace(f"/{base}?", "/postgres?"), autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name.replace('-', '_')}{'' if empty else f' TEMPLATE {base}'}".encode())
        return f"{head.removesuffix(base)}{name.replace('-', '_')}?{tail}"


class Restoring:
    """A copy of the region, or an empty one, whose restore is killed."""

    def __init__(self, made: BackedUp, *, empty: bool) -> None:
        made.count += 1
        self.made, self.empty = made, empty
        self.folder = made.region.folder / f"copy-{made.count}"
        self.folder.mkdir()
        self.repository = self.folder / "repository"
        if not empty:
            shutil.copytree(made.repository, self.repository)
        self.url = made.store(self.folder.name, empty=empty)
        self.file = self.folder / "region.yaml"
        config = json.loads(made.region.file.read_text())
        models, store = {"repository": str(self.repository)}, {"url": self.url}
        self.file.write_text(json.dumps(config | {"models": models, "store": store}))

    def start(self, kill_at: int | None = None) -> Command:
        words = ["region", "restore", self.made.backup, "--config", self.file, "--json"]
        return self.made.region.forks.start(*words, *([] if self.empty else ["--replace"]), kill_at=kill_at)

    def results(self) -> list[int] | None:
        """Return the numbers of the stored results; None: there is no store yet."""
        if self.url.startswith("postgresql:"):
            if rows(self.url, "SELECT to_regclass('result') IS NULL") == [(True,)]:
                return None
        elif not Path(self.url).exists():
            return None
        else:
            with closing(sqlite3.connect(self.url)) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = rows(self.url, "SELECT payload FROM result")
        return sorted(json.loads(bytes(payload))["result"]["n"] for (payload,) in found)

    def models(self) -> dict[str, str]:
        files = [path for path in self.repository.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(self.repository)): path.read_text() for path in files}

    def check(self) -> None:
        """Check that the store is the old or the new one, and that whatever is in the repository is whole."""
        old = [None, []] if self.empty else [IN_BACKUP + LATER]
        assert self.results() in (IN_BACKUP, *old)
        newer = {} if self.empty else {"metadata/timestamp.json": "newer"}
        assert self.models().items() <= (MODELS | newer).items()
        if not self.empty:
            assert self.models()["metadata/timestamp.json"] == "newer"

    def state(self) -> dict[str, Any]:
        actions = [action for (action,) in rows(self.url, "SELECT action FROM audit ORDER BY ingest")]
        return {
            "results": self.results(),
            "models": self.models(),
            "files": sorted(
                str(path.relative_to(self.folder))
                for path in self.folder.rglob("*")
                if not path.name.endswith(("-wal", "-shm", ".lock"))
            ),
            "actions": sorted(set(actions)),
            "lease": rows(self.url, "SELECT instance, renewals FROM lease"),
            "ledgers": rows(self.url, "SELECT state FROM ledger"),
        }

    async def finish(self) -> None:
        """The next call finishes it, and all is as after an uninterrupted one."""
        await asyncio.to_thread(self.start().finish)
        self.check()
        state = self.state()
        assert not [*differences(state, self.made.expected.setdefault(self.empty, state))]
        assert state["results"] == IN_BACKUP

    async def serve(self) -> None:
        """Start the service with the restored store: what waits in the outbox arrives once."""
        region = self.made.region
        for path in region.folder.glob("s1-n1.outbox*"):
            shutil.copy(path, self.folder / path.name)
        service = await asyncio.to_thread(region.start_service, file=self.file)
        async with Gateway(region.broker, NODE, self.folder, answers=False) as node:
            await eventually(lambda: node.entries == 0)
        await asyncio.to_thread(service.end)
        assert self.results() == IN_BACKUP + WAITING


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def made(request: pytest.FixtureRequest) -> Iterator[BackedUp]:
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    url = str(folder / "region.db") if request.param == "sqlite" else request.getfixturevalue("postgres").database()
    with Mosquitto() as broker:
        region = KilledRegion(folder, broker.url, url)
        try:
            yield BackedUp(region)
        finally:
            region.forks.close()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("empty", [False, True], ids=["replaces", "onto-nothing"])
@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.long), pytest.param(50, marks=pytest.mark.slow)])
async def test_a_restore_killed_at_any_step_is_finished_by_the_next(made: BackedUp, kills: int, *, empty: bool) -> None:
    if not made.backup.exists():
        await made.make()
    first = Restoring(made, empty=empty)
    uninterrupted = first.start()
    await asyncio.to_thread(uninterrupted.finish)
    await first.finish()
    restored: list[Restoring] = []

    async def kill(step: int) -> None:
        one = Restoring(made, empty=empty)
        killed = one.start(step)
        await asyncio.to_thread(killed.die, step)
        try:
            one.check()
            await one.finish()
        except BaseException as error:
            error.add_note(f"killed at step {step}: {killed.steps[-1]}")
            raise
        restored.append(one)

    await together(kill, spread(len(uninterrupted.steps), kills))
    for one in restored[:: max(1, kills // 5)]:
        await one.serve()
