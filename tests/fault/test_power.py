"""Power fails while the outbox is being written; the disk under it fills."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Estate


def outbox_files(estate: Estate) -> tuple[Path, Path]:
    """The outbox's write-ahead log, and the database."""
    database = estate.node.file.parent / "state" / "outbox.db"
    return database.with_name("outbox.db-wal"), database


@pytest.mark.timeout(300)
def test_a_last_write_that_power_cut_short_is_cut_off_and_done_again(estate: Estate) -> None:
    """Half a page of a transaction that nobody was told of."""
    with load(estate.sensors, 100):
        until(lambda: estate.stored() >= 50)
        for torn in (b"\x00" * 100, b"\x37\x7f\x06\x82" + b"\xff" * 3000):
            estate.node.kill()
            log, _ = outbox_files(estate)
            with log.open("ab") as file:
                file.write(torn)
            estate.node.start()
            before = estate.stored()
            until(lambda before=before: estate.stored() > before)  # type: ignore[misc]
    estate.everything_is_stored_once()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_disk_that_loses_what_it_called_safe_is_found_out_and_declared(estate: Estate) -> None:
    """No number is given twice, and what is gone is named as gone."""
    with load(estate.sensors, 100):
        until(lambda: estate.stored() >= 50)
        estate.wan.cut()
        until(lambda: estate.waiting() >= 200)
    estate.sensors.settle()
    until(lambda: estate.node.metric("hedgerow_frames_in_flight") == 0)
    estate.node.kill()
    estate.lower.kill()  # with what its bridge had queued
    log, _ = outbox_files(estate)
    assert log.stat().st_size > 100_000, "the last results are in the log"
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size // 2)
    estate.wan.restore()
    estate.lower.start()
    estate.node.start()
    until(lambda: estate.waiting() == 0, lambda: f"{estate.waiting()} wait\n{estate.node.log[-2000:]}")
    until(lambda: estate.rows("SELECT count(*) FROM gap")[0][0] > 0, lambda: estate.node.log[-2000:])
    numbers = estate.numbers()
    lost = estate.sensors.count - len(numbers)
    declared = estate.rows("SELECT sum(lost) FROM gap")[0][0]
    assert len(set(numbers)) == len(numbers)
    assert lost > 0
    assert declared == lost


@pytest.fixture
def small_disk(estate: Estate) -> Iterator[Path]:
    """The node's state on a disk of 24 MB."""
    mount = estate.node.file.parent / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.strip()}")
    yield mount
    estate.node.close()
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_node_whose_disk_is_full_goes_on_and_heals(estate: Estate, small_disk: Path) -> None:
    """It gives up the oldest results, says which, and wants nothing from anybody once there is room."""
    estate.node.kill()
    estate.configure(stages=[{"trial": {"tag": "x" * 20_000}}])
    text = estate.node.file.read_text()
    estate.node.file.write_text(text.replace(str(estate.node.file.parent / "state"), str(small_disk)))
    estate.node.start()
    estate.wan.cut()
    with load(estate.sensors, 150):
        until(lambda: estate.node.metric("hedgerow_outbox_lost", reason="evicted") > 50, patience_s=120)
        out = estate.node.metric("hedgerow_frames_out_total")
        until(lambda: estate.node.metric("hedgerow_frames_out_total") > out + 100)
        assert estate.node.metric("hedgerow_outbox_failing") == 0
        estate.wan.restore()
        time.sleep(2)  # so long there is load while it catches up
    estate.sensors.settle()
    until(lambda: estate.waiting() == 0, lambda: f"{estate.waiting()} wait\n{estate.node.log[-2000:]}", 120)
    ((declared,),) = estate.rows("SELECT coalesce(sum(lost), 0) FROM gap")
    numbers = estate.numbers()
    assert len(numbers) == len(set(numbers))
    assert declared == estate.sensors.count - len(numbers), "the bridge may have kept what the node gave up"
