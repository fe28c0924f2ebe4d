"""Every text that a stolen node can send, through every command that prints what a region's store has of it.

Each field that is a free text has one, in each kind of message. Nothing of it controls a terminal, forges a line, or moves the columns
of others; JSON stays JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.region.conftest import REGION
from typer.testing import CliRunner

from hedgerow.bus.message import Message
from hedgerow.bus.properties import Property, encode_properties
from hedgerow.cli.base.tables import table
from hedgerow.cli.main import app
from hedgerow.region.collector.decode import decode_message
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.store import RegionStore

TEXTS = {
    "controls": "\x1b[2J\x1b]0;title\x07\x00\x9b31m\u202e\u2066\ufeff",
    "lines": "a\nFORGED s2/honest revoked\r\n\tFORGED\u2028FORGED\u2029FORGED\x85FORGED\x0bFORGED\x0cFORGED",
    "width": "表" * 300 + "e\u0301" * 300 + "\u200d\u200b" * 30,
    "markup": "<script>alert(1)</script>\"'}{]\\%s{0}$(id)`id`[red]x[/red]",
}
DIGEST = "sha256:" + "0" * 64
COMMANDS = ("region status", "nodes", "node show s1/stolen", "results query", "rollout history", "audit")


def messages(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a message of each channel with this text wherever one is free."""
    now = time.time()
    head = {"node": f"{REGION}/s1/stolen", "session": text, "at": now}
    ref = {"name": "m", "version": "1.0.0", "digest": DIGEST}
    runs = {"model": ref, "variant": text, "file_digest": text, "backend": text, "device": text, "since": now}
    pipeline = {
        "state": "failed",
        "dropped": {text: 1},
        "dead": {text: 1},
        "models": [text],
        "error": text,
        "remedy": text,
    }
    model = dict.fromkeys(("digest", "version", "bundle", "backend", "device", "device_asked", "degraded"), text)
    yield "status", head | {"state": "online", "version": text, "reason": text}
    yield (
        "health",
        head
        | {"uptime_s": 1, "state": "failing", "reasons": [text], "pipelines": {text: pipeline, "p": pipeline}}
        | {"models": {text: model, "m": model}, "outbox": {"epoch": text, "lost": {text: 3}, "failure": text}},
    )
    yield "event/x", head | {"kind": text, "pipeline": text, "detail": {text: [text]}}
    yield (
        "reported",
        head
        | {"state": "failed", "step": text, "error": {"code": text, "message": text, "remedy": text}}
        | {"models": {text: runs, "m": runs}, "pipelines": {text: text}, "configured": {"m": text}}
        | {"quarantined": [ref | {"code": text, "reason": text, "at": now}]},
    )
    yield (
        "result/p",
        {"schema": "hedgerow.result/1", "id": text, "at": now, "result": {text: text}}
        | {"frame": {"id": text, "stream": text, "topic": text, "sequence": 1, "captured_at": now}},
    )
    yield "result/p", {text: text}
    yield "no-such-channel", {text: text}


@pytest.fixture(params=TEXTS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = str(tmp_path / "region.db")
    config = RegionConfig.model_validate({"region": {"name": REGION}, "store": {"url": url}})
    store = RegionStore(open_database(url, write=True), config)
    properties = encode_properties([(Property.CONTENT_TYPE, "application/json")])
    for node, text in (("s1/stolen", TEXTS[request.param]), ("s2/honest", "fine")):
        for channel, body in messages(text):
            body = body | ({"node": f"{REGION}/{node}"} if "node" in body else {})
            topic = f"hedgerow/v1/{REGION}/{node}/{channel}"
            message = Message(topic, json.dumps(body).encode(), 2, 1, 0.0, properties)
            store.apply([decode_message(message, REGION, time.time())])
    store.close()
    return url


def test_no_text_of_a_stolen_node_controls_a_terminal_or_forges_a_line(store: str) -> None:
    for command in COMMANDS:
        shown = CliRunner().invoke(app, [*command.split(), "--store", store])
        lines = shown.output.split("\n")

        assert shown.exception is None or isinstance(shown.exception, SystemExit), command
        assert [char for line in lines for char in line if not char.isprintable()] == [], command
        assert not [line for line in lines if line.lstrip().startswith("FORGED")], command
        if command in ("region status", "nodes"):
            assert [line for line in lines if line.startswith((f"{REGION}/s2/honest", "s2/honest"))], lines
            assert max(map(len, lines)) < 1500, "each cell has a bound"


def test_what_is_printed_as_json_is_json_and_has_the_whole_text(store: str) -> None:
    for command in ("region status", "nodes", "node show s1/stolen", "results query"):
        shown = CliRunner().invoke(app, [*command.split(), "--json", "--store", store]).output
        documents = [shown] if command != "results query" else shown.splitlines()

        assert [json.loads(document) for document in documents]
        assert [char for char in shown if char != "\n" and not char.isprintable() and char not in "\u200d\u200b"] == []


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_long_texts_of_a_stolen_node_leave_the_columns_of_others_readable(width: int) -> None:
    honest = ("s2/honest", "ok", "succeeded", "faces 1.0.0", "ring=early")
    stolen = ("s1/stolen", "ok", "failed: " + "x" * 5000, "m 1.0.0", "a=b")
    lines = table(("NODE", "STATUS", "STATE", "MODELS", "LABELS"), [honest, stolen], width, names=2)

    assert max(len(line) for line in lines[1:]) <= width
    for text in honest:
        assert text in lines[1]
