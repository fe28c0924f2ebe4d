"""A frame that ends or hangs the node each time it is delivered must not do so for ever."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.long


def numbers_by_stream(collector: Any) -> dict[str, list[int]]:
    streams = defaultdict(list)
    for body in list(collector.messages["result/p"]):
        streams[body["frame"]["stream"]].append(body["result"]["n"])
    return streams


def supervise(node: Any, until: Callable[..., None], done: Callable[[], Any], *, kill_hung: bool = False) -> int:
    """Restart the node whenever it dies, as a supervisor does; return how often it has died."""
    deaths = 0

    def ended() -> bool:
        if kill_hung and node.probe("healthz")[0] == 503:
            node.signal(signal.SIGTERM)
            node.wait()
        return bool(done() or node.exited)

    while True:
        until(ended, lambda: node.log[-4000:])
        if done():
            return deaths
        deaths += 1
        assert deaths < 6, node.log[-6000:]
        node.start(wait=False)


@pytest.mark.parametrize(("lanes", "do"), [(2, "kill-process"), (0, "segfault")])
def test_a_frame_that_ends_the_process_is_dead_lettered_after_two_crashes(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None], lanes: int, do: str
) -> None:
    """Every other frame gives its result, in order. Its pipeline then runs in a worker, so its like end only that."""
    node.configure(lanes=lanes)
    node.start()
    sensors.send(7)
    sensors.send(1, do=do)
    sensors.send(12)

    deaths = supervise(node, until, lambda: collector.messages["dead/p"])

    assert deaths == 2
    assert ("Fatal Python error: Segmentation fault" in node.log) == (do == "segfault")
    (letter,) = collector.messages["dead/p"]
    assert (letter["reason"], letter["stage"]) == ("node-crashed", "trial")
    until(lambda: len(collector.ids()) == 19, lambda: (sorted(collector.ids()), node.log[-3000:]))
    for numbers in numbers_by_stream(collector).values():  # a result whose acknowledgement was lost comes again
        assert list(dict.fromkeys(numbers)) == sorted(set(numbers))
    until(lambda: collector.messages["event/pipeline-isolated"] and collector.messages["event/node-crashed"])
    (isolated,) = collector.messages["event/pipeline-isolated"]
    assert "trial ended the node twice with the same frame" in isolated["detail"]["reason"]
    assert {event["detail"]["stage"] for event in collector.messages["event/node-crashed"]} == {"trial"}

    sensors.send(1, do=do)
    sensors.send(4)
    until(lambda: len(collector.messages["dead/p"]) == 2 and len(collector.ids()) == 23)
    assert collector.messages["dead/p"][1]["reason"] == "worker-crashed"
    assert not node.exited


def test_a_frame_that_hangs_its_stage_fails_the_liveness_probe_and_is_not_run_a_third_time(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None]
) -> None:
    node.configure({"name": "trial", "timeout_s": 1}, drain_s=0.2)
    node.start()
    sensors.send(7)
    sensors.send(1, do="hang")
    sensors.send(12)

    deaths = supervise(node, until, lambda: collector.messages["dead/p"], kill_hung=True)

    assert deaths == 2
    (letter,) = collector.messages["dead/p"]
    assert (letter["reason"], letter["stage"]) == ("node-crashed", "trial")
    until(lambda: len(collector.ids()) == 19, lambda: (sorted(collector.ids()), node.log[-3000:]))
    until(lambda: collector.messages["event/stage-hangs"])
    hung = [event["detail"] for event in collector.messages["event/stage-hangs"]]
    assert {each["stage"] for each in hung} == {"trial"}
    assert "in process" in hung[0]["stack"]


def test_qos_0_frames_that_end_the_node_isolate_their_pipeline(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None]
) -> None:
    """The broker does not deliver them again, but their like keep coming."""
    node.configure(qos=0)

    def ended() -> bool:
        if node.probe("readyz")[0] == 200:
            sensors.send(1, do="kill-process")
        return bool(collector.messages["dead/p"]) or node.exited

    node.start(wait=False)
    for _ in range(3):
        until(ended)
        node.wait()
        node.start(wait=False)
    until(ended)

    assert not node.exited
    assert collector.messages["dead/p"][0]["reason"] == "worker-crashed"


def test_a_kill_between_lists_or_an_orderly_stop_blames_no_frame(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None]
) -> None:
    node.configure()
    node.start()
    sensors.send(20)
    until(lambda: len(collector.ids()) == 20)
    node.kill()
    node.start()
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    node.start()

    assert '"node-crashed"' not in node.log


def test_a_pipeline_that_ends_the_node_while_it_is_built_is_isolated_and_fails_alone(
    node: Any, sensors: Any, collector: Any, until: Callable[..., None]
) -> None:
    node.configure()
    node.start()
    node.kill()
    config = json.loads(node.file.read_text())
    config["pipelines"]["q"] = {"subscribe": "other/#", "stages": ["dies-in-setup"]}
    node.file.write_text(json.dumps(config))
    sensors.send(3)
    node.start(wait=False)

    deaths = supervise(node, until, collector.ids)

    assert deaths == 3
    until(lambda: "worker-not-started" in node.probe("readyz")[1] or "q cannot run" in node.probe("readyz")[1])
    assert "dies-in-setup was set up" in node.probe("readyz")[1]
