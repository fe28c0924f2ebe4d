"""Escape sequences in the output of verbs and in the node's log: no color with NO_COLOR, none at all on a dumb terminal or in a pipe."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import structlog
from tests.cli.base.test_main import VERBS
from tests.cli.terminals import COLOR, terminal
from tests.conftest import MakeVersion
from tests.trust.conftest import make_bundle

from hedgerow.cli.base.verbs import Group
from hedgerow.cli.main import _HEDGEROW
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.store import RegionStore
from hedgerow.telemetry import logs
from hedgerow.terminal import supports_color, supports_redraw
from hedgerow.testing import Mosquitto, processes

ESCAPE = "\x1b"
AWAY = ("--broker", "mqtt://127.0.0.1:1")
STORE = ("--store", "region.db")

# Every verb, most of them with something to print. BROKER stands for the broker's address.
RUN = [
    ("demo", "nothing"),
    ("doctor", *AWAY),
    ("node", "run", "wrong.yaml"),
    ("node", "show", "hall-1/gateway", *STORE),
    ("node", "label", "hall-1/gateway", "ring=early", *STORE),
    ("node", "pipelines", "hall-1/gateway", "doors=1.0.0", *STORE),
    ("node", "pin", "hall-1/gateway", "door=1.0.0", *STORE),
    ("node", "unpin", "hall-1/gateway", "door", *STORE),
    ("node", "seal", "--state", "door", "--dry-run"),
    ("node", "new-identity", "--state", "door", "--dry-run"),
    ("node", "pending", *STORE),
    ("node", "approve", "5f2ab09c", *STORE),
    ("node", "reject", "5f2ab09c", *STORE),
    ("node", "rename", "hall-1/gateway", "entrance", "--dry-run", *STORE),
    ("node", "move", "hall-1/gateway", "hall-2", "--dry-run", *STORE),
    ("node", "replace", "hall-1/gateway", "--dry-run", *STORE),
    ("node", "forget", "hall-1/gateway", "--dry-run", *STORE),
    ("node", "admit", "hall-1/gateway", *STORE),
    ("claim", "create", "hall-1", *STORE),
    ("claim", "list", *STORE),
    ("claim", "revoke", "c1", *STORE),
    ("enrol", "nothing.txt"),
    ("config", "check", "right.yaml", "wrong.yaml"),
    ("config", "schema"),
    ("plugin", "list"),
    ("plugin", "show", "motion"),
    ("plugin", "test", "parse", "right.yaml"),
    ("plugin", "new", "dim-light"),
    ("site", "init", "--name", "hall-1", "--broker", "127.0.0.1", "--node", "gateway", "--region", "plant"),
    ("topology", "check", "topology.yaml"),
    ("topology", "render", "topology.yaml", "--out", "rendered"),
    ("topology", "schema"),
    ("broker", "refusals", "right.yaml"),
    ("region", "run", "wrong.yaml"),
    ("region", "status", *STORE),
    ("region", "check", "region.yaml"),
    ("region", "check", "wrong.yaml"),
    ("region", "backup", "backup"),
    ("region", "restore", "backup"),
    ("results", "query", *STORE),
    ("nodes", *STORE),
    ("audit", *STORE),
    ("rollout", "start", "-f", "wrong.yaml", *STORE),
    ("rollout", "status", *STORE),
    ("rollout", "pause", "door-2", *STORE),
    ("rollout", "resume", "door-2", *STORE),
    ("rollout", "abort", "door-2", *STORE),
    ("rollout", "history", *STORE),
    ("rollout", "check", "wrong.yaml"),
    ("rollout", "schema"),
    ("pki", "init", "--region", "plant", "--site", "hall-1"),
    ("pki", "issue", "hall-1/gateway", "--days", "1"),
    ("pki", "show"),
    ("pki", "renew"),
    ("pki", "revoke", "hall-1/gateway"),
    ("pki", "show"),
    ("pki", "apply", "topology.yaml", "--dry-run"),
    ("trust", "init", "--no-passphrase"),
    ("trust", "key", "vision.pem", "--no-passphrase"),
    ("trust", "add", "vision", "--model", "door", "--public-key", "vision.pub", "--key", "keys/targets.pem"),
    ("model", "publish", "door-1.0.0", "--to", "models", "--key", "vision.pem"),
    ("trust", "publish-pipelines", "doors", "--name", "doors", "--version", "1.0.0", "--key", "vision.pem"),
    ("trust", "status", "--explain"),
    ("trust", "refresh"),
    ("trust", "sign", "--key", "vision.pem"),
    ("trust", "renew", "vision", "--key", "vision.pem"),
    ("trust", "rotate", "vision", "--old", "vision.pem", "--new", "vision.pub", "--key", "keys/targets.pem"),
    ("trust", "remove", "vision", "--key", "keys/targets.pem"),
    ("model", "build", "nothing.onnx", "--version", "1.0.0"),
    ("model", "show", "door"),
    ("model", "verify", "door"),
    ("model", "diff", "door", "door-1.0.0"),
    ("model", "bench", "door", "--seconds", "1", "--threads", "1", "--no-save"),
    ("model", "bom", "door", "--out", "door.cdx.json"),
    ("model", "push", "door", "oci://127.0.0.1:1/models"),
    ("publish", "right.yaml", "--topic", "hall-1/notes", "BROKER"),
    ("watch", "--seconds", "0.3", "BROKER"),
    ("explain", "--last", "doors", "--timeout", "0.05", "BROKER"),
    ("command", "plant/hall-1/gateway", "ping", "--timeout", "0.05", "BROKER"),
    ("tune", "door/variants/onnx/model.onnx", "--seconds", "1", "--max-batch", "1", "--no-save"),
]

# One process for all: starting fifty would take a minute.
PROGRAM = """
import json, sys
from hedgerow.cli.main import app
for arguments in json.loads(sys.argv[1]):
    print(">", *arguments, flush=True)
    try:
        app(arguments, prog_name="hedgerow")
    except SystemExit as end:
        print("ended with", end.code, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, make_version: MakeVersion, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files for verbs to work on."""
    (tmp_path / "right.yaml").write_text("pipelines: {doors: {subscribe: hall-1/+, stages: [parse]}}\n")
    (tmp_path / "wrong.yaml").write_text("pipeline: {doors: {}}\n")
    (tmp_path / "region.yaml").write_text("region: {name: plant}\nstore: {url: region.db}\n")
    config = RegionConfig.model_validate({"region": {"name": "plant"}, "store": {"url": str(tmp_path / "region.db")}})
    RegionStore(open_database(str(tmp_path / "region.db"), write=True), config).close()
    make_bundle(tmp_path / "door-1.0.0")
    bundle = make_version("(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    bundle.folder.rename(tmp_path / "door")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(broker: Mosquitto) -> str:
    return json.dumps([[*(each for each in line if each != "BROKER"), *(("--broker", broker.url) if "BROKER" in line else ())] for line in RUN])  # fmt: skip


def test_every_verb_is_covered() -> None:
    def verb_of(line: tuple[str, ...]) -> tuple[str, ...]:
        return line[:2] if isinstance(_HEDGEROW.verbs[line[0]], Group) else line[:1]

    leaves = {verb for verb in VERBS if not any(other[: len(verb)] == verb != other for other in VERBS)}
    assert {verb_of(line) for line in RUN} == leaves


@pytest.mark.usefixtures("folder")
def test_no_verb_writes_an_escape_sequence_on_a_dumb_terminal(broker: Mosquitto) -> None:
    output = output_on_terminal(broker, TERM="dumb")

    assert [line for line in output.splitlines() if ESCAPE in line] == []


@pytest.mark.usefixtures("folder")
def test_with_no_color_no_verb_writes_color_and_only_live_views_move_the_cursor(broker: Mosquitto) -> None:
    output = output_on_terminal(broker, NO_COLOR="1")

    assert COLOR.findall(output) == []
    escaping = {run.split()[0] for run in output.split("> ")[1:] if ESCAPE in run}
    live = {"claim", "model", "node", "publish", "region", "rollout", "tune", "watch"}
    assert {"watch"} <= escaping <= live, escaping


def output_on_terminal(broker: Mosquitto, **environment: str) -> str:
    with terminal("-c", PROGRAM, commands(broker), columns=80, **environment) as shell:
        code, output = shell.wait()
    assert code == 0, output
    assert_ran_all(output)
    return output


def assert_ran_all(output: str) -> None:
    assert "Traceback" not in output
    assert output.count("ended with 0") > 0.4 * len(RUN), "many verbs have something to show"
    assert output.count("ended with") == len(RUN)


@pytest.mark.usefixtures("folder")
def test_no_verb_writes_an_escape_sequence_into_a_pipe(broker: Mosquitto) -> None:
    """Not even with FORCE_COLOR: a program reads the pipe."""
    done = processes.run(
        [sys.executable, "-c", PROGRAM, commands(broker)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NO_COLOR": "", "TERM": "xterm", "FORCE_COLOR": "1"},
    )

    assert done.stdout.count("ended with") == len(RUN)
    assert ESCAPE not in done.stdout + done.stderr


def test_a_color_terminal_gets_color(folder: Path) -> None:
    """Shows that the tests without color can fail."""
    with terminal("pki", "init", "--region", "plant", "--site", "hall-1") as shell:
        assert shell.wait()[0] == 0
    with terminal("pki", "issue", "hall-1/gateway", "--days", "1") as shell:
        assert shell.wait()[0] == 0
    with terminal("pki", "revoke", "hall-1/gateway") as shell:
        assert shell.wait()[0] == 0
    with terminal("pki", "show") as shell:
        assert "\x1b[31m" in shell.wait()[1]
    with terminal("config", "check", folder / "wrong.yaml") as shell:
        assert ESCAPE in shell.wait()[1]


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=["NO_COLOR", "dumb", "color"])
def test_the_nodes_log_on_a_terminal(
    broker: Mosquitto, topic_prefix: str, tmp_path: Path, setting: dict[str, str]
) -> None:
    node = (
        f"node: {{region: {topic_prefix}, state_dir: state}}\nbroker: {{url: '{broker.url}'}}\nmetrics: {{port: 0}}\n"
    )
    pipelines = f"pipelines: {{doors: {{subscribe: {topic_prefix}/+, stages: [parse]}}}}\n"
    (tmp_path / "node.yaml").write_text(node + pipelines)
    with terminal("node", "run", tmp_path / "node.yaml", **setting) as shell:
        shell.until(lambda output: "node-started" in output)
        code, output = shell.interrupt()

    assert code == 0
    assert "pipeline" in output
    assert (ESCAPE in output) == (setting == {})


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "setting", "color", "redraw"),
    [
        (Screen(), {"TERM": "xterm"}, True, True),
        (Screen(), {"TERM": "xterm", "NO_COLOR": ""}, True, True),
        (Screen(), {"TERM": "xterm", "NO_COLOR": "0"}, False, True),
        (Screen(), {"TERM": "dumb"}, False, False),
        (Screen(), {}, False, False),
        (io.StringIO(), {"TERM": "xterm"}, False, False),
        (io.StringIO(), {"TERM": "xterm", "FORCE_COLOR": "1"}, False, False),
    ],
)
def test_color_and_redrawing_depend_on_the_stream_and_the_environment(
    stream: io.StringIO, setting: dict[str, str], color: bool, redraw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any NO_COLOR that is not empty forbids color, and color only."""
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)

    assert supports_color(stream) is color
    assert supports_redraw(stream) is redraw


@pytest.mark.parametrize("setting", ["NO_COLOR", "pipe", "color"])
def test_tracebacks_in_the_log_have_color_only_where_the_log_has(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO() if setting == "pipe" else Screen()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if setting == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    logs.configure(format="console")
    try:
        try:
            raise ValueError("no such stage")
        except ValueError:
            structlog.get_logger().exception("stage-failed")
    finally:
        structlog.reset_defaults()

    assert "ValueError" in stream.getvalue()
    assert "no such stage" in stream.getvalue()
    assert (ESCAPE in stream.getvalue()) == (setting == "color")
