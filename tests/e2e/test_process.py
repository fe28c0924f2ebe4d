"""The node process: signals, exit codes, and its status messages."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def states(collector: Any) -> list[tuple[str, str]]:
    return [(status["state"], status.get("reason", "")) for status in collector.messages["status"]]


@pytest.mark.parametrize(("number", "loop"), [(signal.SIGTERM, "uvloop"), (signal.SIGINT, "asyncio")])
def test_a_signal_drains_the_node_and_the_next_run_gets_the_remaining_frames(
    node: Any,
    sensors: Any,
    collector: Any,
    until: Callable[..., None],
    tmp_path: Path,
    number: signal.Signals,
    loop: str,
) -> None:
    """After both runs every frame has exactly one result; on either event loop."""
    node.environment["HEDGEROW_NODE__EVENT_LOOP"] = loop
    gate = tmp_path / "gate"
    node.configure("trial", {"gate": {"path": str(gate)}}, batch=2, receive_maximum=20)
    node.start()
    sensors.send(300)
    until(lambda: node.metric("hedgerow_frames_received_total") >= 20)
    node.signal(number)
    until(lambda: '"stopping"' in node.log)
    gate.touch()
    assert node.wait() == 0
    until(lambda: states(collector)[-1:] == [("offline", "stopped")], lambda: states(collector))
    assert 20 <= len(collector.ids()) < 300

    node.configure()
    node.start()
    until(lambda: len(collector.ids()) == 300, lambda: len(collector.ids()))
    assert all(len(ids) == 1 for ids in collector.ids().values())
    sessions = [(status["state"], status["session"]) for status in collector.messages["status"]]
    assert [state for state, _ in sessions] == ["online", "offline", "online"]
    assert sessions[0][1] == sessions[1][1] != sessions[2][1], "online and offline name the same session"


def test_ctrl_c_stops_a_node_in_the_background_of_a_script(node: Any) -> None:
    """Although the shell makes background jobs ignore SIGINT."""
    node.wrapper = ("sh", "-c", "trap '' INT; exec \"$@\"", "-")
    node.start()
    node.signal(signal.SIGINT)

    assert node.wait() == 0


def test_a_second_signal_stops_the_node_at_once(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None]
) -> None:
    """Although a stage hangs and `drain_s` is long; the will reports the node offline."""
    node.configure("stuck", drain_s=3600)
    node.start()
    sensors.send(1)
    until(lambda: node.metric("hedgerow_frames_received_total") == 1)
    node.signal(signal.SIGTERM)
    until(lambda: '"stopping"' in node.log)
    node.signal(signal.SIGTERM)

    assert node.wait() == 128 + signal.SIGTERM
    until(lambda: ("offline", "connection lost") in states(collector), lambda: states(collector))
    node.configure()
    node.start()
    assert '"node-crashed"' not in node.log, "no frame is blamed for it"


def test_a_stage_that_hangs_does_not_prevent_the_node_from_stopping(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None]
) -> None:
    node.configure("stuck", drain_s=0.3)
    node.start()
    sensors.send(1)
    until(lambda: node.metric("hedgerow_frames_received_total") == 1)
    node.signal(signal.SIGTERM)

    assert node.wait() == 0
    assert '"stage-stuck"' in node.log
    node.configure()
    node.start()
    until(collector.ids)
    assert '"node-crashed"' not in node.log, "it had not hung for longer than it may"


def test_the_will_of_a_killed_node_reports_it_offline(node: Any, collector: Any, until: Callable[..., None]) -> None:
    node.start()
    until(lambda: states(collector) == [("online", "")])
    node.kill()
    until(lambda: states(collector)[1:] == [("offline", "connection lost")], lambda: states(collector))

    assert len({status["session"] for status in collector.messages["status"]}) == 1


def test_sighup_reloads_the_configuration_file(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None]
) -> None:
    """An invalid file is refused, and the pipelines continue."""
    node.start()
    node.configure({"trial": {"tag": "new"}})
    node.signal(signal.SIGHUP)
    until(lambda: collector.messages["event/reloaded"])
    node.file.write_text("pipelines: {p: {subscribe: 5}}")
    node.signal(signal.SIGHUP)
    until(lambda: collector.messages["event/reload-refused"])
    sensors.send(1)
    until(lambda: collector.messages["result/p"])

    assert collector.messages["result/p"][0]["result"]["tag"] == "new"
    assert collector.messages["event/reload-refused"][0]["detail"]["error"]


def test_metrics_account_for_every_frame(node: Any, sensors: Any, collector: Any, until: Callable[..., None]) -> None:
    node.start()
    sensors.send(20)
    sensors.send(5, do="drop")
    sensors.send(3, do="dies")
    until(lambda: node.metric("hedgerow_frames_in_flight") == 0 and node.metric("hedgerow_frames_received_total") == 28)

    assert node.metric("hedgerow_frames_out_total", pipeline="p") == 20
    assert node.metric("hedgerow_results_total") == 20
    assert node.metric("hedgerow_frames_dropped_total", reason="asked-to") == 5
    assert node.metric("hedgerow_frames_dead_total", reason="asked-to-die") == 3
    assert node.metric("hedgerow_latency_seconds_count") == 20
    assert node.metric("hedgerow_stage_frames_total", stage="trial") == 28
    assert node.metric("hedgerow_connected") == 2


def test_probes_distinguish_an_unreachable_broker_from_a_dead_node(
    node: Any, until: Callable[..., None], mosquitto: Any
) -> None:
    mosquitto.stop()
    node.start(wait=False)
    until(lambda: node.probe("readyz")[0] == 503 and node.probe("healthz")[0] == 200, lambda: node.log)
    reasons = json.loads(node.probe("readyz")[1])["reasons"]
    assert any("broker" in reason for reason in reasons), reasons

    mosquitto.start()
    until(lambda: node.probe("readyz")[0] == 200, lambda: node.probe("readyz"))
    mosquitto.stop()
    until(lambda: node.probe("readyz")[0] == 503)
    assert node.probe("healthz")[0] == 200


def test_an_invalid_file_is_explained_and_nothing_starts(node: Any, tmp_path: Path) -> None:
    node.file.write_text("pipelines:\n  p:\n    subscrib: a\n    stages: [parse]\n")
    node.start(wait=False)

    assert node.wait() not in (0, 1)
    assert "subscrib" in node.log
    assert "Traceback" not in node.log
