"""A real region's service that is put back to a backup, and real outboxes at a real broker."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from contextlib import closing

import pytest
from tests.region.conftest import CollectorProcess, Gateway, eventually

from hedgerow.bus.outbox.kept import KeepLimits
from hedgerow.region.backup.backup import make_backup
from hedgerow.region.backup.restore import restore_backup
from hedgerow.region.config import load
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.queries import ResultQuery, results, status


def stored(collector: CollectorProcess) -> list[tuple[str, int]]:
    with closing(open_database(collector.store, write=False)) as database:
        found = [(one.node, one.body["result"]["n"]) for one in results(database, ResultQuery())]
    return sorted(found)


@pytest.mark.long
async def test_a_service_that_is_put_back_gets_again_what_nodes_keep(
    collector: CollectorProcess, gateway: Callable[..., Gateway]
) -> None:
    """One is known to the backup, one is not, and one keeps nothing. All learn of it; one is named as one that cannot help."""
    collector.start()
    config, backup = load(collector.file), collector.file.with_name("backup")
    keep = KeepLimits(3600, 1 << 20)
    nodes = [gateway("known", keep=keep), gateway("new", keep=keep), gateway("forgetful")]
    known, new, forgetful = nodes

    def send(n: int, *which: Gateway) -> None:
        for node in which:
            node.send(result={"n": n})

    async with known, new, forgetful:
        send(1, known, forgetful)
        await eventually(
            lambda: all(node.count == 0 or node.entries == 0 for node in nodes) and len(stored(collector)) == 2
        )
        await asyncio.to_thread(make_backup, config, backup, lambda _: None)
        send(2, *nodes)
        await eventually(lambda: all(node.entries == 0 for node in nodes))
        assert len(stored(collector)) == 5
        collector.signal(signal.SIGTERM)
        await asyncio.to_thread(collector.wait)
        await asyncio.to_thread(restore_backup, config, backup, who="eve", replace=True, advance=lambda _: None)
        collector.start()

        def has_all() -> bool:
            for node in nodes:
                node.health()
            return len(stored(collector)) == 4

        await eventually(has_all, lambda: stored(collector))
        send(3, *nodes)

        def is_told() -> bool:
            for node in nodes:
                node.health()
            return restored(collector)["not_heard"] == [] and len(stored(collector)) == 7

        await eventually(is_told, lambda: (restored(collector), stored(collector)))

    told = restored(collector)
    assert told.pop("results") in (
        2,
        3,
    )  # what was acknowledged within a minute is kept as one, so the first may come too
    assert told == {"nodes": 2, "incomplete": ["test/s1/forgetful"], "not_heard": []}
    assert stored(collector) == sorted(
        [("known", n) for n in (1, 2, 3)] + [("new", n) for n in (2, 3)] + [("forgetful", n) for n in (1, 3)]
    )
    assert [detail["results"] for kind, detail in known.events if kind == "region-restored"] in ([1], [2])
    assert [detail["complete"] for kind, detail in forgetful.events if kind == "region-restored"] == [False]


def restored(collector: CollectorProcess) -> dict[str, object]:
    with closing(open_database(collector.store, write=False)) as database:
        current = status(database, 0.0)["restored"]
    found: dict[str, object] = json.loads(json.dumps(current))["resent"]
    return found
