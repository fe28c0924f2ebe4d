"""A node that applies desired documents: real signatures, a real broker, real models, with frames flowing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from securesystemslib.signer import CryptoSigner
from tests.blobs.servers import PASSWORD, USER, Authority, FolderServer, basic
from trial_site import Site, until
from tuf.api.metadata import Metadata

from hedgerow.blobs.serve import BlobServer
from hedgerow.bus.connect import ClientOptions
from hedgerow.labels import parse_selector
from hedgerow.models.bundle.manifest import MANIFEST
from hedgerow.models.bundle.version import ModelVersion
from hedgerow.node.node import Node
from hedgerow.testing.repository import TestRepository, make_repository
from hedgerow.topics import Channel
from hedgerow.trust import key_ceremony
from hedgerow.trust.repository import Repository
from hedgerow.wire.fleet import Desired, ModelRef, Reported

MakeVersion = Callable[..., ModelVersion]

TWICE = "(float[N,3] x) => (float[N,3] y) { y = Add(x, x) }"
TWICE_AGAIN = "(float[N,3] x) => (float[N,3] y) <float two = {2.0}> { y = Mul(x, two) }"
THRICE = "(float[N,3] x) => (float[N,3] y) <float three = {3.0}> { y = Mul(x, three) }"
QUICK = {"probation_s": 0.2, "min_frames": 5, "max_slowdown": 1000.0, "timeout_s": 60.0}


@dataclass
class Region:
    """The region: a repository with keys, and desired documents."""

    site: Site
    models: TestRepository
    root: Path

    @property
    def repository(self) -> Repository:
        return self.models.repository

    def publish(self, candidate: ModelVersion, selector: str = "") -> ModelRef:
        self.repository.publish(candidate, self.models.owner, parse_selector(selector))
        return candidate.ref

    async def desire(self, generation: int, **fields: Any) -> None:
        document = Desired.model_validate(
            {"node": str(self.site.address), "generation": generation, "at": time.time(), "swap": QUICK, **fields}
        )
        topic = self.site.address.topic(Channel.DESIRED)
        await self.site.client.publish(topic, document.encode(), qos=1, retain=True)

    @property
    def reported(self) -> Reported:
        reports = self.site.published("reported")
        return Reported.model_validate(reports[-1].body) if reports else Reported(node="", session="", at=0)

    async def serve(self, ref: ModelRef) -> None:
        """Make the node serve a version; the swap waits for no frames."""
        await self.desire(1, models={"door": ref}, swap={**QUICK, "min_frames": 0})
        await self.wait_done(1)
        await self.wait_serving(ref)

    async def wait_done(self, generation: int, state: str = "succeeded") -> Reported:
        await until(
            lambda: self.reported.generation == generation and self.reported.state != "in-progress",
            lambda: f"generation {generation}: {self.reported}",
        )
        assert self.reported.state == state, self.reported
        return self.reported

    async def wait_serving(self, ref: ModelRef) -> Reported:
        """Wait until the node reports that a version serves: a pipeline that waits for it starts first."""
        await until(
            lambda: (model := self.reported.models.get("door")) is not None and model.model == ref,
            lambda: f"{ref}: {self.reported}",
        )
        return self.reported


@pytest.fixture
async def region(own_site: Site, tmp_path: Path) -> AsyncIterator[Region]:
    models = make_repository(tmp_path / "repository", ["door"])
    root = tmp_path / "root.json"
    root.write_bytes(models.root)
    options = ClientOptions(url=f"mqtt://127.0.0.1:{own_site.port}")
    async with BlobServer(options, "test", models.repository.folder):
        yield Region(own_site, models, root)


@pytest.fixture
def good(region: Region, make_version: MakeVersion) -> ModelRef:
    """Version 1.0.0, published."""
    return region.publish(make_version(TWICE, "1.0.0"))


@contextlib.asynccontextmanager
async def fleet_node(region: Region, path: str = "bundle:door", **sections: Any) -> AsyncIterator[Node]:
    """Run a node with the root of trust, and one pipeline that uses the model and may still wait for it."""
    from hedgerow import configfile

    site = region.site
    pipeline = {
        "subscribe": f"{site.name}/in/+",
        "stages": [{"parse": {"format": "raw"}}, {"infer": {"model": "door"}}],
    }
    file = site.folder / "node.yaml"
    text = site.yaml(
        {"p": pipeline},
        models={"door": {"path": path}},
        fleet={"root_file": str(region.root), **sections.pop("fleet", {})},
        **sections,
    )
    file.write_text(text)
    node = Node(configfile.load(file), file)
    running = asyncio.create_task(node.run())
    try:
        await until(lambda: running.done() or region.site.published("reported"), lambda: "the first report")
        if running.done():
            await running
        yield node
    finally:
        node.stop()
        await running


@contextlib.asynccontextmanager
async def frames(site: Site) -> AsyncIterator[list[int]]:
    """Publish frames while the body runs; yields the number published."""
    sent, stop = [0], asyncio.Event()

    async def send() -> None:
        while not stop.is_set():
            await site.client.publish(site.topic(), np.full(3, 0.5, np.float32).tobytes(), qos=1)
            sent[0] += 1
            await asyncio.sleep(0.005)

    sending = asyncio.create_task(send())
    try:
        yield sent
    finally:
        stop.set()  # not cancelled: a frame could be published and not counted
        await sending


def takes_frames(node: Node) -> bool:
    """Return whether the pipeline runs and has subscribed; earlier frames would be lost."""
    return "p" in node.runners and not node._probes.why_unready()


def versions(site: Site) -> list[str | None]:
    return [body["lineage"]["models"][0].get("version") for body in site.results()]


async def test_a_version_is_fetched_verified_and_served_and_then_replaced_by_the_next(
    region: Region, make_version: MakeVersion
) -> None:
    """The pipeline waits for its first version; the swap to the second loses and duplicates no frame."""
    site = region.site
    one = region.publish(make_version(TWICE, "1.0.0"))
    two = region.publish(make_version(TWICE_AGAIN, "2.0.0"))
    async with fleet_node(region) as node:
        assert node.health().pipelines["p"].state == "loading"
        await region.desire(1, models={"door": one})
        await until(lambda: takes_frames(node), lambda: str(region.reported))
        async with frames(site) as sent:
            await region.wait_done(1)
            await region.wait_serving(one)
            await region.desire(2, models={"door": two})
            second = await region.wait_done(2)
            await until(lambda: versions(site)[-1:] == ["2.0.0"], lambda: str(versions(site)[-3:]))
        await site.wait_results(sent[0])

        assert (second.models["door"].model, second.models["door"].previous) == (two, one)
        assert second.models["door"].file_digest == signed_digest(two, region)
        ids = [body["id"] for body in site.results()]
        assert len(ids) == len(set(ids)) == sent[0]
        numbers = [body["frame"]["sequence"] for body in site.results()]
        assert numbers == sorted(numbers)
        assert set(versions(site)) == {"1.0.0", "2.0.0"}
        assert versions(site) == sorted(versions(site), key=str)


async def test_a_withdrawn_model_is_kept_while_a_pipeline_needs_it_and_then_unloaded(
    region: Region, good: ModelRef
) -> None:
    async with fleet_node(region) as node:
        await region.serve(good)
        await region.desire(2, withdrawn=["door"])
        refused = await region.wait_done(2, "rejected")
        assert refused.error is not None
        assert (refused.error.code, "p needs it" in refused.error.message) == ("model-needed", True)
        assert refused.models["door"].model == good
        await region.desire(3, withdrawn=["door"], pipelines={"p": None})
        await region.wait_done(3)
        assert not region.reported.models
        assert not node._pool.assigned()
    async with fleet_node(region) as node:  # nor does it come back with the next run
        await region.wait_done(3)
        assert not node._pool.assigned()


def signed_digest(ref: ModelRef, region: Region) -> str:
    """Return the file's digest from the signed manifest."""
    folder = region.repository.folder / "targets" / ref.name / ref.version
    (manifest,) = folder.glob(f"*{MANIFEST}")
    return str(orjson.loads(manifest.read_bytes())["variants"][0]["model_digest"])


