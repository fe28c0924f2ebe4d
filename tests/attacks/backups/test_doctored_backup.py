"""Attempts of somebody who can write where a region's backups lie: an operator restores what is left there.

A backup has checksums and no signature, so whoever doctors one can put any content into it, with checksums that fit. That is
documented. But a restore must not run what is in it, must not hang or end in the middle, and must not leave a region that can never
roll anything out again. Expected of each attempt: refused with an error and a remedy, and the store that is there stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.region.conftest import PostgresServer

from hedgerow.errors import HedgerowError
from hedgerow.region.backup.backup import make_backup
from hedgerow.region.backup.restore import restore_backup
from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.store import Actor, FleetStore
from hedgerow.region.store.database.open import open_database

Doctor = Callable[[Path], None]


def region(url: str) -> RegionConfig:
    return RegionConfig.model_validate({"region": {"name": "north"}, "store": {"url": url}})


def audit(config: RegionConfig, action: str) -> None:
    with closing(open_database(config.store.url, write=True)) as database:
        FleetStore(database).audit(Actor("eve", "a test"), action, 1.0)


def actions(config: RegionConfig) -> list[str]:
    with closing(open_database(config.store.url, write=False)) as database:
        return [action for (action,) in database.rows("SELECT action FROM audit ORDER BY ingest")]


def sign(backup: Path, **changes: Any) -> None:
    """Write a manifest with checksums that fit."""
    manifest = json.loads((backup / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (backup / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (backup / "manifest.json").write_text(json.dumps(manifest | changes))


def named(name: str) -> Doctor:
    def doctor(backup: Path) -> None:
        files = json.loads((backup / "manifest.json").read_text())["files"]
        sign(backup, files=files | {name: {"sha256": "0" * 64, "size": 0}})

    return doctor


def text(content: bytes) -> Doctor:
    return lambda backup: void((backup / "manifest.json").write_bytes(content))


def void(_: object) -> None:
    pass


def at(time: float) -> Doctor:
    return lambda backup: sign(backup, at=time)


def sql(*statements: str) -> Doctor:
    def doctor(backup: Path) -> None:
        with closing(sqlite3.connect(backup / "store" / "store.db")) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()
        sign(backup)

    return doctor


def store(content: bytes) -> Doctor:
    def doctor(backup: Path) -> None:
        (backup / "store" / "store.db").write_bytes(content)
        sign(backup)

    return doctor


def fifo(backup: Path) -> None:
    (backup / "store" / "store.db").unlink()
    os.mkfifo(backup / "store" / "store.db")


DOCTORED: dict[str, Doctor] = {
    "a file without a name": named(""),
    "the folder itself": named("."),
    "a name with NUL": named("store/\0"),
    "an absolute name": named("/etc/passwd"),
    "a name beside the folder": named("repository/../../x"),
    "a folder as a file": named("store"),
    "a store that no checksum covers": lambda backup: sign(backup, files={}),
    "made at no time": at(float("nan")),
    "made before all time": at(-1e18),
    "made at minus infinity": at(float("-inf")),
    "made in a million years": at(1e14),
    "made tomorrow twice over": at(4e9),
    "a manifest that nests without end": text(b"[" * 200_000),
    "a manifest that is no UTF-8": text(b'{"region": "\xff"}'),
    "a manifest that is a list": text(b"[]"),
    "a pipe in place of the store": fifo,
    "no database": store(b"x" * 10_000),
    "an empty database": store(b""),
    "a trigger that writes into the audit log": sql(
        "CREATE TRIGGER t AFTER INSERT ON audit BEGIN DELETE FROM audit WHERE ingest < new.ingest; END"
    ),
    "a view in place of the history": sql(
        "ALTER TABLE audit RENAME TO hidden", "CREATE VIEW audit AS SELECT * FROM hidden"
    ),
    "a generation after which there is none": sql(
        "INSERT INTO restoration (counter, at, backup_at, generation_floor) VALUES (1, 0, 0, 2147483647)"
    ),
    "a fence beyond all numbers": sql("UPDATE lease SET fence = 9223372036854775807"),
    "no lease": sql("DELETE FROM lease"),
    "a fence that is a text": sql("UPDATE lease SET fence = 'x'"),
    "ids beyond all numbers": sql(
        "INSERT INTO audit (at, who, claims, why, action, detail) VALUES (1, 'e', '', '', 'a', '{}')",
        "UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'audit'",
    ),
    "ids that are texts": sql(
        "INSERT INTO audit (at, who, claims, why, action, detail) VALUES (1, 'e', '', '', 'a', '{}')",
        "UPDATE sqlite_sequence SET seq = 'x' WHERE name = 'audit'",
    ),
    "no tables": sql("DROP TABLE desired"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup, which each attempt copies."""
    folder = tmp_path_factory.mktemp("good")
    config = region(str(folder / "region.db"))
    audit(config, "before")
    make_backup(config, folder / "backup", void)
    return folder / "backup"


@pytest.mark.parametrize("attempt", DOCTORED)
def test_a_doctored_backup_is_refused_and_the_store_stays_as_it_is(attempt: str, good: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    (backup / "store").mkdir(parents=True)
    for name in ("manifest.json", "store/store.db"):
        (backup / name).write_bytes((good / name).read_bytes())
    config = region(str(tmp_path / "region.db"))
    audit(config, "mine")
    DOCTORED[attempt](backup)

    with pytest.raises(HedgerowError) as refused:
        restore_backup(config, backup, who="anna", replace=True, advance=void)

    assert refused.value.remedy
    assert actions(config) == ["mine"]
    assert not [path for path in tmp_path.iterdir() if "restoring" in path.name]


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(["ingest) FROM PROGRAM 'touch MARK' --"], id="a program"),
        pytest.param(["no_such"], id="a column that is not there"),
        pytest.param(None, id="no columns"),
        pytest.param("ingest", id="a text"),
    ],
)
def test_names_of_columns_in_a_backup_run_nothing(columns: Any, postgres: PostgresServer, tmp_path: Path) -> None:
    config = region(postgres.database())
    audit(config, "mine")
    backup = tmp_path / "backup"
    make_backup(config, backup, void)
    file, mark = backup / "store" / "columns.json", tmp_path / "mark"
    content = json.loads(file.read_text())
    if columns is None:
        del content["audit"]
    else:
        content["audit"] = json.loads(json.dumps(columns).replace("MARK", str(mark)))
    file.write_text(json.dumps(content))
    sign(backup)

    with pytest.raises(HedgerowError) as refused:
        restore_backup(config, backup, who="anna", replace=True, advance=void)

    assert refused.value.remedy
    assert not mark.exists()
    assert actions(config) == ["mine"]
