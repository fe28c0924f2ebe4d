"""Verifying versions: new ones, and installed ones that are to serve again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trust.conftest import World

from hedgerow import backends, tasks
from hedgerow.blobs.errors import RegionUnavailable
from hedgerow.errors import DeviceMissing
from hedgerow.node.fleet.verify import Verifier
from hedgerow.trust import errors, key_ceremony

DAY = 86_400.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def verifier(world: World, events: list[Any]) -> Verifier:
    return Verifier(world.node, lambda kind, detail: events.append((kind, detail)))


async def test_a_refusal_is_published_and_counted_by_its_code(
    world: World, verifier: Verifier, events: list[Any]
) -> None:
    ref = world.publish(selector="site=hall-2")

    for _ in range(2):
        with pytest.raises(errors.NotForThisNode):
            await verifier.verify(ref, {"site": "hall-3"})
    assert await verifier.verify(ref, {"site": "hall-2"})

    assert [(kind, detail["code"]) for kind, detail in events] == [("model-not-trusted", "not-for-this-node")] * 2
    assert events[0][1]["remedy"]
    gauges = {(name, labels.get("code")): value for name, _, labels, value in verifier.gauges()}
    assert gauges["hedgerow_trust_refused", "not-for-this-node"] == 2
    assert gauges["hedgerow_trust_expires_seconds", None] == world.time.wall + 7 * DAY
    assert gauges["hedgerow_trust_root", None] == 1


async def test_an_installed_version_serves_again_without_metadata(
    world: World, verifier: Verifier, events: list[Any]
) -> None:
    """Metadata may be expired or unavailable: a rollback must not depend on the WAN."""
    ref = world.publish()
    world.time.advance(8 * DAY)
    with pytest.raises(errors.ExpiredMetadata):
        await verifier.verify(ref, {})
    count = len(events)

    await verifier.verify_again(ref, {})

    class Unreachable:
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            raise RegionUnavailable("no reply", remedy="wait")

    await Verifier(world.client("other", Unreachable()), lambda *_: None).verify_again(ref, {})
    assert len(events) == count == 1


async def test_verifications_that_were_cancelled_hold_up_nothing_else(world: World) -> None:
    """A region that does not answer keeps each of them waiting; there are more than the event loop's pool has threads."""
    asked, answer = threading.Event(), threading.Event()

    class Silent:
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            asked.set()
            answer.wait()
            raise RegionUnavailable("no reply", remedy="wait")

    verifier = Verifier(world.client("other", Silent()), lambda *_: None)
    ref = world.publish()
    work = [asyncio.create_task(verifier.verify(ref, {})) for _ in range(64)]
    try:
        async with asyncio.timeout(60):
            await asyncio.to_thread(asked.wait)
            await tasks.cancel(*work)
            assert await asyncio.to_thread(int, "3") == 3
    finally:
        answer.set()
        verifier.close()


async def test_a_withdrawn_version_does_not_serve_again(world: World, verifier: Verifier, events: list[Any]) -> None:
    ref = world.publish()
    await verifier.verify_again(ref, {})
    key_ceremony.renew(world.repository, "doors", [world.owner_key], keep=lambda _: False)

    with pytest.raises(errors.UnknownTarget):
        await verifier.verify_again(ref, {})
    assert [detail["code"] for _, detail in events] == ["unknown-target"]


async def test_a_clock_certainly_behind_is_reported_once(world: World, verifier: Verifier, events: list[Any]) -> None:
    ref = world.publish()
    right = world.time.wall
    world.time.wall = 0.0
    for _ in range(3):
        await verifier.verify(ref, {})
    world.time.wall = right
    await verifier.verify(ref, {})
    world.time.wall = 0.0
    await verifier.verify(ref, {})

    assert [kind for kind, _ in events] == ["trust-clock-behind", "trust-clock-behind"]
    assert events[0][1]["behind_s"] == pytest.approx(right, abs=1)


async def test_verifying_takes_one_thread_hop_and_events_are_raised_on_the_event_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata, manifest and drivers all block; they share one hop."""
    raised, hops, threads = [], [], []
    loop, devices = asyncio.get_running_loop(), backends.LocalDevices
    run_in_executor = loop.run_in_executor

    def counted(executor: Any, work: Callable[..., Any], *args: Any) -> Any:
        hops.append(work)
        return run_in_executor(executor, work, *args)

    def here() -> backends.LocalDevices:
        threads.append(threading.current_thread())
        return devices()

    monkeypatch.setattr(loop, "run_in_executor", counted)
    monkeypatch.setattr(backends, "LocalDevices", here)
    verifier = Verifier(world.node, lambda kind, _: raised.append((kind, threading.current_thread())))
    ref, other = world.publish(), world.publish(version="2.0.0", selector="site=hall-2")
    world.time.wall = 0.0

    version = await verifier.verify(ref, {})
    with pytest.raises(errors.NotForThisNode):
        await verifier.verify(other, {})

    assert [file.path for file in version.files] == ["variants/onnx/model.onnx"]
    assert len(hops) == 2
    assert threads
    assert threading.main_thread() not in threads
    assert raised == [(kind, threading.main_thread()) for kind in ("trust-clock-behind", "model-not-trusted")]


async def test_a_trusted_version_that_cannot_run_here_is_refused(
    world: World, verifier: Verifier, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "LocalDevices", dict)
    with pytest.raises(DeviceMissing):
        await verifier.verify(world.publish(), {})

    assert events == []
    assert {name for name, *_ in verifier.gauges()} == {"hedgerow_trust_expires_seconds", "hedgerow_trust_root"}
