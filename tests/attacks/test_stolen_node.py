"""Attempts of a stolen node on its region: it has the node's certificate, and so may publish anything below the node's own name.

Each is refused or harmless, counted and told, and the neighbours' results are stored all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.region_under_attack import (
    FLOODER,
    NEIGHBOUR,
    SLOW,
    Attempt,
    MqttClient,
    RegionUnderAttack,
    refused_for,
    region_under_attack,
    until,
)
from tests.region.conftest import REGION, result
from typer.testing import CliRunner

from hedgerow.cli.main import app
from hedgerow.region.rollouts.requests import send_request
from hedgerow.region.store.database.open import open_database
from hedgerow.wire.fleet import Desired
from hedgerow.wire.ranges import MAX_GENERATION

NODE = "s1/stolen"
DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegionUnderAttack]:
    with region_under_attack(
        tmp_path_factory.mktemp("region"), messages_per_s=50, events_per_day=1500, names_per_report=100
    ) as created:
        yield created


@pytest.fixture(scope="module")
def thief(region: RegionUnderAttack) -> Iterator[MqttClient]:
    client = MqttClient(region.broker, NODE)
    yield client
    client.close()


def reported(**fields: Any) -> Attempt:
    body = {"schema": "hedgerow.reported/1", "node": f"{REGION}/s1/stolen", "session": "s", "at": 1e9, **fields}
    return Attempt("reported", body)


def serving(**fields: Any) -> dict[str, Any]:
    return {"faces": {"file_digest": DIGEST, "backend": "b", "device": "CPU", "since": 1e9, **fields}}


def health(**fields: Any) -> Attempt:
    body = {"node": f"{REGION}/s1/stolen", "session": "s", "at": 1e9, "uptime_s": 1, "state": "ok", **fields}
    return Attempt("health", body, qos=1)


def pipelines(**fields: Any) -> dict[str, Any]:
    return {"p": {"state": "running", **fields}}


def gap(**fields: Any) -> Attempt:
    body = {"epoch": "e{n}", "priority": 0, "first": 1, "last": 2, "reasons": {"evicted": 1}, "previous": [], **fields}
    return Attempt("event/gap", body)


def results(number: str, payload: bytes | None = None, **more: Any) -> Attempt:
    return Attempt("result/p", payload or result("p", 1), [("number", number)], **more)


UNREADABLE = "unreadable-payload"
REFUSED: dict[str, tuple[Attempt, str]] = {
    "report-generation-2^63-1": (reported(generation=2**63 - 1), UNREADABLE),
    "report-generation-2^64": (reported(generation=2**64), UNREADABLE),
    "report-generation-of-a-thousand-digits": (
        Attempt("reported", b'{"node":"n","session":"s","at":1,"generation":' + b"9" * 1000 + b"}"),
        UNREADABLE,
    ),
    "report-generation-negative": (reported(generation=-1), UNREADABLE),
    "report-generation-one-beyond": (reported(generation=MAX_GENERATION + 1), UNREADABLE),
    "report-generation-retained": (reported(generation=2**63 - 1)._replace(retain=True), UNREADABLE),
    "report-time-infinite": (Attempt("reported", b'{"node":"n","session":"s","at":1e999}'), UNREADABLE),
    "report-time-not-a-number": (Attempt("reported", b'{"node":"n","session":"s","at":NaN}'), UNREADABLE),
    "report-time-beyond-calendars": (reported(at=1e18), UNREADABLE),
    "report-store-bytes-2^63": (reported(store_bytes=2**63), UNREADABLE),
    "report-results-2^63": (reported(models=serving(results=2**63)), UNREADABLE),
    "report-since-negative": (reported(models=serving(since=-1)), UNREADABLE),
    "report-progress-infinite": (
        Attempt("reported", b'{"node":"n","session":"s","at":1,"progress":-1e999}'),
        UNREADABLE,
    ),
    "report-model-named-by-escapes": (reported(rolled_back=["\x1b[2J"]), UNREADABLE),
    "report-label-with-newline": (reported(labels={"ring": "early\nuser root"}), UNREADABLE),
    "report-of-10001-labels": (reported(labels={f"k{n}": "v" for n in range(10_001)}), "too-many-names"),
    "report-of-101-models": (
        reported(models={f"m{n}": serving()["faces"] for n in range(101)}),
        "too-many-names",
    ),
    "report-of-101-pipelines": (reported(pipelines={f"p{n}": "running" for n in range(101)}), "too-many-names"),
    "report-of-300-kib": (reported(step="x" * 300_000), "too-large"),
    "report-nested-100000-deep": (Attempt("reported", b"[" * 100_000), UNREADABLE),
    "health-received-2^63": (health(pipelines=pipelines(received=2**63)), UNREADABLE),
    "health-dropped-negative": (health(pipelines=pipelines(dropped={"x": -5})), UNREADABLE),
    "health-memory-2^64": (health(memory_bytes=2**64), UNREADABLE),
    "health-latency-infinite": (
        Attempt(
            "health",
            b'{"node":"n","session":"s","at":1,"uptime_s":1,"state":"ok","pipelines":{"p":{"state":"running",'
            b'"latency_p99_ms":1e999}}}',
        ),
        UNREADABLE,
    ),
    "health-drift-not-a-number": (
        Attempt(
            "health",
            b'{"node":"n","session":"s","at":1,"uptime_s":1,"state":"ok","models":{"m":{"digest":"d","backend":"b",'
            b'"device":"c","device_asked":"c","drift":NaN}}}',
        ),
        UNREADABLE,
    ),
    "health-of-101-pipelines": (
        health(pipelines={f"p{n}": {"state": "running"} for n in range(101)}),
        "too-many-names",
    ),
    "health-of-20000-drop-reasons": (
        health(pipelines=pipelines(dropped={f"r{n}": 1 for n in range(20_000)})),
        "too-many-names",
    ),
    "status-time-beyond-calendars": (
        Attempt("status", {"state": "offline", "session": "s", "node": "n", "version": "0", "at": 1e300}),
        UNREADABLE,
    ),
    "event-of-300-kib": (Attempt("event/x", {"at": 1, "text": "x" * 300_000}), "too-large"),
    "event-kind-with-space": (Attempt("event/a b", {}), "bad-topic"),
    "gap-first-2^63": (gap(first=2**63, last=2**63), "bad-gap"),
    "gap-priority-2^31": (gap(priority=2**31), "bad-gap"),
    "gap-lost-more-than-its-range": (gap(reasons={"evicted": 2**47}), "bad-gap"),
    "gap-lost-negative": (gap(reasons={"evicted": -1}), "bad-gap"),
    "gap-of-101-epochs": (gap(previous=[{"epoch": f"p{n}", "next": [1]} for n in range(101)]), "bad-gap"),
    "gap-next-2^60": (gap(previous=[{"epoch": "p", "next": [2**60]}]), "bad-gap"),
    "number-2^48": (results(f"e1/0/{2**48}"), "bad-number"),
    "number-of-another-epoch-by-slash": (results("e1/../0/1"), "bad-number"),
    "number-twice": (Attempt("result/p", result("p", 1), [("number", "e1/0/1"), ("number", "e1/0/2")]), "bad-number"),
    "pipeline-named-by-path": (Attempt("result/../../etc", result("p", 1)), "bad-topic"),
    "epochs-1001": (results("x{n}/0/1", times=1002), "too-many-epochs"),
    "events-beyond-the-quota": (Attempt("event/x", {"at": 1}, times=1700), "too-many-events"),
}
HARMLESS: dict[str, Attempt] = {
    "gaps-400-of-2^47-each": gap(last=2**48 - 1, reasons={"evicted": 2**47})._replace(times=400),
    "id-of-1100-emoji": Attempt(
        "result/p", result("p", 2), [("id", "".join(chr(0x1F600 + n % 70) for n in range(1100)))]
    ),
    "capture-time-1e300": Attempt("result/p", result("p", 3, 1e300)),
    "content-type-of-60-kb": Attempt("result/p", result("p", 4), content_type="x" * 60_000),
    "status-of-500-sessions": Attempt(
        "status", {"state": "online", "session": "s{n}", "node": f"{REGION}/s1/stolen", "version": "0"}, times=500
    ),
    "reply-to-a-ping-never-sent": Attempt("reply/region-ping", {"value": {"at": 1e300}}),
    "report-error-of-escapes": reported(
        state="failed", error={"code": "\x1b]0;x\x07", "message": "\x1b[2J\x00" * 5000, "remedy": "\u202e"}
    ),
    "health-reasons-of-escapes": health(state="failing", reasons=["\x1b[2J\x00\u202e" * 100] * 90),
}


@pytest.mark.parametrize("attempt", REFUSED)
def test_a_stolen_node_is_refused_and_told(region: RegionUnderAttack, thief: MqttClient, attempt: str) -> None:
    message, reason = REFUSED[attempt]
    before = refused_for(reason, region.refused())

    region.attack(thief, NODE, [message])
    region.neighbour_goes_on()

    until(lambda: refused_for(reason, region.refused()) > before)
    told = {(one["site"], one["reason"]): one["count"] for one in region.status()["refused"]}
    assert refused_for(reason, told) > before
    assert NEIGHBOUR not in {site for site, _ in told}, "nothing of others was refused"


@pytest.mark.parametrize("attempt", HARMLESS)
def test_what_a_stolen_node_may_send_harms_no_other(region: RegionUnderAttack, thief: MqttClient, attempt: str) -> None:
    region.attack(thief, NODE, [HARMLESS[attempt]])
    region.neighbour_goes_on()

    honest = next(node for node in region.status()["nodes"] if node["node"] == f"{REGION}/s2/honest")
    assert (honest["lost"], honest["awaited"], honest["durable"]) == (0, 0, region.sent)
    assert region.collector.probe("readyz")[0] == 200


@pytest.mark.parametrize(
    "topic", ["status", "health", "reported", "result/p", "event/gap", "ack", "desired", "command/stop", "reply/x"]
)
@pytest.mark.parametrize("node", ["s2/honest", "s1/gateway"])
def test_a_stolen_node_cannot_speak_for_another(
    region: RegionUnderAttack, thief: MqttClient, node: str, topic: str
) -> None:
    before, known = len(thief.refused), region.rows("SELECT count(*) FROM node")

    region.attack(thief, node, [Attempt(topic, {"generation": 2**31}, retain=True)])
    region.neighbour_goes_on()

    assert len(thief.refused) == before + 1
    assert region.rows("SELECT count(*) FROM node") == known or node == "s2/honest"


def label(region: RegionUnderAttack, node: str) -> Any:
    with closing(open_database(region.store, write=False, alongside=True)) as database:
        return send_request(database, "node-label", {"node": node, "labels": {"ring": "late"}}, who="eve", why="a test")


def test_the_last_generation_does_not_lock_the_region_out(region: RegionUnderAttack, thief: MqttClient) -> None:
    """The region keeps to its own numbers, and tells the node which one it goes back from."""
    operator = MqttClient(region.broker, "region")
    operator.subscribe(f"hedgerow/v1/{REGION}/+/+/desired")
    region.attack(thief, NODE, [reported(generation=MAX_GENERATION)])
    region.neighbour_goes_on()

    def reported_generation() -> Any:
        (found,) = region.rows(
            "SELECT payload FROM said s JOIN node n ON n.id = s.node WHERE channel = 'reported' AND n.name = 'stolen'"
        )
        return json.loads(bytes(found[0]))["generation"]

    until(lambda: reported_generation() == MAX_GENERATION)
    # The service reads reports every two seconds; what it gives before that is refused by the node, and given again.
    until(lambda: label(region, "s1/stolen")["generation"] and operator.received)
    until(
        lambda: (
            Desired.model_validate_json(operator.received[-1].payload).supersedes == MAX_GENERATION
            or label(region, "s1/stolen") is None
        )
    )
    assert Desired.model_validate_json(operator.received[-1].payload).generation < 1000
    assert label(region, "s2/honest")["generation"] == 1
    operator.close()


def test_every_list_shows_the_attack_and_hides_no_node(
    region: RegionUnderAttack, thief: MqttClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Printed on a terminal, nothing of it controls the terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    region.attack(thief, NODE, [REFUSED["report-model-named-by-escapes"][0], *HARMLESS.values()])
    region.neighbour_goes_on()
    shown = {
        words: CliRunner().invoke(app, [*words.split(), "--store", region.store])
        for words in ("region status", "nodes", "node show s1/stolen", "rollout history", "audit")
    }

    assert not [words for words, result in shown.items() if result.exit_code > (words == "region status")]
    assert "refused as unreadable-payload" in shown["region status"].output
    for words in ("region status", "nodes"):
        assert "s1/stolen" in shown[words].output
        assert "s2/honest" in shown[words].output
    assert not [words for words, result in shown.items() if "\x1b" in result.output or "\u202e" in result.output]


def test_results_that_take_long_to_read_are_refused_before_the_region_does_nothing_else(
    region: RegionUnderAttack,
) -> None:
    """A megabyte of empty lists is one message, within every quota; reading it takes a third of a second."""
    slow = MqttClient(region.broker, SLOW)
    lists = b"\xdd" + ((1 << 20) - 5).to_bytes(4, "big") + b"\x90" * ((1 << 20) - 5)

    region.attack(slow, f"{SLOW}/stolen", [Attempt("result/p", lists, content_type="application/msgpack", times=24)])
    region.neighbour_goes_on()

    until(lambda: (SLOW, "too-many-messages") in region.refused(), region.refused)
    slow.close()


def test_a_flood_of_a_stolen_node_leaves_half_of_the_rate_to_its_neighbours(region: RegionUnderAttack) -> None:
    """It is refused unread. A neighbour at the same site, and one at another, lose nothing."""
    site = MqttClient(region.broker, FLOODER)
    region.attack(
        site, f"{FLOODER}/stolen", [Attempt("event/x", {"at": 1}, times=9000)]
    )  # half of four minutes' is 6000
    until(lambda: (FLOODER, "too-many-messages") in region.refused(), region.refused)
    region.attack(site, f"{FLOODER}/gateway", [results("e1/0/{n}1", times=100)])
    region.neighbour_goes_on()

    until(lambda: region.stored(FLOODER) == 100)
    events = "SELECT count(*) FROM event e JOIN node n ON n.id = e.node WHERE n.site = ?"
    assert region.rows(events, FLOODER)[0][0] <= 1500, "the site's quota of events"
    site.close()


def test_the_store_is_readable_by_its_owner_only(region: RegionUnderAttack) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path(region.store).parent.glob("region.db*")}

    assert set(modes.values()) == {0o600}, modes
    assert len(modes) >= 3
