"""Desired documents that change pipelines: unsigned within limits, and signed by an owner beyond them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from trial_site import Site, until

from hedgerow import configfile
from hedgerow.blobs.serve import BlobServer
from hedgerow.bus.connect import ClientOptions
from hedgerow.labels import parse_selector
from hedgerow.models.bundle.manifest import digest_of
from hedgerow.node.node import Node
from hedgerow.pipeline.pipelines_document import BadPipelines, collect_pipelines, read_pipelines
from hedgerow.testing.repository import TestRepository, make_repository
from hedgerow.topics import Channel
from hedgerow.trust.errors import NotAllowed
from hedgerow.wire.fleet import Desired, ModelRef, Reported


class Owner:
    """An owner who signs pipelines, and the region that has nodes run them."""

    def __init__(self, site: Site, models: TestRepository, folder: Path) -> None:
        self.site = site
        self.models = models
        self.folder = folder

    def publish(self, pipelines: dict[str, Any], version: str = "1.0.0", selector: str = "", **files: str) -> ModelRef:
        folder = self.folder / f"pipelines-{version}"
        folder.mkdir()
        (folder / "pipelines.yaml").write_text(json.dumps({"pipelines": pipelines}))
        for name, text in files.items():
            (folder / f"{name}.txt").write_text(text)
        document = collect_pipelines(folder, "doors", version)
        done = self.models.repository.publish_pipelines(
            "doors", version, document.encode(), self.models.owner, parse_selector(selector)
        )
        return ModelRef(name=done.name, version=done.version, digest=done.digest)

    async def desire(self, generation: int, state: str = "succeeded", **fields: Any) -> Reported:
        """Send a desired document, and wait until the node is done with it."""
        document = Desired.model_validate(
            {"node": str(self.site.address), "generation": generation, "at": time.time(), **fields}
        )
        topic = self.site.address.topic(Channel.DESIRED)
        await self.site.client.publish(topic, document.encode(), qos=1, retain=True)
        await until(
            lambda: self.reported.generation == generation and self.reported.state != "in-progress",
            lambda: f"generation {generation}: {self.reported}",
        )
        assert self.reported.state == state, self.reported
        return self.reported

    @property
    def reported(self) -> Reported:
        reports = self.site.published("reported")
        return Reported.model_validate(reports[-1].body) if reports else Reported(node="", session="", at=0)


@pytest.fixture
async def owner(own_site: Site, tmp_path: Path) -> AsyncIterator[Owner]:
    models = make_repository(tmp_path / "repository", ["door"], pipelines=["doors"])
    (tmp_path / "root.json").write_bytes(models.root)
    async with serving(own_site, models):
        yield Owner(own_site, models, tmp_path)


@contextlib.asynccontextmanager
async def serving(site: Site, models: TestRepository) -> AsyncIterator[None]:
    options = ClientOptions(url=f"mqtt://127.0.0.1:{site.port}")
    async with BlobServer(options, "test", models.repository.folder):
        yield


@contextlib.asynccontextmanager
async def fleet_node(owner: Owner, **remote: Any) -> AsyncIterator[Node]:
    site = owner.site
    site.write({"p": site.pipeline()}, fleet={"root_file": str(owner.folder / "root.json")}, remote=remote)
    file = site.folder / "node.yaml"
    node = Node(configfile.load(file), file)
    running = asyncio.create_task(node.run())
    try:
        await until(lambda: running.done() or (node.runners and all(r.connected for r in node.runners.values())))
        if running.done():
            await running
        yield node
    finally:
        node.stop()
        await running


def reads(site: Site, path: str = "labels.txt") -> dict[str, Any]:
    return site.pipeline({"reads-file": {"path": path}})


UNSIGNED: dict[str, tuple[Any, str]] = {
    "a new pipeline": ({"mine": {"subscribe": "#", "stages": ["trial"]}}, "unknown-pipeline"),
    "stages": ({"p": {"stages": [{"reads-file": {"path": "/etc/passwd"}}]}}, "not-adjustable"),
    "a subscription": ({"p": {"subscribe": "#"}}, "not-adjustable"),
    "a folder": ({"p": {"folder": "/etc"}}, "not-adjustable"),
    "what is published": ({"p": {"publish": {"qos": 0}}}, "not-adjustable"),
    "a batch out of limits": ({"p": {"batch": 5000}}, "out-of-limits"),
    "a pipeline that has to run": ({"p": None}, "must-keep-running"),
}


async def test_an_unsigned_document_changes_only_what_the_file_allows(owner: Owner) -> None:
    site = owner.site
    async with fleet_node(owner, keep_running=["p"]) as node:
        before = node.config
        for generation, (pipelines, code) in enumerate(UNSIGNED.values(), 1):
            reported = await owner.desire(generation, "rejected", pipelines=pipelines)
            assert reported.error is not None
            assert reported.error.code == code
            assert node.config is before
        assert len(site.events("desired-not-carried-out")) == len(UNSIGNED)
        allowed = {"p": {"batch": 3, "queue": {"max_frames": 9000}, "stages": {"trial": {"level": 0.7}}}}
        await owner.desire(99, pipelines=allowed)
        assert node.config.pipelines["p"].batch == 3
        assert node.config.pipelines["p"].stages[0].config == {"level": 0.7}
        await site.frame(1)
        await site.wait_results(1)


async def test_a_pipeline_that_a_document_stops_loses_no_frame(owner: Owner) -> None:
    """What comes meanwhile waits at the broker, as during a pause."""
    site = owner.site
    async with fleet_node(owner) as node:
        await owner.desire(1, pipelines={"p": None})
        assert node.runners == {}
        await site.frames(range(5))
        await owner.desire(2, pipelines={})
        await site.wait_results(5)


async def test_what_the_setting_allows_is_as_before(owner: Owner) -> None:
    async with fleet_node(owner, unsigned_pipelines=True, keep_running=["p"]) as node:
        await owner.desire(1, "rejected", pipelines={"p": None})
        await owner.desire(2, pipelines={"mine": owner.site.pipeline(), "p": {"receive_maximum": 9}})
        assert sorted(node.runners) == ["mine", "p"]
        assert node.config.pipelines["p"].receive_maximum == 9


async def test_a_file_that_no_longer_allows_a_change_ends_it(owner: Owner) -> None:
    """Nothing from outside keeps a node from its own file."""
    site = owner.site
    async with fleet_node(owner) as node:
        await owner.desire(1, pipelines={"p": {"batch": 3}})
        sections: dict[str, Any] = {"fleet": {"root_file": str(owner.folder / "root.json")}}
        assert (await site.reload({"other": site.pipeline()}, **sections))["ok"]
        assert list(node.runners) == ["other"]
        assert node._live_config.overlay == {}
        assert "no pipeline 'p'" in (await site.wait_event("overlay-refused"))["detail"]["error"]


async def test_signed_pipelines_run_with_their_files_also_without_the_region(owner: Owner) -> None:
    site = owner.site
    ref = owner.publish({"new": reads(site)}, labels="of the owner")
    async with fleet_node(owner, signed_pipelines=True) as node:
        reported = await owner.desire(1, signed_pipelines=ref)
        assert reported.signed_pipelines == ref
        assert sorted(node.runners) == ["new", "p"]
        await until(lambda: node.runners["new"].connected)
        await site.frame(1)
        assert (await site.wait_results(1, "new"))[0]["result"]["text"] == "of the owner"
        reply = await site.command("adjust", {"pipeline": "new", "batch": 1})
        assert reply["error"]["code"] == "not-adjustable", "it runs as it was signed"

    (owner.folder / "repository" / "metadata" / "timestamp.json").unlink()
    async with fleet_node(owner, signed_pipelines=True) as node:
        assert sorted(node.runners) == ["new", "p"]
        await owner.desire(2)
        assert sorted(node.runners) == ["p"]

    async with fleet_node(owner) as node:  # the file no longer allows them
        await owner.desire(3, "rejected", signed_pipelines=ref)
        assert owner.reported.error is not None
        assert owner.reported.error.code == "signed-pipelines-off"
        assert sorted(node.runners) == ["p"]


async def test_signed_pipelines_neither_replace_nor_end_what_must_keep_running(owner: Owner) -> None:
    site = owner.site
    replacing = owner.publish({"p": reads(site)}, "1.0.0", labels="x")
    new = owner.publish({"new": reads(site)}, "2.0.0", labels="x")
    other = owner.publish({"other": reads(site)}, "3.0.0", labels="x")
    async with fleet_node(owner, signed_pipelines=True, keep_running=["p", "new"]) as node:
        for generation, (ref, state) in enumerate(
            [(replacing, "rejected"), (new, "succeeded"), (other, "rejected"), (None, "rejected"), (new, "succeeded")],
            1,
        ):
            reported = await owner.desire(generation, state, **({} if ref is None else {"signed_pipelines": ref}))
            if state == "rejected":
                assert reported.error is not None
                assert reported.error.code == "must-keep-running"
        assert sorted(node.runners) == ["new", "p"]
        await site.frame(1)
        await site.wait_results(1)

    async with fleet_node(owner, signed_pipelines=True, signed_may_stop=True, keep_running=["p", "new"]) as node:
        await owner.desire(6, signed_pipelines=replacing)
        assert sorted(node.runners) == ["p"]
        assert node.config.pipelines["p"].folder is not None
    async with fleet_node(owner, signed_pipelines=True, keep_running=["p"]) as node:  # the file no longer allows it
        assert node.config.pipelines["p"].folder is None


async def test_signed_pipelines_change_with_their_files(owner: Owner) -> None:
    """The configuration is the same, but a file of it is another."""
    site = owner.site
    async with fleet_node(owner, signed_pipelines=True) as node:
        await owner.desire(1, signed_pipelines=owner.publish({"new": reads(site)}, "1.0.0", labels="one"))
        await owner.desire(2, signed_pipelines=owner.publish({"new": reads(site)}, "2.0.0", labels="two"))
        await until(lambda: node.runners["new"].connected)
        await site.frame(1)
        assert (await site.wait_results(1, "new"))[0]["result"]["text"] == "two"


@pytest.mark.parametrize("path", ["/etc/passwd", "../../desired.json", "missing.txt", "."])
async def test_signed_pipelines_read_no_file_but_their_own(owner: Owner, path: str) -> None:
    async with fleet_node(owner, signed_pipelines=True) as node:
        reported = await owner.desire(1, "failed", signed_pipelines=owner.publish({"new": reads(owner.site, path)}))
        assert reported.error is not None
        assert "is not a file of pipeline new" in reported.error.message
        assert sorted(node.runners) == ["p"]


async def test_pipelines_that_are_not_signed_for_this_node_are_refused(owner: Owner) -> None:
    site = owner.site
    elsewhere = owner.publish({"new": reads(site)}, "1.0.0", "site=elsewhere", labels="x")
    changed = owner.publish({"new": reads(site)}, "2.0.0", labels="x").model_copy(
        update={"digest": digest_of(b"something else")}
    )
    unknown = ModelRef(name="doors", version="9.9.9", digest=digest_of(b""))
    async with fleet_node(owner, signed_pipelines=True) as node:
        for generation, (ref, code) in enumerate(
            [(elsewhere, "not-for-this-node"), (changed, "wrong-digest"), (unknown, "unknown-target")], 1
        ):
            reported = await owner.desire(generation, "failed", signed_pipelines=ref)
            assert reported.error is not None
            assert reported.error.code == code
            assert sorted(node.runners) == ["p"]
        assert len(site.events("pipelines-not-trusted")) == 3


def test_whoever_may_sign_models_may_not_sign_pipelines(tmp_path: Path) -> None:
    models = make_repository(tmp_path / "repository", ["*"])
    (tmp_path / "doors").mkdir()
    (tmp_path / "doors/pipelines.yaml").write_text("pipelines: {p: {subscribe: a, stages: [trial]}}")
    document = collect_pipelines(tmp_path / "doors", "doors", "1.0.0")

    with pytest.raises(NotAllowed, match="doors has no owner yet") as caught:
        models.repository.publish_pipelines("doors", "1.0.0", document.encode(), models.owner)

    assert "--pipelines doors" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "canonical"),
        (b'{"name": "a"}', "canonical"),
        (b'{"files":{},"name":"a","pipelines":{"p":{"folder":"/","stages":["x"],"subscribe":"a"}},"version":"1.0.0"}', "folder"),
        (b'{"files":{"../x":""},"name":"a","pipelines":{"p":{"stages":["x"],"subscribe":"a"}},"version":"1.0.0"}', "inside"),
        (b'{"files":{"x":"?"},"name":"a","pipelines":{"p":{"stages":["x"],"subscribe":"a"}},"version":"1.0.0"}', "base64"),
        (b'{"files":{"x":"","x/y":""},"name":"a","pipelines":{"p":{"stages":["x"],"subscribe":"a"}},"version":"1.0.0"}', "both"),
        (b'{"files":{},"name":"a","pipelines":{"p":{"stages":[],"subscribe":"a"}},"version":"1.0.0"}', "stages"),
        (b'{"files":{},"name":"a","pipelines":{},"version":"1.0.0"}', "pipelines"),
    ],
)  # fmt: skip
def test_pipelines_that_are_not_valid_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(BadPipelines, match=message):
        read_pipelines(content)
