"""`hedgerow rollout`, `nodes`, `node` and `audit`, with a region's process and simulated nodes."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.command_output import CommandOutput
from tests.region.conftest import REGION, CollectorProcess
from tests.region.responders import Responders, digest, ref
from typer.testing import CliRunner

from hedgerow.cli.main import app
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.store import RegionStore
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address

NODES = [Address(REGION, site, name) for site in ("hall-1", "hall-2") for name in ("east", "west", f"gate-{site[-1]}")]
GATE = {"min_frames": 20, "slow_reports": 2}


class Operator:
    """An operator's command line, and a region with six nodes."""

    def __init__(self, store: str, folder: Path, nodes: Responders) -> None:
        self.store = store
        self.nodes = nodes
        self._folder = folder

    def hedgerow(self, *args: object, with_store: bool = True) -> CommandOutput:
        store = ["--store", self.store] if with_store else []
        done = CliRunner().invoke(app, [*map(str, args), *store], prog_name="hedgerow", terminal_width=200)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return CommandOutput(done.exit_code, done.stdout, done.stderr)

    def file(self, name: str, version: str = "2.0.0", **more: Any) -> Path:
        """Write a rollout's file."""
        models = {"faces": {"version": version, "digest": ref(version).digest}}
        content = {"rollout": name, "models": models, "waves": ["1 site"], "soak_s": 0.2, "gate": GATE, **more}
        path = self._folder / f"{name}.yaml"
        path.write_text(json.dumps(content))
        return path

    def start(self, name: str, version: str = "2.0.0", **more: Any) -> CommandOutput:
        return self.hedgerow("rollout", "start", "-f", self.file(name, version, **more), "--why", "a test")

    def watch(self, name: str) -> CommandOutput:
        return self.hedgerow("rollout", "status", name, "--watch")


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """All tests share a region: each uses its own names for rollouts, and leaves none in progress."""
    folder = tmp_path_factory.mktemp("region")
    with Mosquitto() as broker:
        collector = CollectorProcess(broker.url, str(folder / "region.db"), folder)
        collector.configure()
        collector.start()
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        ready = threading.Event()
        nodes: list[Responders] = []

        async def main() -> None:
            async with Responders(broker.url, NODES, ring="late") as made:
                nodes.append(made)
                ready.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
        thread.start()
        assert ready.wait(60)
        one = Operator(collector.store, folder, nodes[0])
        try:
            eventually(lambda: len(one.hedgerow("nodes", "-l", "ring=late", "--json").json) == len(NODES))
            assert one.start("faces-1", "1.0.0", waves=[]).code == 0
            assert one.watch("faces-1").code == 0
            yield one
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()
            collector.close()


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_dry_run_shows_the_waves_and_does_nothing(operator: Operator) -> None:
    shown = operator.hedgerow("rollout", "start", "-f", operator.file("faces-dry"), "--dry-run")

    assert shown.code == 0, shown.err
    assert "faces → faces 2.0.0 (" in shown.out
    assert "2 (the rest)" in shown.out
    assert "would reach 6 nodes. Nothing was changed." in shown.out
    assert "faces-dry" not in operator.hedgerow("rollout", "history").out


def test_a_rollout_is_watched_to_its_end_and_stays_in_the_history(operator: Operator) -> None:
    file = operator.file("faces-good", "1.1.0")
    started = followed = operator.hedgerow("rollout", "start", "-f", file, "--why", "a test", "--watch")
    shown = operator.hedgerow("rollout", "status", "faces-good")
    details = operator.hedgerow("rollout", "status", "faces-good", "--nodes", "--json").json

    assert "Started faces-good for 6 nodes" in started.out
    assert followed.code == 0
    assert "faces-good: succeeded, wave 2 of 2: 6 succeeded" in followed.out.splitlines()[-1]
    assert "6 of 6 nodes serve it" in shown.out
    assert {task["state"] for task in details["tasks"]} == {"succeeded"}
    history = operator.hedgerow("rollout", "history", "--json").json
    assert [(one["phase"], one["why"]) for one in history if one["rollout"] == "faces-good"] == [
        ("succeeded", "a test")
    ]
    again = operator.start("faces-good", "1.2.0")
    assert (again.code, "name" in again.err) == (1, True)