async def test_a_version_that_fails_its_golden_cases_is_refused_and_the_old_one_keeps_serving(
    region: Region, good: ModelRef, make_version: MakeVersion
) -> None:
    site = region.site
    bad = region.publish(make_version(THRICE, "2.0.0", golden_body=TWICE))
    async with fleet_node(region):
        await region.serve(good)
        async with frames(site):
            await region.desire(2, models={"door": bad})
            report = await region.wait_done(2, "failed")

        assert report.error is not None
        assert report.error.code == "golden-failed"
        assert report.models["door"].model == good
        assert set(versions(site)) <= {"1.0.0"}


async def test_a_version_not_signed_for_this_node_is_refused_with_the_reason(
    region: Region, good: ModelRef, make_version: MakeVersion
) -> None:
    other_site = region.publish(make_version(TWICE_AGAIN, "2.0.0"), "site=another")
    unsigned = make_version(THRICE, "3.0.0").ref
    async with fleet_node(region):
        for generation, ref, code in (
            (1, other_site, "not-for-this-node"),
            (2, unsigned, "unknown-target"),
            (3, good.model_copy(update={"digest": f"sha256:{0:064x}"}), "wrong-digest"),
        ):
            await region.desire(generation, models={"door": ref})
            report = await region.wait_done(generation, "failed")
            assert report.error is not None
            assert report.error.code == code
            assert report.error.remedy
            detail = region.site.events("model-not-trusted")[-1]["detail"]
            assert (detail["code"], detail["version"], detail["digest"]) == (code, str(ref), ref.digest)
            assert detail["remedy"]


