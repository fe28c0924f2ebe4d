"""Backups of a region, in both databases: complete, consistent while it runs, and put back whole or not at all."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hedgerow.bus.outbox.records import Number
from hedgerow.errors import HedgerowError
from hedgerow.region.backup.backup import make_backup
from hedgerow.region.backup.manifest import BackupError
from hedgerow.region.backup.restore import RestoredBackup, restore_backup
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.store import Actor, FleetStore
from hedgerow.region.store.database import database as database_module
from hedgerow.region.store.database.database import RegionStoreError, StoreInUse
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.lease import ServiceRun, claim_lease, read_lease
from hedgerow.region.store.queries import ResultQuery, results, status
from hedgerow.region.store.records import ResultRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.testing import processes
from hedgerow.topics import Address

MANY = 300
of_all = database_module._migrations
on_sqlite = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)


def record(sequence: int) -> ResultRecord:
    number, at = Number("e1", 0, sequence), time.time()
    body = b'{"result": {"n": %d}}' % sequence
    return ResultRecord(
        Address("test", "s1", "n1"), len(body), at, True, "p", number, None, at, "application/json", '[["a", "b\\\\"]]', body
    )  # fmt: skip


class Region:
    """A region with a store and a repository."""

    def __init__(self, url: str, folder: Path, name: str = "test") -> None:
        self.url, self.folder = url, folder
        self.repository = folder / "repository"
        self.config = RegionConfig.model_validate(
            {"region": {"name": name}, "store": {"url": url}, "models": {"repository": str(self.repository)}}
        )

    def open(self) -> RegionStore:
        return RegionStore(open_database(self.url, write=True), self.config)

    def fill(self, first: int, last: int) -> None:
        with closing(self.open()) as store:
            store.apply([record(n) for n in range(first, last + 1)])

    def audit(self, action: str) -> int:
        """Add an entry to the audit log. Returns: its number."""
        with closing(open_database(self.url, write=False, alongside=True)) as database:
            FleetStore(database).audit(Actor("eve", "a test"), action, time.time())
            ((number,),) = database.rows("SELECT max(ingest) FROM audit")
        return int(number)

    def numbers(self) -> list[int]:
        with closing(open_database(self.url, write=False)) as database:
            return sorted(stored.body["result"]["n"] for stored in results(database, ResultQuery()))

    def status(self) -> dict[str, Any]:
        with closing(open_database(self.url, write=False)) as database:
            return status(database, time.time())

    def rows(self, query: str) -> list[Any]:
        with closing(open_database(self.url, write=False)) as database:
            return database.rows(query)

    def backup(self, name: str = "backup") -> Path:
        make_backup(self.config, self.folder / name, lambda _: None)
        return self.folder / name

    def restore(self, backup: Path, **options: Any) -> RestoredBackup:
        return restore_backup(self.config, backup, who="eve", advance=lambda _: None, **options)


@pytest.fixture
def region(store_url: str, tmp_path: Path) -> Region:
    region = Region(store_url, tmp_path)
    for name, content in {
        "metadata/1.root.json": "root",
        "metadata/timestamp.json": "old",
        "blobs/sha256/ab/cd": "chunk",
        "online.pem": "a private key",
    }.items():
        path = region.repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return region


def empty_store(region: Region, request: pytest.FixtureRequest) -> Region:
    """Another store of the same kind, and no repository yet."""
    other = region.folder / "other"
    other.mkdir()
    on_postgres = region.url.startswith("postgresql:")
    url = request.getfixturevalue("postgres").database() if on_postgres else str(other / "region.db")
    return Region(url, other)


def test_a_backup_made_while_the_service_writes_is_as_of_one_moment(
    region: Region, request: pytest.FixtureRequest
) -> None:
    """Each result that its ledger knows is there, and no other; keys are not."""
    region.fill(1, MANY)
    stop = threading.Event()

    def write() -> None:
        with closing(region.open()) as store:
            n = MANY
            while not stop.is_set():
                n += 1
                store.apply([record(n)])

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    try:
        backup = region.backup()
    finally:
        stop.set()
        writing.join(60)
    other = empty_store(region, request)
    restored = other.restore(backup)

    found = other.numbers()
    assert found == [*range(1, len(found) + 1)]
    assert len(found) >= MANY
    assert other.rows("SELECT state FROM ledger") == [(f'{{"0":[[1,{len(found)}]]}}',)]
    assert (restored.counter, restored.files_added) == (1, 3)
    assert (other.repository / "metadata" / "timestamp.json").read_text() == "old"
    assert not [*backup.rglob("*.pem")]
    assert backup.stat().st_mode & 0o077 == 0
    other.fill(len(found) + 1, len(found) + 1)  # it goes on
    assert other.status()["nodes"][0]["awaited"] == 0


def test_what_an_earlier_state_had_not_given_yet_is_not_given_again(region: Region) -> None:
    """Ids of the audit log and of the store's rows go on above those that were given after the backup."""
    region.fill(1, 10)
    region.audit("before")
    backup = region.backup()
    region.fill(11, 20)
    last = region.audit("after")
    highest = region.rows("SELECT max(ingest) FROM result")[0][0]
    fence = region.rows("SELECT fence FROM lease")[0][0]

    restored = region.restore(backup, replace=True)
    region.fill(21, 21)

    entries = dict(region.rows("SELECT action, ingest FROM audit"))
    assert entries.keys() == {"before", "store-restored"}
    assert entries["store-restored"] > last
    assert region.rows("SELECT max(ingest) FROM result")[0][0] > highest
    assert region.rows("SELECT fence FROM lease")[0][0] > fence
    again = region.restore(backup, replace=True)
    assert (restored.counter, again.counter) == (1, 2)
    assert again.generation_floor > restored.generation_floor
    assert region.numbers() == [*range(1, 11)]