def test_the_audit_log_names_who_paused_resumed_and_aborted_and_why(operator: Operator) -> None:
    before = operator.nodes.versions()
    assert operator.start("faces-slow", "1.3.0", soak_s=600).code == 0
    eventually(lambda: "soaking" in operator.hedgerow("rollout", "status", "faces-slow", "--json").json["waits_for"])
    without_reason = operator.hedgerow("rollout", "pause", "faces-slow")
    paused = operator.hedgerow("rollout", "pause", "faces-slow", "--why", "the line is busy", "--as", "eve")
    twice = operator.hedgerow("rollout", "pause", "faces-slow", "--why", "again")
    resumed = operator.hedgerow("rollout", "resume", "faces-slow", "--why", "it is not", "--as", "eve")
    other = operator.start("faces-other", "1.4.0")
    aborted = operator.hedgerow("rollout", "abort", "faces-slow", "--why", "wrong version", "--as", "eve")
    ended = operator.watch("faces-slow")

    assert (without_reason.code, "Give it with --why" in without_reason.err) == (1, True)
    assert (paused.code, resumed.code, aborted.code) == (0, 0, 0)
    assert (twice.code, "is paused" in twice.err) == (1, True)
    assert (other.code, "faces-slow is in-progress and includes" in other.err) == (1, True)
    assert ended.code == 1
    user = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
    assert f"aborted by {user} (claims eve): wrong version" in " ".join(ended.out.split())
    assert operator.nodes.versions() == before
    lines = operator.hedgerow("audit", "--rollout", "faces-slow", "--json").out.splitlines()
    entries = [(line["action"], line["who"], line["why"]) for line in map(json.loads, lines) if line["claims"] == "eve"]
    assert entries == [
        ("rollout-paused", user, "the line is busy"),
        ("rollout-resumed", user, "it is not"),
        ("rollout-aborted", user, "wrong version"),
        ("nodes-put-back", user, "wrong version"),
    ]
    assert f"{user} (claims eve)" in operator.hedgerow("audit", "--rollout", "faces-slow", "--who", "eve").out
    refused = operator.hedgerow("audit", "--rollout", "faces-other").out
    assert "refused" in refused
    assert "faces-slow" in refused


def test_a_failed_rollout_names_the_node_and_the_command_fails(operator: Operator) -> None:
    for node in operator.nodes.nodes.values():
        node.behaves = lambda model: "golden-failed" if model.version == "6.6.6" else "good"
    operator.start("faces-bad", "6.6.6", waves=[1])
    ended = operator.watch("faces-bad")
    shown = operator.hedgerow("rollout", "status", "faces-bad")

    assert ended.code == 1
    assert "1 failed" in ended.out
    assert "golden-failed: faces 6.6.6 was rolled back" in shown.out
    assert ", rolled back" in shown.out


@pytest.mark.parametrize(
    ("plan", "code", "message"),
    [
        (
            {"version": "9.9.9", "models": {"faces": {"version": "9.9.9"}}},
            1,
            "Cannot look up faces 9.9.9: the region has no repository",
        ),
        ({"target": "site=hall-9"}, 1, "No node matches 'site=hall-9': 6 known nodes"),
        ({"target": "site=("}, 2, "is not a label selector"),
        ({"waves": ["150%"]}, 2, "waves"),
        ({"soak_s": -1}, 2, "soak_s"),
        ({"gate": {"max_errors": 1}}, 2, "max_errors"),
        ({"windows": [{"begin": "25:00", "end": "04:00"}]}, 2, "00:00 to 23:59"),
        ({"models": {}}, 2, "models"),
    ],
)
def test_an_invalid_rollout_is_refused_with_a_remedy(
    operator: Operator, plan: dict[str, Any], code: int, message: str
) -> None:
    refused = operator.start("faces-wrong", **plan)

    assert refused.code == code
    assert message in refused.err
    assert "→" in refused.err


def test_a_request_fails_at_once_if_the_service_is_not_running(operator: Operator, tmp_path: Path) -> None:
    store = str(tmp_path / "region.db")
    database = open_database(store, write=True)
    RegionStore(database, RegionConfig()).beat(connected=True)
    database.run("UPDATE collector SET beat_at = beat_at - 600")
    database.close()
    command = operator.hedgerow("rollout", "pause", "x", "--why", "y", "--store", store, with_store=False)

    assert command.code == 1
    assert "The region's service is not running; last seen 10 min ago" in command.err


def test_a_file_is_checked_without_a_region(operator: Operator) -> None:
    good = operator.hedgerow("rollout", "check", operator.file("faces-check"), with_store=False)
    bad = operator.hedgerow(
        "rollout", "check", operator.file("faces-bad-check", soak_s="long"), "--json", with_store=False
    )
    schema = operator.hedgerow("rollout", "schema", with_store=False).json

    assert (good.code, "ok (rollout faces-check)" in good.out) == (0, True)
    assert bad.code == 2
    assert json.loads(bad.out)["problems"][0]["field"] == "soak_s"
    assert schema["title"] == "Hedgerow rollout"


