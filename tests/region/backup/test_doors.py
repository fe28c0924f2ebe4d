"""What was decided after a backup is not undone by putting it back: nothing that was shut opens again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.enrolment.machines import Machine
from tests.enrolment.world import World as Enrolments
from tests.region.world import World

from hedgerow.pki.names import Identity, IdentityKind
from hedgerow.region.backup.backup import make_backup
from hedgerow.region.backup.restore import RestoredBackup, restore_backup
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database

MakeEnrolments = Callable[..., Enrolments]


def backed_up(config: RegionConfig, folder: Path) -> Path:
    make_backup(config, folder / "backup", lambda _: None)
    return folder / "backup"


def put_back(config: RegionConfig, backup: Path) -> RestoredBackup:
    return restore_backup(config, backup, who="eve", replace=True, advance=lambda _: None)


class Restorable:
    """A registrar whose store can be put back.

    Args:
        folder: for its files.
        rules, more: of its configuration.
    """

    def __init__(self, folder: Path, url: str, rules: list[dict[str, Any]], **more: Any) -> None:
        self.folder = folder
        self.world = Enrolments(folder, url, pki=folder / "pki", rules=rules, **more)

    def put_back(self, backup: Path, *, lost: bool = False) -> RestoredBackup:
        """Put the store back; `lost`: the present one is gone."""
        world = self.world
        world.close()
        if lost:
            for path in self.folder.glob("region.db*"):
                path.unlink()
        done = put_back(world.config, backup)
        world.now = max(world.now, time.time()) + 1
        world.database = open_database(world.config.store.url, write=False, alongside=True)
        return done


@pytest.fixture
def restorable(tmp_path: Path, store_url: str) -> Iterator[Restorable]:
    rule = {"name": "nucs", "labels": "hardware=nuc", "count": 9}
    made = Restorable(
        tmp_path, store_url if store_url.startswith("postgresql:") else str(tmp_path / "region.db"), [rule]
    )
    yield made
    made.world.close()


on_sqlite = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)


def test_no_claim_of_a_backup_lets_anybody_in(restorable: Restorable) -> None:
    """One was revoked since; another one may have been used by a thief since."""
    world = restorable.world
    revoked, other = world.claim(uses=5), world.claim(uses=5)
    backup = backed_up(world.config, restorable.folder)
    world.request("claim-revoke", id=revoked.id)
    done = restorable.put_back(backup)

    assert [world.ask(Machine(), claim).code for claim in (revoked, other)] == ["claim-revoked"] * 2
    assert done.shut.claims == 2
    assert world.ask(Machine(), world.claim()).state == "pending"


def test_a_machine_that_was_rejected_stays_rejected(restorable: Restorable) -> None:
    world = restorable.world
    pending, approved = Machine(), Machine()
    claim = world.claim(uses=2)
    world.ask(pending, claim)
    world.ask(approved, claim)
    world.approve(approved.fingerprint)
    backup = backed_up(world.config, restorable.folder)
    for machine in (pending, approved):
        world.request("node-reject", machine=machine.fingerprint, why="stolen")
    done = restorable.put_back(backup)

    answers = [world.ask(machine, None) for machine in (pending, approved)]
    assert [(one.state, one.detail, one.grant) for one in answers] == [("rejected", "stolen", "")] * 2
    assert (done.shut.machines, done.shut.is_complete) == (2, True)


@on_sqlite
def test_a_machine_that_asked_before_the_backup_takes_a_person_if_nobody_knows_what_was_decided(
    restorable: Restorable,
) -> None:
    """It matches a rule; but it was rejected after the backup, and the store that knew is gone."""
    world = restorable.world
    rejected = Machine()
    world.ask(rejected, world.claim())
    backup = backed_up(world.config, restorable.folder)
    world.request("node-reject", machine=rejected.fingerprint, why="stolen")
    done = restorable.put_back(backup, lost=True)
    with world.database.transaction():
        world.database.run('UPDATE claim SET labels = \'{"hardware": "nuc"}\'')

    answer = world.ask(rejected, None)
    assert (answer.state, "a person decides" in answer.detail) == ("pending", True)
    assert not done.shut.is_complete
    world.approve(rejected.fingerprint)
    assert world.ask(rejected, None).state == "approved"
    new = Machine()
    assert world.ask(new, world.claim(hardware="nuc")).state == "approved"


@pytest.mark.parametrize("revoked", [True, False])
def test_a_machine_whose_certificate_was_revoked_gets_no_other_one(tmp_path: Path, revoked: bool) -> None:
    """A restore brings back that it was approved; the authority knows better."""
    restorable = Restorable(tmp_path, str(tmp_path / "region.db"), [], days=0.0001)
    world = restorable.world
    machine = Machine()
    world.ask(machine, world.claim())
    world.approve(machine.fingerprint)
    first = world.ask(machine, None).grant
    backup = backed_up(world.config, restorable.folder)
    if revoked:
        world.pki.revoke(Identity(IdentityKind.NODE, "hall", "a"), "key-compromise")
    restorable.put_back(backup, lost=True)
    world.now += 7

    assert (world.ask(machine, None).grant in ("", first)) is revoked
    world.close()


def test_a_node_that_was_forgotten_and_a_rollout_that_was_stopped_stay_so(store_url: str, tmp_path: Path) -> None:
    """The rollout is paused, with the reason, for a person to resume or abort; the forgotten node holds up nothing."""
    with World(store_url, 4, began=time.time()) as world:
        world.turns(2)
        name = world.start(waves=[2, 2])
        world.turn()
        backup = backed_up(world.config, tmp_path)
        world.do("node-forget", node="n001")
        world.do("rollout-abort", rollout=name)
        world.turns(3)
        nodes, retained, now = world.nodes, world._retained, world.now
    done = put_back(world.config, backup)

    after = World(store_url, 0, began=now)
    after.nodes, after._retained = nodes, retained
    with after:
        after.turns(3)
        rollout = after.rollout(name)
        assert rollout.phase.value == "paused"
        assert "put back to a backup" in rollout.reason
        assert "aborted by" in rollout.reason
        assert (done.shut.nodes, done.shut.rollouts) == (1, 1)
        assert after.database.rows("SELECT name FROM node WHERE forgotten_at IS NOT NULL") == [("n001",)]
        after.do("rollout-resume", rollout=name)
        for _ in range(200):
            after.turn()
            if not after.busy():
                break
        assert after.rollout(name).phase.ended
        assert {str(node.node) for node in after.rollout(name).tasks} == {"n000", "n002", "n003"}
