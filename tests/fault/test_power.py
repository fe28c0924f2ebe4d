"""Power cuts while the outbox is written, and a full disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.disks import mounted_disk
from tests.e2e.conftest import until
from tests.e2e.test_faults import load
from tests.fault.conftest import Deployment


def outbox_files(deployment: Deployment) -> tuple[Path, Path]:
    """Return the outbox's write-ahead log and database."""
    database = deployment.node.file.parent / "state" / "outbox.db"
    return database.with_name("outbox.db-wal"), database


@pytest.mark.timeout(300)
def test_a_torn_last_write_is_discarded_and_repeated(deployment: Deployment) -> None:
    """Half a page of a transaction that was not confirmed."""
    with load(deployment.sensors, 100):
        until(lambda: deployment.stored() >= 50)
        for torn in (b"\x00" * 100, b"\x37\x7f\x06\x82" + b"\xff" * 3000):
            deployment.node.kill()
            log, _ = outbox_files(deployment)
            with log.open("ab") as file:
                file.write(torn)
            deployment.node.start()
            before = deployment.stored()
            until(lambda before=before: deployment.stored() > before)  # type: ignore[misc]
    deployment.assert_everything_stored_once()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_results_lost_by_a_lying_disk_are_declared_as_gaps(deployment: Deployment) -> None:
    """No number is used twice, and lost results are declared."""
    with load(deployment.sensors, 100):
        until(lambda: deployment.stored() >= 50)
        deployment.wan.cut()
        until(lambda: deployment.waiting() >= 200)
    deployment.sensors.settle()
    until(lambda: deployment.node.metric("hedgerow_frames_in_flight") == 0)
    deployment.node.kill()
    deployment.site_broker.kill()  # with the queue of its bridge
    log, _ = outbox_files(deployment)
    assert log.stat().st_size > 100_000, "the last results are in the write-ahead log"
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size // 2)
    deployment.wan.restore()
    deployment.site_broker.start()
    deployment.node.start()
    until(lambda: deployment.waiting() == 0, lambda: f"{deployment.waiting()} waiting\n{deployment.node.log[-2000:]}")
    until(lambda: deployment.rows("SELECT count(*) FROM gap")[0][0] > 0, lambda: deployment.node.log[-2000:])
    numbers = deployment.numbers()
    lost = deployment.sensors.count - len(numbers)
    declared = deployment.rows("SELECT sum(lost) FROM gap")[0][0]
    assert len(set(numbers)) == len(numbers)
    assert lost > 0
    assert declared == lost


@pytest.fixture
def small_disk(deployment: Deployment) -> Iterator[Path]:
    """The node's state on a disk of 24 MB."""
    with mounted_disk(deployment.node.file.parent / "small", "24m") as disk:
        yield disk
        deployment.node.close()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_node_with_a_full_disk_continues_and_recovers(deployment: Deployment, small_disk: Path) -> None:
    """It gives up the oldest results, declares them as a gap, and recovers by itself once there is space."""
    deployment.node.kill()
    deployment.configure(stages=[{"trial": {"tag": "x" * 20_000}}])
    text = deployment.node.file.read_text()
    deployment.node.file.write_text(text.replace(str(deployment.node.file.parent / "state"), str(small_disk)))
    deployment.node.start()
    deployment.wan.cut()
    with load(deployment.sensors, 150):
        until(lambda: deployment.node.metric("hedgerow_outbox_lost", reason="evicted") > 50, timeout_s=120)
        out = deployment.node.metric("hedgerow_frames_out_total")
        until(lambda: deployment.node.metric("hedgerow_frames_out_total") > out + 100)
        assert deployment.node.metric("hedgerow_outbox_failing") == 0
        deployment.wan.restore()
        time.sleep(2)  # load continues while it catches up
    deployment.sensors.settle()
    until(
        lambda: deployment.waiting() == 0, lambda: f"{deployment.waiting()} waiting\n{deployment.node.log[-2000:]}", 120
    )
    ((declared,),) = deployment.rows("SELECT coalesce(sum(lost), 0) FROM gap")
    numbers = deployment.numbers()
    assert len(numbers) == len(set(numbers))
    assert declared == deployment.sensors.count - len(numbers), "every result is either stored or declared lost"
