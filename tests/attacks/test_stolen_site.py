"""Attempts of a stolen site on its region and on its own nodes: it has the site's broker and authority.

So it may publish anything below the site's own topics, under any node's name, real or invented. Each attempt is refused or
harmless, counted and told, and the other sites go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.attacks.region_under_attack import (
    Attempt,
    MqttClient,
    RegionUnderAttack,
    refused_for,
    region_under_attack,
)
from tests.attacks.test_stolen_node import HARMLESS, REFUSED, UNREADABLE, gap, health, reported, results
from tests.region.conftest import REGION, PostgresServer, result

from hedgerow.node.fleet.reconcile import Admission, admit
from hedgerow.node.fleet.state import AgentState
from hedgerow.region.rollouts.planning.desired import next_document
from hedgerow.topics import Address
from hedgerow.wire.fleet import Desired, Reported
from hedgerow.wire.ranges import MAX_GENERATION, MAX_LEAD

NODES, ROWS, MIB = 60, 6000, 1 << 20
QUOTAS = {"nodes": NODES, "rows_per_day": ROWS, "bytes_per_day": 24 * MIB, "epochs": 1500, "names_per_report": 100}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegionUnderAttack]:
    with region_under_attack(tmp_path_factory.mktemp("region"), **QUOTAS) as created:
        yield created


@pytest.fixture(scope="module")
def site(region: RegionUnderAttack) -> Iterator[MqttClient]:
    client = MqttClient(region.broker, "s1")
    region.attack(
        client, FEW, [status()._replace(times=20)]
    )  # known before others are invented, in any order of attempts
    yield client
    client.close()


def status(session: str = "s", **fields: Any) -> Attempt:
    return Attempt("status", {"state": "online", "session": session, "node": "n", "version": "0", **fields})


INVENTED = "s1/invented-{n}"
FEW = "s1/n{n}"
ATTEMPTS: dict[str, tuple[str, list[Attempt], str | None]] = {
    "generations-2^63-1-of-20-nodes": (FEW, [reported(generation=2**63 - 1)._replace(times=20)], UNREADABLE),
    "generations-at-the-limit-of-20-nodes": (FEW, [reported(generation=MAX_GENERATION)._replace(times=20)], None),
    "counts-2^63-of-20-nodes": (FEW, [health(memory_bytes=2**63)._replace(times=20)], UNREADABLE),
    "retained-garbage-of-20-nodes": (FEW, [Attempt("reported", b"\xff\xfe", retain=True, times=20)], UNREADABLE),
    "gaps-of-2^47-of-20-nodes": (FEW, [gap(last=2**48 - 1, reasons={"x": 2**47})._replace(times=20)], None),
    "sessions-that-flap": (FEW, [status("{n}", at=1e9)._replace(times=200, topic="status")], None),
    "captured-in-the-year-9999": (FEW, [Attempt("result/p", result("p", 1, 253_402_300_798.9), times=5)], None),
    "captured-before-1970": (FEW, [Attempt("result/p", result("p", 1, -1e9), times=5)], None),
    "numbers-with-holes": (FEW, [results("h/0/{n}7", times=19)], None),
    "numbers-at-the-limit": (FEW, [results(f"l/9/{2**48 - 1}", times=19)], None),
    "numbers-in-digits-that-only-python-reads": (FEW, [results("l/0/\u0661")], "bad-number"),
    "epochs-of-three-nodes": ("s1/n1", [results("a{n}/0/1", times=700)], None),
    "epochs-beyond-the-site's": ("s1/n2", [results("b{n}/0/1", times=1600)], "too-many-epochs"),
    "gaps-that-name-epochs": (
        "s1/n3",
        [gap(previous=[{"epoch": f"q{{n}}-{n}", "next": [2**48] * 10} for n in range(100)])._replace(times=20)],
        "too-many-epochs",
    ),
    "bytes-beyond-the-quota": (
        "s1/n5",
        [Attempt("result/p", b"x" * MIB, content_type="image/jpeg", times=26)],
        "too-many-bytes",
    ),
    "durable-bytes-beyond-the-quota": (
        "s1/n5",
        [
            Attempt("result/p", b"x" * MIB, content_type="image/jpeg", times=13),
            results("d/0/{n}1", b"x" * MIB, content_type="image/jpeg"),
        ],
        "too-many-bytes",
    ),
    "bytes-of-another-node-beyond-the-quota": (
        "s1/n6",
        [Attempt("result/p", b"x" * MIB, content_type="image/jpeg", times=14)],
        "too-many-bytes",
    ),
    # By the end of the day a node may use the whole quota of its site, so these send as much; bytes first, since rows end all.
    "rows-beyond-the-quota": ("s1/n4", [Attempt("result/p", result("p", 1), times=ROWS + 50)], "too-many-rows"),
    "every-node-at-once": ("s1/~", [status()], "bad-topic"),
    "a-node-above-its-site": ("s1/..", [status()], "bad-topic"),
    "a-node-of-65-characters": (f"s1/{'n' * 65}", [status()], "bad-topic"),
    "a-node-with-a-space": ("s1/n 1", [status()], "bad-topic"),
    "a-node-with-a-quote": ("s1/n'--", [status()], "bad-topic"),
    "a-node-in-other-letters": ("s1/n\u00f6de", [status()], "bad-topic"),
    "a-node-with-an-escape-of-bidi": ("s1/n\u202e", [status()], "bad-topic"),
    "nodes-invented-by-status": (INVENTED, [status()._replace(times=NODES + 60)], "too-many-nodes"),
    "nodes-invented-by-results": (INVENTED, [results("e/0/1", times=NODES + 60)], "too-many-nodes"),
    "nodes-invented-by-events": (INVENTED, [Attempt("event/x", {"at": 1}, times=NODES + 60)], "too-many-nodes"),
    "nodes-invented-by-health": (INVENTED, [health()._replace(times=NODES + 60)], "too-many-nodes"),
    "nodes-invented-by-reports": (INVENTED, [reported()._replace(times=NODES + 60)], "too-many-nodes"),
    "nodes-invented-by-gaps": (INVENTED, [gap()._replace(times=NODES + 60)], "too-many-nodes"),
    "nodes-invented-by-garbage": ("s1/garbage-{n}", [Attempt("health", b"x", times=100)], "unreadable-payload"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_stolen_site_is_refused_alone(region: RegionUnderAttack, site: MqttClient, attempt: str) -> None:
    node, messages, reason = ATTEMPTS[attempt]
    before = region.refused()

    region.attack(site, node, messages)
    region.neighbour_goes_on()

    after = region.refused()
    if reason is not None:
        assert refused_for(reason, after) > refused_for(reason, before)
    assert {name for name, _ in after} <= {"s1"}, "nothing of others was refused"
    nodes = region.status()["nodes"]
    assert sum(one["site"] == "s1" for one in nodes) <= NODES
    (honest,) = (one for one in nodes if one["site"] == "s2")
    assert (honest["lost"], honest["awaited"], honest["durable"]) == (0, 0, region.sent)
    assert region.collector.probe("readyz")[0] == 200


def test_the_rows_and_bytes_of_a_stolen_site_are_bounded(region: RegionUnderAttack, site: MqttClient) -> None:
    """A refused durable result is not acknowledged: its outbox keeps it for another day."""
    for attempt in ("bytes-beyond-the-quota", "rows-beyond-the-quota", "durable-bytes-beyond-the-quota"):
        node, messages, _ = ATTEMPTS[attempt]
        region.attack(site, node, messages)
    region.neighbour_goes_on()
    usage = "SELECT sum(stored_rows), sum(stored_bytes) FROM usage u JOIN node n ON n.id = u.node WHERE n.site = 's1'"
    ((rows, size),) = region.rows(usage)
    kept = region.rows("SELECT site, count(*) FROM rejected GROUP BY site")
    refused = region.rows(
        "SELECT l.state FROM ledger l JOIN node n ON n.id = l.node WHERE n.name = 'n5' AND l.epoch = 'd'"
    )

    assert rows <= ROWS
    assert size <= 25 * MIB
    assert all(count <= 200 for _, count in kept)
    assert refused in ([], [("{}",)])


@pytest.mark.parametrize("channel", ["status", "health", "reported", "result/p", "event/gap", "reply/region-ping"])
def test_a_stolen_site_cannot_speak_for_another(region: RegionUnderAttack, site: MqttClient, channel: str) -> None:
    before = len(site.refused)

    region.attack(site, "s2/honest", [Attempt(channel, {"state": "offline"}, retain=True)])
    region.neighbour_goes_on()

    assert len(site.refused) == before + 1


@pytest.mark.parametrize("channel", ["ack", "desired", "command/ping"])
@pytest.mark.parametrize("node", ["s1/n1", "s2/honest"])
def test_a_stolen_site_cannot_speak_for_the_region(
    region: RegionUnderAttack, site: MqttClient, node: str, channel: str
) -> None:
    before, received = len(site.refused), len(region.neighbour.received)

    region.attack(site, node, [Attempt(channel, {"generation": 2**31})])
    region.neighbour_goes_on()

    assert len(site.refused) == before + 1
    assert not [one for one in region.neighbour.received[received:] if one.topic.endswith(channel) and channel != "ack"]


# Downwards: its broker may give its own nodes any document, and another's documents cannot be reached.


def desired(**fields: Any) -> Desired:
    return Desired.model_validate({"node": f"{REGION}/s1/n1", "generation": 1, "at": 1e9, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"generation": 2**63 - 1},
        {"generation": 2**31},
        {"generation": 0},
        {"generation": -(2**63)},
        {"at": float("inf")},
        {"expires_at": float("nan")},
        {"expires_at": 1e300},
        {"supersedes": -1},
        {"supersedes": 2**53},
        {"swap": {"timeout_s": float("inf")}},
        {"swap": {"max_growth_bytes": 2**63}},
        {"swap": {"min_frames": 2**63}},
    ],
    ids=str,
)
def test_a_node_refuses_a_document_with_absurd_numbers(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        desired(**fields)


@pytest.mark.parametrize("held", [2**63 - 1, 2**31, 10**30])
def test_a_node_that_holds_an_absurd_generation_starts_anew(tmp_path: Path, held: int) -> None:
    """A version before the limit took it from a stolen broker, and kept it on its disk."""
    text = desired().encode().replace(b'"generation":1', b'"generation":%d' % held)
    (tmp_path / "desired.json").write_bytes(text)

    assert AgentState(tmp_path).desired() is None
    assert admit(desired(generation=1), f"{REGION}/s1/n1", 0, 2e9, clock_doubtful=False) is Admission.ACCEPT


@pytest.mark.parametrize("held", [MAX_GENERATION, MAX_GENERATION - 1, MAX_LEAD + 100])
def test_a_node_goes_back_from_a_generation_that_its_region_never_gave(held: int) -> None:
    """The region names it; a document that names another one is refused as old, so replaying one does nothing."""
    address = Address(REGION, "s1", "n1")
    report = Reported(node=str(address), session="s", at=1e9, generation=held)
    next_one = next_document(desired(generation=7), address, report, 2e9)

    assert (next_one.generation, next_one.supersedes) == (8, held)
    assert admit(next_one, str(address), held, 2e9, clock_doubtful=False) is Admission.ACCEPT
    assert admit(next_one, str(address), held - 1, 2e9, clock_doubtful=False) is Admission.OLD
    assert admit(next_one, str(address), 8, 2e9, clock_doubtful=False) is Admission.KNOWN
    assert next_document(next_one, address, report, 3e9).generation == 9


def test_the_same_on_postgres(postgres: PostgresServer, tmp_path: Path) -> None:
    """Its limits are its own: no zero bytes in texts, no long keys in an index, sums that overflow."""
    with region_under_attack(tmp_path, postgres.database(), names_per_report=100, events_per_day=1000) as region:
        site = MqttClient(region.broker, "s1")
        for attempt, _ in REFUSED.values():
            region.attack(site, "s1/stolen", [attempt._replace(times=min(attempt.times, 20))])
        for attempt in HARMLESS.values():
            region.attack(site, "s1/stolen", [attempt])
            region.neighbour_goes_on()
        expected = {("s1", reason) for _, reason in REFUSED.values()} - {
            ("s1", "too-many-epochs"),
            ("s1", "too-many-events"),
        }

        assert expected <= region.refused().keys()
        assert region.refused().get(("s1", "unstorable"), 0) == 0
        assert region.collector.probe("readyz")[0] == 200
        site.close()