@pytest.fixture
def earlier(region: Region, monkeypatch: pytest.MonkeyPatch) -> Region:
    """A region whose store an earlier version has written, and this one not migrated yet."""
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "_migrations", lambda dialect: {n: of_all(dialect)[n] for n in range(1, 7)})
        with closing(open_database(region.url, write=True)) as database, database.transaction():
            database.run(
                "INSERT INTO node (region, site, name, first_heard_at, messages_up, bytes_up, results, durable, repeats, unanswered) "
                "VALUES ('test', 's1', 'n1', 0, 0, 0, 1, 1, 0, 0)"
            )
            database.run("INSERT INTO ledger (node, epoch, state) SELECT id, 'e1', '{\"0\":[[1,1]]}' FROM node")
            database.run(
                "INSERT INTO result (node, pipeline, ledger, priority, sequence, captured_at, received_at, content_type, size, payload) "
                "SELECT node, 'p', id, 0, 1, 5, 5, 'application/json', 2, ? FROM ledger",
                (b'{"result": {"n": 1}}',),
            )
            database.run("INSERT INTO collector VALUES (1, 'test', 0, 0, 1, '0', 60, NULL, 0)")
            database.run(
                "INSERT INTO audit (at, who, why, action, rollout, detail) VALUES (1, 'mallory', '', 'node-labelled', NULL, '{}')"
            )
    return region


def test_a_store_that_is_not_migrated_yet_is_backed_up_and_put_back(
    earlier: Region, request: pytest.FixtureRequest
) -> None:
    """An upgrade is when one makes a backup. What migrations do to rows is done when it is put back."""
    backup = earlier.backup()
    other = empty_store(earlier, request)
    other.restore(backup)
    other.fill(2, 2)

    assert other.numbers() == [1, 2]
    assert ("unverified", "mallory") in other.rows("SELECT who, claims FROM audit")
    assert other.rows("SELECT count(*) FROM lease") == [(1,)]
    assert len(other.rows("SELECT id FROM store_identity")) == 1
    assert len(other.rows("SELECT number FROM migration")) == len(of_all("sqlite"))


def test_what_needs_a_migrated_store_says_so(earlier: Region) -> None:
    with pytest.raises(RegionStoreError, match=r"earlier version of Hedgerow \(without migration 7") as raised:
        earlier.status()
    assert "hedgerow region run" in raised.value.remedy


@on_sqlite
def test_status_names_what_a_restore_has_lost(region: Region) -> None:
    """Results that were acknowledged after the backup are missing, and nodes that got something from the region are ahead."""
    region.fill(1, 10)
    backup = region.backup()
    region.fill(11, 20)
    region.restore(backup, replace=True)
    region.fill(21, 25)
    with closing(open_database(region.url, write=False, alongside=True)) as database:
        report = json.dumps({"generation": 7}).encode()
        database.run("INSERT INTO said VALUES ((SELECT id FROM node), 'reported', 1, ?)", (report,))

    now = region.status()
    assert now["nodes"][0]["awaited"] == 10
    assert now["restored"]["ahead"] == [{"node": "test/s1/n1", "generation": 7, "known": 0}]


@on_sqlite
def test_a_repository_keeps_what_is_newer(region: Region) -> None:
    """Nodes refuse metadata that is older than what they have seen."""
    region.fill(1, 1)
    backup = region.backup()
    timestamp = region.repository / "metadata" / "timestamp.json"
    timestamp.write_text("new")
    (region.repository / "blobs" / "sha256" / "ab" / "cd").unlink()
    assert region.restore(backup, replace=True).files_added == 1
    assert timestamp.read_text() == "new"


