"""By which time metadata is judged, whatever the machine's clock says: not set, behind, ahead, jumping, or of no calendar."""

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


def boots(world: World, name: str = "node", *, wall: float) -> Any:
    """The node's machine starts anew, with a clock that says something; it has what it kept."""
    world.time.wall, world.time.passed = wall, 0.0
    return world.client(name)


def signed_now(world: World, at: float) -> None:
    """The region signs, by its own clock, which is right."""
    shown, world.time.wall = world.time.wall, at
    world.repository.refresh_timestamp()
    world.time.wall = shown


def test_a_new_node_with_an_unset_clock_accepts_valid_metadata_and_reports_the_error(world: World) -> None:
    """A gateway without a battery wakes up in 1970; what was signed says at least that it is later."""
    began = world.time.wall
    ref = world.publish()

    node = boots(world, "new", wall=0.0)

    fresh = node.refresh()
    assert fresh.clock_behind_s == pytest.approx(began, abs=1)
    assert node.manifest(ref, {})


def test_a_clock_set_back_does_not_make_old_metadata_fresh(world: World) -> None:
    """Somebody waits for the power to fail, and brings back last month's repository: it is older than what is kept."""
    began = world.time.wall
    world.publish()
    stale = {path.name: path.read_bytes() for path in world.repository.metadata.iterdir()}
    signed_now(world, began + 30 * DAY)
    world.time.wall = began + 30 * DAY
    world.node.refresh()

    node = boots(world, wall=began)
    world.between.tamper = lambda path, data: stale.get(path.removeprefix("metadata/"), data)

    with pytest.raises(errors.RollbackAttack):
        node.refresh()


def test_metadata_expires_although_the_clock_is_not_set(world: World) -> None:
    """Time passes, though nobody knows which."""
    ref = world.publish()
    world.node.refresh()
    node = boots(world, wall=0.0)
    assert node.refresh().clock_behind_s

    world.time.passes(6.9 * DAY)
    assert node.manifest(ref, {})
    world.time.passes(0.2 * DAY)
    with pytest.raises(errors.ExpiredMetadata):
        node.refresh()


def test_the_last_signing_time_is_the_lower_bound_of_the_time(world: World) -> None:
    """An owner's word that ended before the region signed last is over, though the clock says that it has not begun."""
    began = world.time.wall
    ref = world.publish()
    world.time.passes(364 * DAY)
    key_ceremony.renew(world.repository, "targets", [world.targets_key])
    signed_now(world, began + 366 * DAY)

    with pytest.raises(errors.ExpiredMetadata, match="doors counted until"):
        boots(world, wall=began).manifest(ref, {})


def test_a_clock_set_while_the_node_runs_is_used_from_then_on(world: World) -> None:
    began = world.time.wall
    world.publish()
    node = boots(world, wall=0.0)
    assert node.refresh().clock_behind_s

    world.time.wall = began + 3 * DAY
    assert node.refresh().clock_behind_s is None
    world.time.wall = began + 8 * DAY
    with pytest.raises(errors.ExpiredMetadata):
        node.refresh()


def test_a_clock_ahead_causes_refusals_only_while_it_is_ahead(world: World) -> None:
    """Nothing of it is kept, so a node is not locked out for good."""
    began = world.time.wall
    ref = world.publish()
    node = boots(world, wall=began + 40 * DAY)
    with pytest.raises(errors.ExpiredMetadata) as refused:
        node.refresh()
    assert "clock" in refused.value.remedy

    world.time.wall = began
    assert node.manifest(ref, {})
    assert boots(world, wall=began).manifest(ref, {})


def test_setting_the_clock_back_does_not_delay_expiry(world: World) -> None:
    began = world.time.wall
    world.publish()
    world.node.refresh()
    world.time.passes(7.1 * DAY)
    world.time.wall = began

    with pytest.raises(errors.ExpiredMetadata):
        world.node.refresh()


def test_a_new_online_key_repairs_a_region_with_a_wrong_clock(world: World) -> None:
    """It signed as if it were years later; that is believed until the root takes the key away."""
    ref = world.publish()
    signed = world.read("timestamp")
    signed.signed.version += 1
    signed.signed.unrecognized_fields[SIGNED_AT] += int(900 * DAY)
    signed.signatures.clear()
    signed.sign(world.online_key)
    (world.repository.metadata / "timestamp.json").write_bytes(signed.to_bytes())
    with pytest.raises(errors.ExpiredMetadata):
        world.node.refresh()

    world.exchange_online_key()
    assert world.node.manifest(ref, {})


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wall=st.floats(-1e12, 1e18), passed=st.floats(0, 1e9))
def test_any_clock_gives_a_result_or_a_refusal(world: World, wall: float, passed: float) -> None:
    """Believed, or refused as over; no clock brings anything else about."""
    if world.read("timestamp").signed.version < 3:
        world.publish()
    world.time.wall, world.time.passed = wall, passed
    node = world.client("anytime")

    if wall > world.time_began + 7 * DAY:
        with pytest.raises(errors.ExpiredMetadata):
            node.refresh()
    else:
        assert (node.refresh().clock_behind_s is not None) == (wall < world.time_began - 60)


@pytest.mark.parametrize("said", [10**30, -(10**30), 2**53, True, "noon", None, []])
def test_an_invalid_signing_time_is_ignored(world: World, said: Any) -> None:
    """A thief may sign what he likes: it is over for him, or it is as if he had said nothing."""
    ref = world.publish()
    timestamp = json.loads((world.repository.metadata / "timestamp.json").read_bytes())
    timestamp["signed"][SIGNED_AT] = said
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
            assert said in (10**30, 2**53)
