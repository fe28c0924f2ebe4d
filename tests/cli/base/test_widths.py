"""Output of verbs on terminals of 60 to 180 columns: names first and complete, a line per row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import unstyle
from tests.conftest import MakeVersion
from tests.trust.conftest import make_bundle

from hedgerow.bus.outbox.records import Number
from hedgerow.cli.base import tables
from hedgerow.cli.base.console import rendered
from hedgerow.cli.diagnose import doctor
from hedgerow.cli.diagnose.checks import CheckResult
from hedgerow.cli.frames import command
from hedgerow.cli.region import rollout_progress
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.records import ResultRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.topics import Address
from hedgerow.wire.messages import Reply

WIDTHS = (60, 80, 120, 180)
Printed = Callable[..., list[str]]


@pytest.fixture(params=WIDTHS)
def printed(request: pytest.FixtureRequest, hedgerow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Runs a command line on a terminal of each width, and returns its lines, none of which is wider."""
    width: int = request.param
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))

    def run(*arguments: object) -> list[str]:
        result = hedgerow(*arguments)
        assert result.code in (0, 1), result.err  # `region status` exits with 1 if somebody should look
        lines: list[str] = result.out.splitlines()
        assert max(map(len, lines)) <= width, "\n".join(lines)
        return lines

    run.width = width  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A region's store with results of two nodes."""
    path = tmp_path_factory.mktemp("region") / "region.db"
    config = RegionConfig.model_validate({"region": {"name": "retail"}, "store": {"url": str(path)}})
    filled = RegionStore(open_database(str(path), write=True), config)
    now = time.time()
    detections = {
        "detections": [{"label": label} for label in ("person", "dog", "bicycle", "umbrella", "shopping trolley")]
    }
    body = json.dumps({"at": now, "result": detections}).encode()
    filled.apply(
        [
            ResultRecord(
                *(Address("retail", site, "gateway"), len(body), now, True, "visitors"),
                *(Number("e1", 0, number), f"i{number}", now - 9, "application/json", None, body),
            )
            for site in ("shop-12", "shop-13")
            for number in range(1, 4)
        ]
    )
    filled.close()
    return path


def test_region_status(printed: Printed, store: Path) -> None:
    lines = printed("region", "status", "--store", store)

    sites, nodes = (number for number, line in enumerate(lines) if line.startswith(("SITE ", "NODE ")))
    assert lines[sites].split()[:5] == ["SITE", "NODES", "OK", "RESULTS", "LOST"]
    assert [line.split()[0] for line in lines[sites + 1 : sites + 3]] == ["shop-12", "shop-13"]
    assert lines[nodes].split()[:4] == ["NODE", "STATUS", "RESULTS", "LOST"]
    for site, line in zip(("shop-12", "shop-13"), lines[nodes + 1 :], strict=True):
        name, status, results, lost, *_ = line.split()
        assert (name, status, results, lost) == (f"retail/{site}/gateway", "ok", "3", "0")
        assert line.index(" 3 ") + 2 == lines[nodes].index("RESULTS") + len("RESULTS"), "numbers are right-aligned"


def test_region_status_shows_all_columns_on_a_wide_terminal(printed: Printed, store: Path) -> None:
    headings = [line for line in printed("region", "status", "--store", store) if line.startswith(("SITE ", "NODE "))]

    if printed.width >= 120:  # type: ignore[attr-defined]
        assert headings == [
            "SITE     NODES  OK  RESULTS  LOST  MISSING  LAST SEEN  BYTES IN  BYTES OUT",
            "NODE                    STATUS  RESULTS  LOST  MISSING  LAST SEEN    LAG  RTT  LAST REPLY",
        ]


def test_nodes(printed: Printed, store: Path) -> None:
    heading, *rows, count = printed("nodes", "--store", store)

    assert heading.split()[:2] == ["NODE", "STATUS"]
    assert [row.split()[:2] for row in rows] == [[f"retail/shop-{n}/gateway", "ok"] for n in (12, 13)]
    assert count == "2 nodes."


def test_results(printed: Printed, store: Path) -> None:
    heading, *rows, count = printed("results", "query", "--store", store)

    assert heading.split()[:3] == ["CAPTURED", "NODE", "PIPELINE"]
    assert [row.split()[1:3] for row in rows[:2]] == [["shop-12/gateway", "visitors"]] * 2
    if printed.width >= 80:  # type: ignore[attr-defined]
        assert heading.split()[-1] == "RESULT"
    if printed.width == 80:  # type: ignore[attr-defined]
        assert all(row.endswith("person, dog, bicyc…") for row in rows), rows
    if printed.width == 180:  # type: ignore[attr-defined]
        assert all(row.endswith("person, dog, bicycle, umbrella, shopping trolley") for row in rows)
    assert count == "6 results."