def test_nodes_are_filtered_by_label_model_digest_version_and_health(operator: Operator) -> None:
    def found(*args: str) -> list[str]:
        return [node["node"].removeprefix(f"{REGION}/") for node in operator.hedgerow("nodes", *args, "--json").json]

    all_nodes = sorted(f"{node.site}/{node.node}" for node in NODES)
    version = operator.nodes.versions()[0]
    assert version is not None
    assert found() == all_nodes
    assert found("-l", "site=hall-2, ring in (late, early)") == [name for name in all_nodes if "hall-2" in name]
    assert found("-l", "node=east,site!=hall-1") == ["hall-2/east"]
    assert found("--model", "faces") == all_nodes
    assert found("--model", f"faces@{version}") == all_nodes
    assert found("--model", digest(f"file{version}")[:71]) == all_nodes
    assert found("--model", ref(version).digest) == all_nodes
    assert found("--model", "faces@0.0.1") == []
    assert found("--health", "ok") == all_nodes
    assert found("--health", "silent") == []
    table = operator.hedgerow("nodes", "-l", "site=hall-1").out
    assert table.splitlines()[0].split() == ["NODE", "STATUS", "GENERATION", "STATE", "MODELS", "LABELS"]
    assert f"faces {version}" in table
    assert table.endswith("3 nodes.\n")


def test_a_command_reaches_every_node_of_a_region(operator: Operator) -> None:
    command = ("command", f"{REGION}/~/~", "ping", "--timeout", "30", "--broker", operator.nodes.url)
    output = operator.hedgerow(*command, with_store=False)
    replies = operator.hedgerow(*command, "--json", with_store=False).json

    assert (output.code, output.out.splitlines()[-1]) == (0, "6 of 6 nodes succeeded.")
    assert {reply["node"] for reply in replies} == set(map(str, NODES))


def test_labels_set_in_the_region_reach_the_node(operator: Operator) -> None:
    set_ = operator.hedgerow("node", "label", "gate-1", "tier=early", "camera=new", "--why", "a test")
    eventually(lambda: "camera" in operator.nodes.nodes[NODES[2]].desired.labels)  # type: ignore[union-attr]
    shown = operator.hedgerow("node", "show", "hall-1/gate-1")
    operator.hedgerow("node", "label", "gate-1", "camera-")
    details = operator.hedgerow("node", "show", "gate-1", "--json").json

    assert (set_.code, "tier=early" in set_.out) == (0, True)
    assert "early (set by the region)" in shown.out
    assert "node-labelled" in shown.out
    assert "frames, drift 0.10" in shown.out
    assert details["labels_of_region"] == {"tier": "early"}
    assert (details["labels"]["tier"], details["labels"]["ring"]) == ("early", "late")
    refused = operator.hedgerow("node", "label", "gate-1", "ring=early", "--why", "a test")
    assert refused.code == 1
    assert "The label ring is 'late' in the node's own file" in refused.err


def test_a_pinned_node_keeps_its_version_and_catches_up_when_it_is_unpinned(operator: Operator) -> None:
    pinned_node = operator.nodes.nodes[NODES[5]]
    version = str(pinned_node.version)
    digest_of_it = ref(version).digest
    pinned = operator.hedgerow(
        "node", "pin", "gate-2", f"faces={version}", "--digest", digest_of_it, "--why", "compares old cameras"
    )
    started = operator.start("faces-around", "1.5.0", waves=[])
    assert operator.watch("faces-around").code == 0
    version_while_pinned = pinned_node.version
    operator.hedgerow("node", "unpin", "gate-2", "faces")
    eventually(lambda: pinned_node.version == "1.5.0")

    assert pinned.code == 0, pinned.err
    assert "Skipping pinned nodes: test/hall-2/gate-2" in started.out
    assert version_while_pinned == version


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["node", "show", "north"], 1, "There is no node north"),
        (["node", "label", "east", "x=y"], 1, "east matches 2 nodes"),
        (["node", "label", "gate-1", "x"], 2, "is not a label"),
        (["node", "label", "gate-1", "site=x"], 1, "The label site is part of a node's address"),
        (["node", "pin", "gate-1", "faces"], 2, "names no version"),
        (["node", "unpin", "gate-1", "faces"], 1, "not pinned"),
        (["nodes", "-l", "a=("], 2, "is not a label selector"),
        (["nodes", "--health", "fine"], 2, "There is no status 'fine'"),
        (["rollout", "status", "nothing"], 1, "There is no rollout nothing"),
        (["rollout", "pause", "nothing", "--why", "x"], 1, "There is no rollout nothing"),
        (["rollout", "resume", "faces-1", "--why", "x"], 1, "faces-1 is succeeded"),
    ],
)
def test_an_invalid_command_line_is_refused_with_a_remedy(
    operator: Operator, args: list[str], code: int, message: str
) -> None:
    done = operator.hedgerow(*args)

    assert done.code == code, done.err
    assert message in done.err
    assert "→" in done.err