async def test_a_version_signed_just_after_it_was_requested_is_found(region: Region, make_version: MakeVersion) -> None:
    """The site caches metadata for seconds, so it may be older than the signature."""
    candidate = make_version(TWICE, "1.0.0")
    async with fleet_node(region):
        await region.desire(1, models={"door": candidate.ref})
        report = await region.wait_done(1, "failed")
        assert report.error is not None
        assert report.error.code == "unknown-target"
        region.publish(candidate)
        await region.desire(2, models={"door": candidate.ref})
        await region.wait_done(2)


async def test_the_old_version_keeps_serving_while_the_repository_is_attacked(
    region: Region, make_version: MakeVersion
) -> None:
    """Each attack has its own code in an event and in the report, and no other effect."""
    good = region.publish(make_version(TWICE, "1.0.0"))
    timestamp = region.repository.metadata / "timestamp.json"
    old = timestamp.read_bytes()
    new = region.publish(make_version(TWICE_AGAIN, "2.0.0"))
    honest = timestamp.read_bytes()
    swap = {**QUICK, "min_frames": 0}
    async with fleet_node(region) as node:
        await region.desire(1, models={"door": good}, swap=swap)
        await region.wait_done(1)
        await region.wait_serving(good)
        for generation, content, code in (
            (2, _signed(honest, CryptoSigner.generate_ed25519()), "unknown-signing-key"),
            (3, old[: len(old) // 2], "truncated-data"),
            (4, honest.replace(b'"spec_version"', b'"spec-version"'), "bad-metadata"),
        ):
            assert node._fleet is not None
            node._fleet._fetcher.documents.forget()  # as if some seconds had passed
            await asyncio.sleep(1.1)  # a request repeated within a second is not sent
            timestamp.write_bytes(content)
            await region.desire(generation, models={"door": new}, swap=swap)
            report = await region.wait_done(generation, "failed")
            assert report.error is not None
            assert report.error.code == code
            assert region.site.events("model-not-trusted")[-1]["detail"]["code"] == code
            assert report.models["door"].model == good
        await asyncio.sleep(1.1)  # as above
        timestamp.write_bytes(honest)
        await region.desire(5, models={"door": new}, swap=swap)
        await region.wait_done(5)
        await region.wait_serving(new)


def _signed(content: bytes, key: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata.from_bytes(content)
    metadata.sign(key)
    return metadata.to_bytes()


async def test_a_withdrawn_version_does_not_serve_again_although_it_is_installed(
    region: Region, make_version: MakeVersion
) -> None:
    """A rollback needs no network, but a version withdrawn by the newest metadata is refused."""
    old, new = region.publish(make_version(TWICE, "1.0.0")), region.publish(make_version(TWICE_AGAIN, "2.0.0"))
    swap = {**QUICK, "min_frames": 0}
    async with fleet_node(region) as node:
        for generation, ref in ((1, old), (2, new)):
            await region.desire(generation, models={"door": ref}, swap=swap)
            await region.wait_done(generation)
            await region.wait_serving(ref)
        key_ceremony.renew(region.repository, "owner", [region.models.owner], keep=lambda path: "1.0.0" not in path)
        assert node._fleet is not None
        node._fleet._fetcher.documents.forget()
        await asyncio.sleep(1.1)  # a request repeated within a second is not sent
        await region.desire(3, models={"door": old}, swap=swap)
        report = await region.wait_done(3, "failed")

        assert report.error is not None
        assert report.error.code == "unknown-target"
        assert report.models["door"].model == new


async def test_a_version_released_from_quarantine_is_retried(region: Region, make_version: MakeVersion) -> None:
    """A release retries the current document; the region need not send it again."""
    candidate = make_version(TWICE, "1.0.0")
    ref = region.publish(candidate)
    async with fleet_node(region) as node:
        node.swaps._quarantine.start_trial(candidate, "switch")
        node.swaps._quarantine.end_trial(candidate, passed=False, crashed="the power failed three times")
        await region.desire(1, models={"door": ref}, swap={**QUICK, "min_frames": 0})
        report = await region.wait_done(1, "rejected")
        assert report.error is not None
        assert report.error.code == "quarantined"
        assert f"{region.site.address} release digest={ref.digest}" in report.error.remedy

        stranger = await region.site.command("release", {"digest": f"sha256:{0:064x}"})
        reply = await region.site.command("release", {"digest": ref.digest})
        await region.wait_serving(ref)

        assert stranger["error"]["code"] == "unknown-digest"
        assert reply["value"]["reason"] == "the power failed three times"
        assert region.site.events("model-released")
        assert region.reported.quarantined == []


async def test_a_node_that_starts_without_a_region_serves_its_kept_version(
    own_site: Site, region: Region, good: ModelRef
) -> None:
    """There is neither a document nor a repository; the verified version is on disk."""
    async with fleet_node(region):
        await region.serve(good)
    await own_site.client.publish(own_site.address.topic(Channel.DESIRED), b"", qos=1, retain=True)
    for part in ("metadata", "blobs", "targets"):
        (region.repository.folder / part).rename(region.repository.folder / f"{part}.away")
    own_site.received.clear()
    async with fleet_node(region) as node:
        await until(lambda: takes_frames(node))
        await own_site.client.publish(own_site.topic(), np.full(3, 0.5, np.float32).tobytes(), qos=1)
        (result,) = await own_site.wait_results(1)

        assert result["result"]["y"] == [[1.0, 1.0, 1.0]]
        await region.wait_serving(good)


async def test_a_node_fetches_from_a_web_server(region: Region, good: ModelRef, tmp_path: Path) -> None:
    """The region has metadata but no chunks; the server requires credentials. Paths are relative to the node's file."""
    copy = tmp_path / "copy"
    shutil.copytree(region.repository.folder, copy)
    for part in ("blobs", "targets"):
        (region.repository.folder / part).rename(tmp_path / f"{part}.away")
    authority = Authority(region.site.folder)
    (region.site.folder / "secret").write_text(f"{USER}:{PASSWORD}\n")
    with FolderServer(copy, authority) as server:
        server.authorization = basic(USER, PASSWORD)
        origin = {"url": server.url, "ca_file": authority.file.name, "credentials_file": "secret"}
        async with fleet_node(region, fleet={"origins": [origin]}):
            await region.serve(good)

    assert server.sent > 0
    assert region.site.events("source-left-alone") == []


async def test_a_version_damaged_on_disk_does_not_serve_and_is_fetched_again(
    own_site: Site, region: Region, good: ModelRef
) -> None:
    """After a restart, too, only files that match their signed digest serve."""
    async with fleet_node(region):
        await region.serve(good)
    (file,) = (own_site.folder / "state" / "fleet" / "store").rglob("model.onnx")
    content = file.read_bytes()
    file.write_bytes(content.replace(b"Add", b"Sub"))
    own_site.received.clear()
    async with fleet_node(region) as node:
        event = await own_site.wait_event("model-not-restored")
        await until(lambda: takes_frames(node), lambda: str(region.reported))
        await own_site.client.publish(own_site.topic(), np.full(3, 0.5, np.float32).tobytes(), qos=1)
        (result,) = await own_site.wait_results(1)

    assert "is sha256:" in event["detail"]["error"]
    assert result["result"]["y"] == [[1.0, 1.0, 1.0]]
    assert file.read_bytes() == content


async def test_a_newer_document_cancels_the_swap_in_progress_and_the_previous_version_serves(
    region: Region, make_version: MakeVersion
) -> None:
    """The newer one desires the version that the swap rolls back to, so there is nothing left to do."""
    site = region.site
    one = region.publish(make_version(TWICE, "1.0.0"))
    two = region.publish(make_version(TWICE_AGAIN, "2.0.0"))
    async with fleet_node(region) as node:
        await region.desire(1, models={"door": one}, swap={**QUICK, "min_frames": 0})
        await region.wait_done(1)
        await until(lambda: takes_frames(node), lambda: str(region.reported))
        async with frames(site) as sent:
            await region.desire(2, models={"door": two}, swap={**QUICK, "probation_s": 3600})
            await until(lambda: "2.0.0" in versions(site), lambda: str(region.reported))
            await until(lambda: region.reported.step == "probation door", lambda: str(region.reported))
            await region.desire(3, models={"door": one})
            third = await region.wait_done(3)
            await until(lambda: versions(site)[-1] == "1.0.0")  # a frame has been processed since
        await site.wait_results(sent[0])

    assert (third.models["door"].model, third.models["door"].stage, third.rolled_back) == (one, "kept", [])
    assert (versions(site)[0], versions(site)[-1]) == ("1.0.0", "1.0.0")
    numbers = [body["frame"]["sequence"] for body in site.results()]
    assert numbers == list(range(sent[0]))
    assert not site.dead_letters()


async def test_older_generations_and_documents_for_other_nodes_are_refused(region: Region, good: ModelRef) -> None:
    async with fleet_node(region):
        await region.desire(5, models={"door": good}, labels={"ring": "late"}, swap={**QUICK, "min_frames": 0})
        await region.wait_done(5)
        await region.wait_serving(good)
        await region.desire(4)
        await region.desire(6, node="test/elsewhere/node")
        refusal = await region.site.wait_event("desired-refused")
        await until(lambda: len(region.site.events("desired-refused")) == 2)

        assert refusal["detail"]["reason"] == "old-generation"
        assert region.reported.generation == 5
        assert "ring" not in region.reported.labels, "the region's labels select nodes, and are not the node's"
        assert region.reported.models["door"].model == good


async def test_the_region_changes_and_removes_a_pipeline(region: Region, good: ModelRef) -> None:
    swap = {**QUICK, "min_frames": 0}
    async with fleet_node(region) as node:
        await region.desire(1, models={"door": good}, pipelines={"p": {"batch": 7}}, swap=swap)
        await region.wait_done(1)
        assert node.config.pipelines["p"].batch == 7
        await region.desire(2, models={"door": good}, pipelines={"p": {"batch": "many"}}, swap=swap)
        report = await region.wait_done(2, "rejected")
        assert report.error is not None
        assert "batch" in report.error.message
        assert node.config.pipelines["p"].batch == 7
        await region.desire(3, models={"door": good}, pipelines={"p": None}, swap=swap)
        await region.wait_done(3)
        assert not node.runners
        await region.desire(4, models={"door": good}, swap=swap)
        await region.wait_done(4)
        await until(lambda: "p" in node.runners)
        assert node.config.pipelines["p"].batch != 7
