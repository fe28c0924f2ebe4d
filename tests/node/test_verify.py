"""What a node asks of trust before a version serves: the first time, and when it is to serve again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trust.conftest import World

from hedgerow.blobs.errors import RegionAway
from hedgerow.node.verify import Verifier
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


async def test_a_refusal_is_told_with_its_code_and_counted(world: World, verifier: Verifier, events: list[Any]) -> None:
    ref = world.publish(selector="site=hall-2")

    for _ in range(2):
        with pytest.raises(errors.NotForThisNode):
            await verifier.manifest(ref, {"site": "hall-3"})
    assert await verifier.manifest(ref, {"site": "hall-2"})

    assert [(kind, detail["code"]) for kind, detail in events] == [("model-not-trusted", "not-for-this-node")] * 2
    assert events[0][1]["remedy"]
    gauges = {(name, labels.get("code")): value for name, _, labels, value in verifier.gauges()}
    assert gauges["hedgerow_trust_refused", "not-for-this-node"] == 2
    assert gauges["hedgerow_trust_expires_seconds", None] == world.time.wall + 7 * DAY
    assert gauges["hedgerow_trust_root", None] == 1


async def test_a_version_that_lies_here_serves_again_though_nobody_can_be_asked(
    world: World, verifier: Verifier, events: list[Any]
) -> None:
    """Or only somebody whose word is too old: going back must not depend on the WAN."""
    ref = world.publish()
    world.time.passes(8 * DAY)
    with pytest.raises(errors.ExpiredMetadata):
        await verifier.manifest(ref, {})
    told = len(events)

    await verifier.again(ref, {})

    class Away:
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            raise RegionAway("nobody answers", remedy="wait")

    await Verifier(world.client("other", Away()), lambda *_: None).again(ref, {})
    assert len(events) == told == 1


async def test_what_was_withdrawn_does_not_serve_again(world: World, verifier: Verifier, events: list[Any]) -> None:
    ref = world.publish()
    await verifier.again(ref, {})
    key_ceremony.renew(world.repository, "doors", [world.owner_key], keep=lambda _: False)

    with pytest.raises(errors.UnknownTarget):
        await verifier.again(ref, {})
    assert [detail["code"] for _, detail in events] == ["unknown-target"]


async def test_a_clock_that_is_surely_behind_is_told_of_once(
    world: World, verifier: Verifier, events: list[Any]
) -> None:
    ref = world.publish()
    right = world.time.wall
    world.time.wall = 0.0
    for _ in range(3):
        await verifier.manifest(ref, {})
    world.time.wall = right
    await verifier.manifest(ref, {})
    world.time.wall = 0.0
    await verifier.manifest(ref, {})

    assert [kind for kind, _ in events] == ["trust-clock-behind", "trust-clock-behind"]
    assert events[0][1]["behind_s"] == pytest.approx(right, abs=1)