def _with(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(backup: Path) -> None:
        file = backup / "manifest.json"
        manifest = json.loads(file.read_text())
        change(manifest)
        file.write_text(json.dumps(manifest))

    return apply


def _flip(backup: Path) -> None:
    file = max((backup / "store").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@on_sqlite
@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(_flip, "is damaged", id="a bit flipped"),
        pytest.param(lambda backup: (backup / "manifest.json").unlink(), "not a complete backup", id="no manifest"),
        pytest.param(lambda backup: next((backup / "store").iterdir()).unlink(), "cannot be read", id="a file gone"),
        pytest.param(
            _with(lambda manifest: manifest.update(region="other")), "is of region other", id="of another region"
        ),
        pytest.param(
            _with(lambda manifest: manifest["migrations"].append(999)), "newer version", id="of a newer version"
        ),
        pytest.param(
            _with(lambda manifest: manifest["files"].update({"store/../../x": {"sha256": "", "size": 0}})),
            "outside it",
            id="a path that leads outside",
        ),
        pytest.param(_with(lambda manifest: manifest.update(dialect="other")), "invalid", id="of an unknown database"),
    ],
)
def test_a_backup_that_does_not_fit_is_refused_and_changes_nothing(
    region: Region, change: Callable[[Path], None], says: str
) -> None:
    region.fill(1, 5)
    backup = region.backup()
    region.fill(6, 9)
    change(backup)
    with pytest.raises(BackupError, match=says):
        region.restore(backup, replace=True)
    assert region.numbers() == [*range(1, 10)]


def test_a_store_that_holds_something_or_is_in_use_is_not_replaced(region: Region) -> None:
    region.fill(1, 5)
    backup = region.backup()
    region.fill(6, 9)
    with pytest.raises(RegionStoreError, match="holds something already"):
        region.restore(backup)
    with closing(open_database(region.url, write=True)) as leader:
        assert leader.try_lock()
        with pytest.raises(StoreInUse, match="A service, or another program, uses"):
            region.restore(backup, replace=True)
    assert region.numbers() == [*range(1, 10)]
    with pytest.raises(BackupError, match="exists already"):
        region.backup()


def test_a_restore_may_be_repeated_until_a_service_has_led_the_store(
    region: Region, request: pytest.FixtureRequest
) -> None:
    """The first call may have been killed right after it had put the store back."""
    region.fill(1, 5)
    backup, other = region.backup(), empty_store(region, request)
    for _ in range(2):
        other.restore(backup)
        assert other.numbers() == [*range(1, 6)]
    with closing(open_database(other.url, write=True)) as leader:
        assert claim_lease(leader, read_lease(leader), ServiceRun("a", "b"), "c", "a test", locked=True)
    with pytest.raises(RegionStoreError, match="holds something already"):
        other.restore(backup)


_KILLED = """
import os, signal, sys
from pathlib import Path
from hedgerow.region.backup import backup, restore
from hedgerow.region.config import load

left = int(sys.argv[4])
def step(*args, **kwargs):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def audit(event, args):
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "sqlite3.connect"):
        step()

config, folder = load(Path(sys.argv[2])), Path(sys.argv[3])
sys.addaudithook(audit)
if sys.argv[1] == "backup":
    backup.make_backup(config, folder, step)
else:
    restore.restore_backup(config, folder, who="eve", replace=True, advance=step)
print("finished")
"""


@pytest.mark.long
@pytest.mark.parametrize("what", ["backup", "restore"])
def test_killed_at_any_moment_either_state_is_left_and_the_next_call_finishes_it(
    region: Region, what: str, tmp_path: Path
) -> None:
    region.fill(1, 5)
    backup = region.backup()
    region.fill(6, 9)
    file = tmp_path / "region.yaml"
    file.write_text(region.config.model_dump_json(include={"region", "store", "models"}))
    target = tmp_path / "killed" if what == "backup" else backup
    kills, step = 0, 0
    while True:
        command = [sys.executable, "-c", _KILLED, what, str(file), str(target), str(step)]
        ended = processes.run(command, capture_output=True, text=True)
        if ended.returncode != -signal.SIGKILL:
            break
        kills += 1
        if what == "backup":
            assert not target.exists()
        else:
            assert region.numbers() in ([*range(1, 10)], [*range(1, 6)])
        step += 1 + step // 2
    assert ended.stdout == "finished\n", ended.stderr
    assert kills > 3
    if what == "backup":
        region.restore(target, replace=True)
        assert region.numbers() == [*range(1, 10)]
    else:
        assert region.numbers() == [*range(1, 6)]
    region.fill(10, 12)
    assert not [*tmp_path.rglob(".*.partial"), *tmp_path.rglob(".*.restoring*")]


@on_sqlite
def test_errors_say_what_to_do(region: Region) -> None:
    region.fill(1, 1)
    with pytest.raises(HedgerowError) as raised:
        region.restore(region.folder / "nothing")
    assert "hedgerow region backup" in raised.value.remedy
