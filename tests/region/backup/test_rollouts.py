"""A region put back to any step of a rollout: rollouts end or say why not, and no generation is given twice."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.region.world import World

from hedgerow.region.backup.backup import make_backup
from hedgerow.region.backup.restore import restore_backup
from hedgerow.region.rollouts.controller import PendingDocument
from hedgerow.topics import Address

TURNS = 400


class RecordedWorld(World):
    """A world that remembers every document that was published, across restores."""

    given: defaultdict[tuple[Address, int], set[bytes]]

    def _deliver(self, pending: Sequence[PendingDocument]) -> None:
        for document in pending:
            self.given[document.node, document.generation].add(document.payload)
        super()._deliver(pending)

    def close(self) -> None:
        self.__exit__()

    def restored(self, backup: Path) -> RecordedWorld:
        """Return the world after the region was put back to a backup: nodes and broker are as they are now."""
        restore_backup(self.config, backup, who="eve", replace=True, advance=lambda _: None)
        world = RecordedWorld(self.url, 0, began=self.now)
        world.given = copy.deepcopy(self.given)
        world.nodes, world._retained = copy.deepcopy(self.nodes), dict(self._retained)
        return world


@pytest.mark.parametrize(
    ("store_url", "does"),
    [
        ("sqlite", "good"),
        *(
            pytest.param(store, does, marks=pytest.mark.long)
            for store, does in [
                ("sqlite", "refuses"),
                ("sqlite", "slow"),
                ("postgres", "good"),
                ("postgres", "refuses"),
            ]
        ),
    ],
    indirect=["store_url"],
)
def test_a_region_put_back_to_any_step_of_a_rollout_goes_on(store_url: str, tmp_path: Path, does: str) -> None:
    """To before it, to each of its steps, and to after it. One node is offline then, and has got what the region has lost."""
    world = RecordedWorld(store_url, 3)
    world.given = defaultdict(set)
    backups: list[tuple[Path, list[tuple[str, str | None]]]] = []
    with world:
        list(world.nodes.values())[1].does["2.0.0"] = does
        world.turns(2)
        name = world.start(waves=[1])
        done = -1
        for _ in range(TURNS):
            audit = world.audit()
            if len(audit) != done:
                done = len(audit)
                make_backup(world.config, tmp_path / f"backup-{done}", lambda _: None)
                backups.append((tmp_path / f"backup-{done}", [(action, rollout) for _, _, action, rollout, _ in audit]))
            if world.known(name) and not world.busy():
                break
            world.turn()
        assert world.known(name)
        assert not world.busy()
        world.turns(3)
    assert len(backups) >= 4

    for backup, _ in backups:
        after = world.restored(backup)
        *_, absent = after.nodes.values()
        absent.online = False
        with after:
            after.ask("node-label", node=str(absent.address), labels={"hall": "7"})
            after.turns(3)
            if not after.known(name) and not after.request_open():
                after.start(waves=[1], rollout=name)
            absent.online = True
            for _ in range(TURNS):
                after.turn()
                if after.known(name) and not after.busy():
                    break
            rollout = after.rollout(name)
            assert rollout.phase.ended or after.waits(name), (backup, rollout)
            assert rollout.phase.value == ("succeeded" if does == "good" else rollout.phase.value)
            if does == "good":
                assert after.versions() == {"2.0.0"}
            numbers = [at for (at,) in after._operator_database.rows("SELECT ingest FROM audit")]
            assert len(set(numbers)) == len(numbers)
        twice = {key: len(payloads) for key, payloads in after.given.items() if len(payloads) > 1}
        assert not twice, backup
