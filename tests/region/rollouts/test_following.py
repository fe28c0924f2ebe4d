"""`hedgerow rollout status --watch` during an outage of a real PostgreSQL server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import IO

from tests.region.conftest import PostgresServer

from hedgerow.region.config import RegionConfig
from hedgerow.region.rollouts.planning.spec import RolloutPlan
from hedgerow.region.rollouts.planning.state import Phase, Rollout
from hedgerow.region.rollouts.store import FleetStore, StoredRollout
from hedgerow.region.store.audit import Actor
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.store import RegionStore
from hedgerow.testing import processes
from hedgerow.wire.fleet import ModelRef

FACES = ModelRef(name="faces", version="2.0.0", digest=f"sha256:{'0' * 64}")


def create_rollout(url: str) -> StoredRollout:
    """Create a store with a rollout in progress."""
    config = RegionConfig.model_validate({"region": {"name": "retail"}, "store": {"url": url}})
    RegionStore(open_database(url, write=True), config).close()
    plan = RolloutPlan.model_validate({"rollout": "faces-2", "models": {"faces": {"version": "2.0.0"}}})
    rollout = Rollout("faces-2", plan, {"faces": FACES}, ("all",), {}, wave=0)
    with closing(open_database(url, write=False, alongside=True)) as database:
        return FleetStore(database).add(StoredRollout(0, rollout, Actor("ada"), 1.0, 1.0), {})


def finish_rollout(url: str, stored: StoredRollout) -> None:
    """Let the rollout succeed."""
    ended = replace(stored, rollout=replace(stored.rollout, phase=Phase.SUCCEEDED), ended_at=2.0)
    with closing(open_database(url, write=False, alongside=True)) as database:
        FleetStore(database).save(ended, stored, {})


def collect_lines(stream: IO[str]) -> list[str]:
    """Return a list that collects the lines of a stream."""
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")), daemon=True).start()
    return lines


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def watching(url: str) -> Iterator[tuple[subprocess.Popen[str], list[str], list[str]]]:
    """Run the command; yield it with the lines of its stdout and stderr once it shows the rollout."""
    command = [sys.executable, "-m", "hedgerow", "rollout", "status", "--watch", "--store", url]
    with processes.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            out, err = collect_lines(process.stdout), collect_lines(process.stderr)
            until(lambda: len(out) == 1)
            yield process, out, err
        finally:
            process.kill()


def test_watch_survives_an_outage_of_the_store(postgres: PostgresServer) -> None:
    url = postgres.database()
    stored = create_rollout(url)
    with watching(url) as (process, out, err):
        postgres.stop()
        try:
            until(lambda: len(err) == 1)
        finally:
            postgres.start()
        until(lambda: len(err) == 2)
        finish_rollout(url, stored)
        code = process.wait(60)

    assert code == 0
    assert err[0].startswith("store unavailable, retrying… (")
    assert err[1] == "store available again\n"
    assert [line.partition(",")[0] for line in out] == ["faces-2: in-progress", "faces-2: succeeded"]


def test_ctrl_c_ends_watch_during_an_outage(postgres: PostgresServer) -> None:
    url = postgres.database()
    create_rollout(url)
    with watching(url) as (process, _, err):
        postgres.stop()
        try:
            until(lambda: len(err) == 1)
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        finally:
            postgres.start()

    assert code == 130
    assert "Traceback" not in "".join(err)
