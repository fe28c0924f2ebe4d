"""Attempts of a site's operator: may publish commands to the nodes of its site and read replies, nothing else.

Every attempt is refused with a code, counted, and told: in the reply, the node's log and as event `command-refused`. Nothing
else changes: the pipelines run on as configured, frames go through, and no answer has what is on the node's disk, in its
environment, or a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parents[1] / "node" / "plugins"))

from trial_site import Site, properties, until

from hedgerow import configfile
from hedgerow.errors import HedgerowError, published
from hedgerow.node.commands import MOST_RUNNING
from hedgerow.node.node import Node
from hedgerow.testing import Mosquitto

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD = "correct-horse-battery"
SECRET = "SECRET-of-a-file"
VARIABLE = "SECRET-of-the-environment"
LISTED = "payroll-2026.onnx"
SECRETS = (PASSWORD, SECRET, VARIABLE, LISTED)


class Plant:
    """A node at a site, and its operator."""

    def __init__(self, site: Site, node: Node) -> None:
        self.site = site
        self.node = node
        self.frames = 0
        self.checked = 0

    @property
    def told(self) -> int:
        """Refusals so far: logged and published, the repeated ones once a minute with their number."""
        return self.node._announcer.warned["command-refused", ""]

    async def refused(self, name: str, args: Any = None, code: str = "", **how: Any) -> dict[str, Any]:
        """Give a command; check that it is refused, counted and told, and that it has changed nothing."""
        told, counted = self.told, self.node._commands.counts["refused"]
        before = self.node.config
        reply = await self.site.command(name, args, **how)
        assert not reply["ok"], reply
        assert reply["error"]["code"] == code, reply
        assert reply["error"]["remedy"]
        assert self.node._commands.counts["refused"] > counted
        assert self.told > told
        assert self.node.config is before
        self.discreet(reply)
        await self.serves()
        return reply

    def discreet(self, *messages: Any) -> None:
        """Check that nothing that is secret was published, and that nothing is large."""
        new, self.checked = self.site.received[self.checked :], len(self.site.received)
        by_node = [message for message in new if "/command/" not in message.topic]
        published = [message.payload.decode("utf-8", "replace") for message in by_node]
        for text in (json.dumps(messages), *published):
            assert not [secret for secret in SECRETS if secret in text], text
            assert len(text) < 100_000

    async def serves(self) -> None:
        """Check that nothing is lost for others: each pipeline still takes a frame and gives its result."""
        self.frames += 1
        await self.site.frame(self.frames)
        for pipeline in ("p", "alarms", "ledger"):
            await until(lambda pipeline=pipeline: self.frames in self.site.numbers(pipeline), self.node.health)


def pipelines(site: Site) -> dict[str, Any]:
    return {
        "p": site.pipeline({"trial": {"level": 0.5}}, {"gate": {"path": str(site.folder)}}),
        "alarms": site.pipeline("trial"),
        "ledger": site.pipeline("trial", publish={"durable": True}),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plant(broker: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    (folder / "password").write_text(f"{PASSWORD}\n")
    (folder / "secret.key").write_text(f"# {SECRET}\n1 {SECRET}\n")
    for name in (LISTED, "empty.onnx"):
        (folder / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANT_TOKEN", VARIABLE)
        async with Site(broker.port, folder) as site, running(site) as node:
            yield Plant(site, node)


@contextlib.asynccontextmanager
async def running(site: Site) -> AsyncIterator[Node]:
    """Run the node that the attempts are made on; it has all that its own file may set for others."""
    path = site.folder / "node.yaml"
    write(site, pipelines(site))
    node = Node(configfile.load(path), path)
    run = asyncio.create_task(node.run())
    await until(lambda: run.done() or site.is_up(node), node._probes.why_unready)
    yield node
    node.stop()
    await run


REMOTE = {
    "commands": ["ping", "health", "info", "pause", "resume", "adjust", "reload", "release", "stop"],
    "keep_running": ["alarms"],
    "limits": {"batch": {"max": 32}, "queue.deadline_s": "fixed"},
    "thresholds": {"p": {"trial.level": {"min": 0.3, "max": 0.8}}, "alarms": {"*": "fixed"}},
}


def write(site: Site, pipelines: dict[str, Any], **sections: Any) -> None:
    broker = {"url": f"mqtt://127.0.0.1:{site.port}", "username": "node", "password_file": "password"}
    text = json.loads(site.yaml(pipelines, remote=REMOTE, **sections))
    (site.folder / "node.yaml").write_text(json.dumps({**text, "broker": broker}))


FILE = "/etc/passwd"
OWN = {"subscribe": "#", "stages": ["trial"]}
ATTEMPTS: dict[str, tuple[str, Any, str]] = {
    # Files, folders, models and code through a configuration of one's own
    "a configuration that reads a file as labels": (
        "reload",
        {"config": f"pipelines: {{p: {{subscribe: a, stages: [yolo: {{labels_file: {FILE}}}]}}}}"},
        "config-not-accepted",
    ),
    "a configuration that writes a folder": (
        "reload",
        {"config": "pipelines: {p: {subscribe: a, stages: [annotate: {folder: /tmp/x}]}}"},
        "config-not-accepted",
    ),
    "a configuration as a mapping": ("reload", {"config": {"pipelines": {}}}, "config-not-accepted"),
    "an empty configuration": ("reload", {"config": None}, "config-not-accepted"),
    "a huge configuration": ("reload", {"config": "x" * 900_000}, "config-not-accepted"),
    "another file": ("reload", {"path": FILE}, "unknown-argument"),
    "a file to read": ("health", {"file": FILE}, "unknown-argument"),
    "the environment": ("info", {"env": "PLANT_TOKEN"}, "unknown-argument"),
    "a new pipeline": ("adjust", {"pipeline": "mine", **OWN}, "unknown-pipeline"),
    "a pipeline whose name is a path": ("adjust", {"pipeline": f"../..{FILE}", "batch": 2}, "unknown-pipeline"),
    "a pipeline whose name is huge": ("pause", {"pipeline": "p" * 500_000}, "unknown-pipeline"),
    "a pipeline whose name is a list": ("pause", {"pipeline": ["p", "alarms"]}, "bad-argument"),
    "a path of a stage": ("adjust", {"pipeline": "p", "stages": {"gate": {"path": FILE}}}, "not-adjustable"),
    "a path of a stage, dotted": ("adjust", {"pipeline": "p", "stages.gate.path": FILE}, "not-adjustable"),
    "other stages": ("adjust", {"pipeline": "p", "stages": ["trial", {"annotate": {"folder": "/tmp/x"}}]}, "not-adjustable"),
    "another stage": ("adjust", {"pipeline": "p", "stages": {"infer": {"model": "x"}}}, "not-adjustable"),
    "no stages": ("adjust", {"pipeline": "p", "stages": None}, "not-adjustable"),
    "a text of a stage": ("adjust", {"pipeline": "p", "stages": {"trial": {"tag": "x"}}}, "not-adjustable"),
    "a stage that sleeps": ("adjust", {"pipeline": "p", "stages": {"trial": {"sleep_s": 3600}}}, "not-adjustable"),
    "another model": ("adjust", {"pipeline": "p", "models": {"m": {"path": FILE}}}, "not-adjustable"),
    "workers": ("adjust", {"pipeline": "p", "workers": 64}, "not-adjustable"),
    "a time limit": ("adjust", {"pipeline": "p", "stage_timeout_s": 1e-9}, "not-adjustable"),
    # Topics, egress, durability
    "all topics": ("adjust", {"pipeline": "p", "subscribe": "#"}, "not-adjustable"),
    "a lower QoS": ("adjust", {"pipeline": "p", "qos": 0}, "not-adjustable"),
    "fields that were kept back": ("adjust", {"pipeline": "p", "publish": {"fields": {"drop": []}}}, "not-adjustable"),
    "payloads in dead letters": ("adjust", {"pipeline": "p", "dead_letters.payload": True}, "not-adjustable"),
    "results that are not durable": ("adjust", {"pipeline": "ledger", "publish.durable": False}, "not-adjustable"),
    "an age for durable frames": ("adjust", {"pipeline": "ledger", "queue": {"max_age_s": 1}}, "not-adjustable"),
    "a rate for durable frames": ("adjust", {"pipeline": "ledger", "queue.max_rate_per_stream": 1}, "not-adjustable"),
    "a rate for what must run": ("adjust", {"pipeline": "alarms", "queue.max_rate_per_stream": 1}, "not-adjustable"),
    "a payload limit": ("adjust", {"pipeline": "p", "max_payload_bytes": 1}, "not-adjustable"),
    "a clock that drops all": ("adjust", {"pipeline": "p", "clock_tolerance_s": 1e-9}, "not-adjustable"),
    # Limits
    "a batch beyond the file's limit": ("adjust", {"pipeline": "p", "batch": 33}, "out-of-limits"),
    "no batch": ("adjust", {"pipeline": "p", "batch": 0}, "out-of-limits"),
    "a batch beyond all floats": ("adjust", {"pipeline": "p", "batch": 10**400}, "not-adjustable"),
    "a batch as text": ("adjust", {"pipeline": "p", "batch": "8"}, "not-adjustable"),
    "a batch that is true": ("adjust", {"pipeline": "p", "batch": True}, "not-adjustable"),
    "a batch and a half": ("adjust", {"pipeline": "p", "batch": 1.5}, "not-adjustable"),
    "no lane of its own": ("adjust", {"pipeline": "p", "lanes": 0}, "out-of-limits"),
    "a thousand lanes": ("adjust", {"pipeline": "p", "lanes": 1000}, "out-of-limits"),
    "a queue for no frame": ("adjust", {"pipeline": "p", "queue": {"max_bytes": 1024}}, "out-of-limits"),
    "a queue larger than the memory": ("adjust", {"pipeline": "p", "queue": {"max_bytes": 2**60}}, "out-of-limits"),
    "an age that drops all": ("adjust", {"pipeline": "p", "queue": {"max_age_s": 1e-9}}, "out-of-limits"),
    "a deadline that the file fixes": ("adjust", {"pipeline": "p", "queue": {"deadline_s": 1}}, "not-adjustable"),
    "a policy that does not exist": ("adjust", {"pipeline": "p", "queue": {"policy": "none"}}, "not-adjustable"),
    "a threshold below the file's limit": ("adjust", {"pipeline": "p", "stages": {"trial": {"level": 0.1}}}, "out-of-limits"),
    "a threshold above the file's limit": ("adjust", {"pipeline": "p", "stages.trial.level": 0.9}, "out-of-limits"),
    "a threshold that the file fixes": ("adjust", {"pipeline": "alarms", "stages": {"trial": {"level": 1}}}, "not-adjustable"),
    "a threshold above the stage's limit": ("adjust", {"pipeline": "ledger", "stages.trial.level": 1.1}, "not-adjustable"),
    "one good and one bad change": ("adjust", {"pipeline": "p", "batch": 4, "workers": 2}, "not-adjustable"),
    "thousands of changes": ("adjust", {"pipeline": "p", "queue": {f"k{n}": n for n in range(9000)}}, "not-adjustable"),
    "a section as a number": ("adjust", {"pipeline": "p", "queue": 5, "queue.max_frames": 9}, "not-adjustable"),
    # Stopping what must not stop
    "to pause what must run": ("pause", {"pipeline": "alarms"}, "must-keep-running"),
    "to pause all": ("pause", {}, "must-keep-running"),
    "to stop the node": ("stop", {}, "must-keep-running"),
    "to stop with a reason": ("stop", {"force": True}, "unknown-argument"),
    # Other commands
    "a raw frame": ("snapshot", {"pipeline": "p"}, "command-off"),
    "a command that is none": ("shell", {"run": "id"}, "unknown-command"),
    "a command that is a method": ("__init__", {}, "unknown-command"),
    "a version that is not in quarantine": ("release", {"digest": f"../..{FILE}"}, "unknown-digest"),
}  # fmt: skip


@pytest.mark.parametrize("attempt", ATTEMPTS)
async def test_an_operator_does_not_get(attempt: str, plant: Plant) -> None:
    name, args, code = ATTEMPTS[attempt]

    await plant.refused(name, args, code)


PAYLOADS: dict[str, tuple[str, bytes, str]] = {
    "not a number": ("adjust", b'{"args": {"pipeline": "p", "batch": NaN}}', "not-adjustable"),
    "infinity": ("adjust", b'{"args": {"pipeline": "ledger", "stages.trial.level": Infinity}}', "not-adjustable"),
    "a deep argument": (
        "adjust",
        b'{"args": {"queue": ' + b'{"a": ' * 9000 + b"1" + b"}" * 9001 + b"}",
        "malformed-command",
    ),
    "a deep list": ("ping", b"[" * 100_000, "malformed-command"),
    "another key twice": ("ping", b'{"args": {}, "node": "other"}', "malformed-command"),
    "bytes that are no text": ("ping", b"\xff\xfe\x00", "malformed-command"),
    "a megabyte too much": ("ping", bytes(2 << 20), "command-too-large"),
    "an old one": ("stop", b'{"expires_at": 1}', "command-expired"),
}


@pytest.mark.parametrize("attempt", PAYLOADS)
async def test_an_operator_does_not_get_through(attempt: str, plant: Plant) -> None:
    name, payload, code = PAYLOADS[attempt]

    await plant.refused(name, code=code, payload=payload)


async def test_a_command_to_every_node_is_refused_like_one_to_this(plant: Plant) -> None:
    await plant.refused("pause", code="must-keep-running", node="~")
    await plant.refused("reload", {"config": "x"}, "config-not-accepted", node="~")


async def test_a_flood_of_slow_commands_is_bounded(plant: Plant) -> None:
    """Each `reload` waits for the one before it; those beyond the limit are refused at once, and a `ping` too."""
    sent, counts = 4 * MOST_RUNNING, plant.node._commands.counts
    before = dict(counts)
    topic = f"hedgerow/v1/{plant.site.address}/command/reload"
    async with plant.node._live_config._changing:
        for _ in range(sent):
            await plant.site.client.publish(topic, b"", qos=1)
        await until(lambda: counts["refused"] == before["refused"] + sent - MOST_RUNNING)
        await plant.refused("ping", code="busy")
    await until(lambda: counts["done"] == before["done"] + MOST_RUNNING)
    await plant.serves()


async def test_the_same_command_twice_is_carried_out_once_when_late(plant: Plant) -> None:
    """Within the tolerance between clocks a copy cannot be told from a delayed command, but it is carried out once."""
    payload = json.dumps({"expires_at": time.time() - 1}).encode()
    how = properties(response_topic=plant.site.reply_topic, correlation=b"again", expiry_s=30)
    topic = f"hedgerow/v1/{plant.site.address}/command/ping"
    for _ in range(3):
        await plant.site.client.publish(topic, payload, qos=1, properties=how)
    await until(lambda: len(plant.site._replies(b"again")) == 3)

    codes = [reply.get("error", {}).get("code") for reply in plant.site._replies(b"again")]
    assert codes == [None, "command-repeated", "command-repeated"]


BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "labels that are not labels": ({"stages": [{"yolo": {"labels_file": "secret.key"}}]}, {}, "bad-labels"),
    "a model that is missing": (
        {"stages": [{"infer": {"model": "m"}}]},
        {"models": {"m": {"path": "payroll-2027.onnx"}}},
        "model-not-found",
    ),
    "a model that is empty": (
        {"stages": [{"infer": {"model": "m"}}]},
        {"models": {"m": {"path": "empty.onnx"}}},
        "model-unreadable",
    ),
    "a setting with a secret": ({"stages": [{"trial": {"level": SECRET}}]}, {}, "bad-stage-config"),
    "a section with a secret": ({"batch": SECRET}, {}, "bad-config-file"),
    "a key that is a secret": ({}, {"log": {"level": SECRET}}, "bad-config-file"),
    "a stage that quotes a file": ({"stages": ["trial-bad-setup"]}, {}, "bad-plugin"),
}


@pytest.mark.parametrize("mistake", BROKEN)
async def test_an_answer_does_not_quote_the_nodes_files(mistake: str, plant: Plant) -> None:
    """The file on the node has a mistake; the reply to `reload` and the event name the place, and the log has the rest."""
    change, sections, code = BROKEN[mistake]
    site = plant.site
    write(site, {**pipelines(site), "extra": site.pipeline("trial") | change}, **sections)
    try:
        await plant.refused("reload", code=code)
    finally:
        write(site, pipelines(site))


async def test_an_answer_does_not_quote_the_environment(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_BROKER__KEEPALIVE_S", VARIABLE)
    await plant.refused("reload", code="bad-config-file")
    monkeypatch.setenv("HEDGEROW_PIPELINES", f"{{{VARIABLE}")
    await plant.refused("reload", code="bad-config-file")


async def test_an_answer_does_not_quote_a_password_file(plant: Plant) -> None:
    """Neither its content nor its place, when the broker refuses it or it cannot be read."""
    file = plant.site.folder / "password"
    file.write_bytes(b"\xff" + SECRET.encode())
    try:
        await plant.refused("reload", code="bad-config")
    finally:
        file.write_text(f"{PASSWORD}\n")


async def test_an_answer_does_not_have_the_password(plant: Plant) -> None:
    assert plant.node._link.options.read_password() == PASSWORD
    error = HedgerowError(f"refused: {PASSWORD} at mqtt://node:{VARIABLE}@broker", remedy=f"not {PASSWORD}")
    assert PASSWORD not in "".join(published(error))
    assert VARIABLE not in "".join(published(error))


async def test_what_an_operator_may_do_still_works(plant: Plant) -> None:
    """Within the limits: changed, reported as an event, and taken back by a reload of the file."""
    site, node = plant.site, plant.node
    changes = {"batch": 8, "queue": {"max_age_s": 60, "max_rate_per_stream": 1000}, "stages": {"trial": {"level": 0.6}}}

    assert (await site.command("adjust", {"pipeline": "p", **changes}))["value"]["changed"] == ["p"]

    pipeline = node.config.pipelines["p"]
    assert (pipeline.batch, pipeline.queue.max_age_s, pipeline.stages[0].config["level"]) == (8, 60, 0.6)
    assert (await site.wait_event("adjusted"))["detail"]["changes"]["batch"] == 8
    await plant.serves()
    assert (await site.command("adjust", {"pipeline": "p", "batch": None}))["ok"]
    assert (node.config.pipelines["p"].batch, node.config.pipelines["p"].queue.max_age_s) == (64, 60)
    assert (await site.command("reload"))["value"]["changed"] == ["p"]
    assert node.config.pipelines["p"] == node._live_config.file.pipelines["p"]
    for name in ("pause", "resume"):
        assert (await site.command(name, {"pipeline": "p"}))["ok"]
    await plant.serves()
    plant.discreet(await site.command("info"), await site.command("health"))
