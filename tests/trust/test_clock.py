"""Checking expiry with a machine clock that is unset, behind, ahead, jumping, or outside the calendar."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tuf.api.metadata import Metadata

from hedgerow.trust import errors, key_ceremony
from hedgerow.trust.roles import SIGNED_AT

World = Any
DAY = 86_400.0


def restart(world: World, name: str = "node", *, wall: float) -> Any:
    """Restart the node with a given clock and its stored state."""
    world.time.wall, world.time.passed = wall, 0.0
    return world.client(name)


def sign_at(world: World, at: float) -> None:
    """Let the region sign by its own, correct clock."""
    node_time, world.time.wall = world.time.wall, at
    world.repository.refresh_timestamp()
    world.time.wall = node_time


def test_a_new_node_with_an_unset_clock_accepts_valid_metadata_and_reports_the_error(world: World) -> None:
    """A gateway without a clock battery starts in 1970; signing times give a lower bound of the time."""
    began = world.time.wall
    ref = world.publish()

    node = restart(world, "new", wall=0.0)

    fresh = node.refresh()
    assert fresh.clock_behind_s == pytest.approx(began, abs=1)
    assert node.manifest(ref, {})


def test_a_clock_set_back_does_not_make_old_metadata_fresh(world: World) -> None:
    """An attacker replays last month's repository after a power cut: it is older than the stored state."""
    began = world.time.wall
    world.publish()
    stale = {path.name: path.read_bytes() for path in world.repository.metadata.iterdir()}
    sign_at(world, began + 30 * DAY)
    world.time.wall = began + 30 * DAY
    world.node.refresh()

    node = restart(world, wall=began)
    world.between.tamper = lambda path, data: stale.get(path.removeprefix("metadata/"), data)

    with pytest.raises(errors.RollbackAttack):
        node.refresh()


def test_metadata_expires_although_the_clock_is_not_set(world: World) -> None:
    """Elapsed time counts, although the date is unknown."""
    ref = world.publish()
    world.node.refresh()
    node = restart(world, wall=0.0)
    assert node.refresh().clock_behind_s

    world.time.advance(6.9 * DAY)
    assert node.manifest(ref, {})
    world.time.advance(0.2 * DAY)
    with pytest.raises(errors.ExpiredMetadata):
        node.refresh()


def test_the_last_signing_time_is_the_lower_bound_of_the_time(world: World) -> None:
    """Owner metadata that expired before the region's last signature is refused, although the clock is earlier."""
    began = world.time.wall
    ref = world.publish()
    world.time.advance(364 * DAY)
    key_ceremony.renew(world.repository, "targets", [world.targets_key])
    sign_at(world, began + 366 * DAY)

    with pytest.raises(errors.ExpiredMetadata, match="doors expired on"):
        restart(world, wall=began).manifest(ref, {})


def test_a_clock_set_while_the_node_runs_is_used_from_then_on(world: World) -> None:
    began = world.time.wall
    world.publish()
    node = restart(world, wall=0.0)
    assert node.refresh().clock_behind_s

    world.time.wall = began + 3 * DAY
    assert node.refresh().clock_behind_s is None
    world.time.wall = began + 8 * DAY
    with pytest.raises(errors.ExpiredMetadata):
        node.refresh()


def test_a_clock_ahead_causes_refusals_only_while_it_is_ahead(world: World) -> None:
    """The reading is not stored, so a node is not locked out permanently."""
    began = world.time.wall
    ref = world.publish()
    node = restart(world, wall=began + 40 * DAY)
    with pytest.raises(errors.ExpiredMetadata) as refused:
        node.refresh()
    assert "clock" in refused.value.remedy

    world.time.wall = began
    assert node.manifest(ref, {})
    assert restart(world, wall=began).manifest(ref, {})


def test_setting_the_clock_back_does_not_delay_expiry(world: World) -> None:
    began = world.time.wall
    world.publish()
    world.node.refresh()
    world.time.advance(7.1 * DAY)
    world.time.wall = began

    with pytest.raises(errors.ExpiredMetadata):
        world.node.refresh()


def test_a_new_online_key_repairs_a_region_with_a_wrong_clock(world: World) -> None:
    """Its signing times are years ahead, and accepted until the root replaces the key."""
    ref = world.publish()
    signed = world.read("timestamp")
    signed.signed.version += 1
    signed.signed.unrecognized_fields[SIGNED_AT] += int(900 * DAY)
    signed.signatures.clear()
    signed.sign(world.online_key)
    (world.repository.metadata / "timestamp.json").write_bytes(signed.to_bytes())
    with pytest.raises(errors.ExpiredMetadata):
        world.node.refresh()

    world.replace_online_key()
    assert world.node.manifest(ref, {})


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wall=st.floats(-1e12, 1e18), passed=st.floats(0, 1e9))
def test_any_clock_gives_a_result_or_a_refusal(world: World, wall: float, passed: float) -> None:
    """Metadata is accepted or refused as expired; no clock causes anything else."""
    if world.read("timestamp").signed.version < 3:
        world.publish()
    world.time.wall, world.time.passed = wall, passed
    node = world.client("anytime")

    if wall > world.time_began + 7 * DAY:
        with pytest.raises(errors.ExpiredMetadata):
            node.refresh()
    else:
        assert (node.refresh().clock_behind_s is not None) == (wall < world.time_began - 60)


@pytest.mark.parametrize("value", [10**30, -(10**30), 2**53, True, "noon", None, []])
def test_an_invalid_signing_time_is_ignored(world: World, value: Any) -> None:
    """A forged signing time makes the metadata expire, or is ignored."""
    ref = world.publish()
    timestamp = json.loads((world.repository.metadata / "timestamp.json").read_bytes())
    timestamp["signed"][SIGNED_AT] = value
    timestamp["signed"]["version"] += 1
    metadata: Metadata[Any] = Metadata.from_dict(timestamp)
    metadata.signatures.clear()
    metadata.sign(world.online_key)
    (world.repository.metadata / "timestamp.json").write_bytes(metadata.to_bytes())

    for _ in range(2):
        try:
            assert world.node.refresh()
            assert world.node.manifest(ref, {})
        except errors.ExpiredMetadata:
            assert value in (10**30, 2**53)
