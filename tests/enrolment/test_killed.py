"""Killed at any step, there is a whole node or none, and the next call finishes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.enrolment.machines import Machine
from tests.enrolment.world import World

from hedgerow import configfile
from hedgerow.enrolment.enrol import enrol
from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.enrolment.grant import verify_grant
from hedgerow.pki import files
from hedgerow.region.store.database.sqlite import Sqlite


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours handles it."""


class Killer:
    """Kills at a step: a write of a file, or a statement of the store; before it, or right after."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.at: int | None = None
        write, run = files.write, Sqlite.run

        def writes(path: Path, data: bytes, **how: bool) -> None:
            self._step()
            write(path, data, **how)
            self._step()

        def runs(database: Sqlite, sql: str, values: Any = ()) -> int:
            self._step()
            return run(database, sql, values)

        patch.setattr(files, "write", writes)
        patch.setattr(Sqlite, "run", runs)

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.at = None
            raise Killed


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, str(tmp_path / "region.db"), pki=tmp_path / "pki")
    yield made
    made.close()


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
async def test_a_machine_killed_at_any_step_of_enrol_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """The registrar and the approval run in the same steps, so they are killed too."""
    killer = Killer(monkeypatch)
    world.connect(monkeypatch)
    step, finished = 1 - stride, 0
    while True:
        step += stride
        for state in ("pending", "approved"):
            for machine in world.machines(state):
                with world.database.transaction():
                    world.database.run("DELETE FROM enrolment WHERE fingerprint = ?", (machine.fingerprint,))
        for home in (world.folder / "pki/hall/issued").glob("*"):
            for file in home.iterdir():
                file.unlink()
        claim = world.claim(hardware="nuc")
        folder = EnrolmentFolder(tmp_path / f"node-{step}")
        killer.steps, killer.at = 0, step
        killed = False
        try:
            await enrol(folder, claim, machine={"hostname": "gw"})
        except Killed:
            killed = True
        killer.at = None
        if folder.configuration.exists():
            finished += 1
            assert folder.complete
            configfile.load(folder.configuration)
        assert len(world.machines()) <= 1
        grant = await enrol(folder, claim, machine={"hostname": "gw"})
        assert grant.node == "north/hall/a"
        assert configfile.load(folder.configuration).node.labels == {"floor": "1", "hardware": "nuc"}
        (machine,) = world.machines("approved")
        stored = world.store.claim(claim.id)
        assert stored is not None
        assert stored.used == 1
        key = files.read_key(folder.key_file).public_key()
        assert verify_grant(machine.grant, machine.signature, folder.root(), key, "hall") == grant
        if not killed:
            break
    assert step > 25
    assert finished


async def test_a_machine_that_has_asked_needs_its_token_no_more(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.connect(monkeypatch)
    folder = EnrolmentFolder(tmp_path / "node")
    await enrol(folder, world.claim(), machine={})
    before = folder.configuration.read_text()
    folder.configuration.write_text(before + "log: {level: debug}\n")

    grant = await enrol(folder, None, machine={})

    assert grant.node == "north/hall/a"
    assert folder.configuration.read_text() == before + "log: {level: debug}\n"  # it may be edited there


def test_an_approval_killed_at_any_step_is_finished_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    killer = Killer(monkeypatch)
    world.ask(machine, world.claim())
    step = 0
    while True:
        step += 1
        killer.steps, killer.at = 0, step
        try:
            world.approve(machine.fingerprint, "b")
        except Killed:
            pass
        else:
            break
        assert [one.state for one in world.machines()] == ["pending"]
        killer.at = None
        if step % 2:  # what is there already shortens the next attempt; every other one begins anew
            for file in (world.folder / "pki/hall/issued/b").iterdir():
                file.unlink()
    assert step > 5
    assert world.ask(machine, None).state == "approved"
    assert world.approve(machine.fingerprint, "b")["again"]