def test_trust_status(printed: Printed, hedgerow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle(tmp_path / "door-1.0.0").folder
    for arguments in (
        ("init", "--no-passphrase", "--json"),
        ("key", "vision.pem", "--no-passphrase"),
    ):
        assert hedgerow("trust", *arguments).code == 0
    keys = ("--key", "keys/targets.pem")
    assert hedgerow("trust", "add", "vision", "--model", "door", "--public-key", "vision.pub", *keys).code == 0
    assert hedgerow("model", "publish", bundle, "--to", "models", "--key", "vision.pem").code == 0

    lines = printed("trust", "status")

    (roles,) = [number for number, line in enumerate(lines) if line.startswith("ROLE ")]
    assert {line.partition(" ")[0] for line in lines[roles + 1 :]} >= {"root", "targets", "vision", "timestamp"}
    (models,) = [number for number, line in enumerate(lines) if line.startswith("MODEL ")]
    assert lines[models + 1].split()[:3] == ["door", "1.0.0", "vision"]


BODY = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"


def test_model_show_and_diff(printed: Printed, make_version: MakeVersion) -> None:
    one = make_version(BODY, "1.0.0", baseline=True, parameters={"labels": ["open", "closed", "blocked"] * 9})
    two = make_version("(float[N,3] x) => (float[N,3] y) { y = Mul(x, x) }", "1.1.0", baseline=True)

    shown = printed("model", "show", one.folder)
    (at,) = [number for number, line in enumerate(shown) if line.startswith("VARIANT ")]
    assert shown[at].split()[:3] == ["VARIANT", "SIZE", "MEMORY"]
    assert shown[at + 1].split()[0] == "onnx"
    assert "".join("".join(shown).split()).count("blocked") == 9, "facts are wrapped, not shortened"

    differing = printed("model", "diff", one.folder, two.folder)
    headings = [line.split()[0] for line in differing if line.partition(" ")[0].isupper()]
    assert headings == ["A", "B", "CHANGED", "GOLDEN", "TENSOR", "TO"]


HEALTH = {
    "state": "degraded",
    "reasons": ["no frame on hall-1/camera-7/image for 12 minutes", "outbox: 90 % of its disk is full"],
    "pipelines": {"doors": {"state": "running", "received": 583, "dropped": {"no-speech": 13, "absorbed": 563}}},
}


@pytest.mark.parametrize("width", WIDTHS)
def test_command_health(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    reply = Reply(command="health", node="local/site/press", ok=True, value=HEALTH)

    command._print(reply, many=False)

    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    named = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert named == [
        "state",
        "reasons",
        "pipelines.doors.state",
        "pipelines.doors.received",
        "pipelines.doors.dropped.no-speech",
        "pipelines.doors.dropped.absorbed",
    ]
    assert "outbox: 90 % of its disk is full" in " ".join(out.split()), "long values are wrapped, not shortened"


@pytest.mark.parametrize("width", WIDTHS)
def test_doctor(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    stages = ", ".join(["annotate", "anomaly", "boxes", "decode", "infer", "letterbox", "resize", "ssd"] * 2)
    problem = "mqtt://127.0.0.1:1 refused the connection: nothing listens there"
    remedy = "Start the broker there, or check the port. Name another with --broker mqtt://HOST:PORT."

    doctor.print_finding(CheckResult("stages", "ok", stages))
    doctor.print_finding(CheckResult("broker", "failed", problem, remedy))

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("ok       stages        annotate, anomaly, boxes")
    assert lines[0].endswith("…") == (width < 180)
    assert lines[1].startswith("failed   broker        mqtt://127.0.0.1:1")
    assert " ".join(" ".join(lines[1:]).split()) == f"failed broker {problem} → {remedy}", (
        "problems are never shortened"
    )


PROGRESS = {
    "rollout": "faces-2",
    "phase": "in-progress",
    "models": {"faces": {"name": "faces", "version": "2.0.0", "digest": "sha256:0123456789abcdef"}},
    "who": "ada@laptop",
    "why": "faces in poor light, as the shops have asked for since the clocks went back",
    "waits_for": "all nodes of wave 2 to be good",
    "because": "",
    "waves": [
        {"wave": "ring=early", "begun": True, "nodes": 4, "states": {"succeeded": 4}, "late": 0, "back": {}},
        {
            "wave": "the rest",
            "begun": True,
            "nodes": 1200,
            "states": {"succeeded": 600, "failed": 1},
            "late": 7,
            "back": {"proved": 1},
        },
    ],
    "tasks": [
        {
            "node": "retail/shop-13/gateway",
            "state": "failed",
            "late": False,
            "back": "proved",
            "code": "not-finite",
            "reason": "outputs of 1 of 45 frames were no numbers; the version before it had none",
        }
    ],
    "tasks_left_out": 3,
}


@pytest.mark.parametrize("width", WIDTHS)
def test_rollout_status(width: int) -> None:
    lines = [unstyle(rendered(line)) for line in rollout_progress.render(PROGRESS, width)]

    assert max(map(len, lines)) <= width
    (at,) = [number for number, line in enumerate(lines) if line.startswith("WAVE ")]
    bars = [" ████████████████", " ████████░░░░░░░░"] if width >= 80 else ["", ""]
    assert lines[at].split() == ["WAVE", "GOOD", "NODES", "FAILED", "LATE", "ROLLED", "BACK"]
    assert lines[at + 1].split() == f"1 (ring=early){bars[0]} 4 4".split()
    assert lines[at + 2].split() == f"2 (the rest){bars[1]} 600 1200 1 7 1".split()
    tasks = " ".join(" ".join(lines[at + 3 :]).split())
    assert "retail/shop-13/gateway: failed, rolled back: not-finite: outputs of 1 of 45 frames were" in tasks
