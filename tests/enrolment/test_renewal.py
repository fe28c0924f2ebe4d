"""Certificates of enrolled nodes: renewed while they run, for another name or site, and after they had expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.enrolment.estate import EnrollingEstate, enrolling_estate, running, until
from tests.enrolment.machines import Machine
from tests.enrolment.world import World

from hedgerow import configfile
from hedgerow.enrolment.answer import Answer
from hedgerow.enrolment.enrol import enrol
from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.enrolment.grant import BadGrant, release_grant, sign_grant
from hedgerow.enrolment.places import read_places
from hedgerow.enrolment.request import fingerprint
from hedgerow.errors import CommandError
from hedgerow.pki import certificates, files
from hedgerow.pki.certificates import common_name
from hedgerow.pki.names import Identity, IdentityKind, PkiError
from hedgerow.region.enrolment.approval import make_grant

DAY_S = 86_400.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(
        tmp_path, str(tmp_path / "region.db"), pki=tmp_path / "pki", days=30, rules=[{"name": "r", "count": 9}]
    )
    yield made
    made.close()


async def node_of(world: World, folder: Path, patch: pytest.MonkeyPatch, place: str = "a") -> EnrolmentFolder:
    world.connect(patch)
    node = EnrolmentFolder(folder)
    await enrol(node, world.claim(place=place), machine={})
    return node


def name_in(node: EnrolmentFolder) -> tuple[str, str]:
    """Return the node's name in its certificate and in its configuration."""
    own = files.read_certificates(node.tls / "tls.crt")[0]
    return common_name(own), str(configfile.load(node.configuration).node.address)


@pytest.mark.parametrize("edited", [False, True], ids=["as-granted", "edited"])
async def test_a_renamed_node_gets_certificate_and_configuration_of_its_new_name_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    """What was edited in its configuration stays."""
    node = await node_of(world, tmp_path / "node", monkeypatch)
    if edited:
        node.configuration.write_text(node.configuration.read_text() + "log: {level: debug} # for now\n")
    with world.store.database.transaction():
        world.store.move_place("hall", "a", "hall", "c")

    grant = await enrol(node, None, machine={})

    assert grant.node == "north/hall/c"
    assert name_in(node) == ("hall/c", "north/hall/c")
    assert ("debug} # for now" in node.configuration.read_text()) is edited
    assert node.complete
    assert world.actions()[-1] == "enrolment-renewed"
    assert await enrol(node, None, machine={}) == grant
    assert world.actions().count("enrolment-renewed") == 1


async def test_a_node_moved_to_another_site_is_released_by_its_former_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks where it asked so far: it cannot know of the other site. Afterwards it asks there."""
    node = await node_of(world, tmp_path / "node", monkeypatch)
    with world.store.database.transaction():
        world.store.move_place("hall", "a", "yard", "d")

    assert (await enrol(node, None, machine={})).node == "north/yard/d"
    assert name_in(node) == ("yard/d", "north/yard/d")
    asks = node.begin(None)
    assert (asks.site, asks.broker) == ("yard", "mqtts://broker.lan:8884")
    assert (await enrol(node, None, machine={})).node == "north/yard/d"


def answering(patch: pytest.MonkeyPatch, answer: Answer) -> None:
    async def ask(*_: Any, once: bool) -> AsyncIterator[Answer]:
        yield answer

    patch.setattr("hedgerow.enrolment.enrol.ask_until_decided", ask)


@pytest.mark.parametrize("release", ["", "its-own", "of-another-grant"])
async def test_another_sites_authority_cannot_call_a_node_away(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """Stolen from the yard, it signs a whole grant for a machine of the hall, which is at the hall's broker."""
    node = await node_of(world, tmp_path / "node", monkeypatch)
    (machine,) = world.machines("approved")
    assert world.config.enrolment.places is not None
    text, signature = make_grant(
        world.pki, read_places(world.config.enrolment.places), "yard", "d", machine.csr, {}, timedelta(days=9)
    )
    hall, yard = (world.pki.authority(name).key() for name in ("hall", "yard"))
    made = {"": "", "its-own": release_grant(text, yard), "of-another-grant": release_grant(machine.grant, hall)}
    answering(monkeypatch, Answer(state="approved", grant=text, signature=signature, release=made[release]))

    with pytest.raises(BadGrant, match="has not released this machine"):
        await enrol(node, None, machine={})
    assert name_in(node) == ("hall/a", "north/hall/a")

    assert (await enrol(node, None, machine={}, site="yard")).node == "north/yard/d"  # somebody at the machine says so


def test_a_machine_that_was_not_moved_is_refused_at_another_site(world: World) -> None:
    machine = Machine()
    assert world.ask(machine, world.claim()).state == "approved"

    assert world.ask(machine, world.claim("yard"), "yard").code == "another-site"


async def test_a_node_that_comes_back_after_months_is_renewed_without_a_person(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await node_of(world, tmp_path / "node", monkeypatch)
    before = (node.tls / "tls.crt").read_bytes()
    world.now += 150 * DAY_S

    await enrol(node, None, machine={})

    own = files.read_certificates(node.tls / "tls.crt")[0]
    assert (node.tls / "tls.crt").read_bytes() != before
    assert own.not_valid_after_utc.timestamp() > world.now
    assert world.actions()[-1] == "enrolment-renewed"


async def test_a_node_that_comes_back_later_than_the_grace_takes_a_person(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await node_of(world, tmp_path / "node", monkeypatch)
    world.now += 30 * DAY_S + 181 * DAY_S

    with pytest.raises(CommandError, match=r"expired 18[01] days ago.*grace_days") as caught:
        await enrol(node, None, machine={}, once=True)
    (machine,) = world.machines()
    assert f"node approve {machine.fingerprint[:16]}" in caught.value.remedy
    assert world.approve(machine.fingerprint) == {
        "node": "hall/a", "fingerprint": machine.fingerprint, "again": True,
    }  # fmt: skip

    await enrol(node, None, machine={}, once=True)
    assert files.read_certificates(node.tls / "tls.crt")[0].not_valid_after_utc.timestamp() > world.now


async def test_without_an_authoritys_key_an_expired_node_is_told_who_can_sign(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that all is well, with the certificate that has expired."""
    node = await node_of(world, tmp_path / "node", monkeypatch)
    world.now += 40 * DAY_S
    world.config = world.config.model_copy(
        update={"enrolment": world.config.enrolment.model_copy(update={"pki": None})}
    )

    with pytest.raises(CommandError, match=r"certificate expired.*no authority's key"):
        await enrol(node, None, machine={}, once=True)


async def test_a_rejected_node_is_not_renewed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await node_of(world, tmp_path / "node", monkeypatch)
    world.request("node-reject", machine=world.machines()[0].fingerprint, why="stolen")
    world.now += 40 * DAY_S

    with pytest.raises(CommandError, match=r"rejected.*stolen"):
        await enrol(node, None, machine={}, once=True)


@pytest.mark.parametrize("moved", [False, True])
async def test_a_node_whose_certificate_was_revoked_is_not_renewed_but_by_a_person(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """Whoever revoked it need not know that the machine asks by itself."""
    node = await node_of(world, tmp_path / "node", monkeypatch)
    world.pki.revoke(Identity(IdentityKind.NODE, "hall", "a"), "key-compromise")
    world.now += 25 * DAY_S
    (machine,) = world.machines()
    if moved:
        with world.store.database.transaction():
            world.store.move_place("hall", "a", "hall", "c")

    await enrol(node, None, machine={}, once=True)
    assert world.machines()[0].grant == machine.grant
    world.now += 10 * DAY_S
    with pytest.raises(CommandError, match="certificate of hall/a was revoked"):
        await enrol(node, None, machine={}, once=True)
    assert world.machines()[0].grant == machine.grant

    world.approve(machine.fingerprint)
    assert (await enrol(node, None, machine={}, once=True)).node == ("north/hall/c" if moved else "north/hall/a")


def test_a_person_lets_a_revoked_node_go_on(world: World) -> None:
    machine = Machine()
    before = world.ask(machine, world.claim()).grant
    world.pki.revoke(Identity(IdentityKind.NODE, "hall", "a"), "superseded")
    assert world.ask(machine, None).grant == before

    world.approve(machine.fingerprint)
    assert world.ask(machine, None).grant != before


@pytest.mark.parametrize("step", [1, *(pytest.param(step, marks=pytest.mark.long) for step in range(2, 7))])
async def test_a_change_of_name_killed_at_any_file_is_finished_by_the_next_call(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    class Killed(BaseException):
        pass

    node = await node_of(world, tmp_path / "node", monkeypatch)
    with world.store.database.transaction():
        world.store.move_place("hall", "a", "yard", "d")
    assert world.answer(Machine().request(None), "0" * 32).state == "refused"  # nothing of this counts as a step
    write, left = files.write, step

    def writes(path: Path, data: bytes, **how: bool) -> None:
        nonlocal left
        if tmp_path / "node" in path.parents:
            left -= 1
            if left == 0:
                raise Killed
        write(path, data, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write", writes)
        try:
            await enrol(node, None, machine={})
        except Killed:
            pass
        else:
            assert step > 5
    assert (await enrol(node, None, machine={})).node == "north/yard/d"
    assert name_in(node) == ("yard/d", "north/yard/d")
    assert node.begin(None).site == "yard"


# Nodes that run, on real brokers


@pytest.fixture(scope="module")
def estate() -> Iterator[EnrollingEstate]:
    rules = [{"name": "all", "count": 99}]
    settings: dict[str, Any] = {"places": "places.json", "pki": "../../../pki", "rules": rules}
    with enrolling_estate(
        "[gate, lamp, dock, belt, side, roof]", brokers=("north", "hall", "yard"), **settings
    ) as made:
        yield made


async def up(estate: EnrollingEstate, node: str) -> None:
    await asyncio.to_thread(until, lambda: estate.is_up(node), lambda: estate.operator("nodes").out)


async def left(estate: EnrollingEstate, node: str, former: str) -> None:
    """Wait until a node reports under its present name, and not under a former one."""

    def seen() -> bool:
        known = estate.operator("node", "show", node, "--json").json
        return any(one["node"] == former and one["seen"] for one in known["formerly"])

    await asyncio.to_thread(until, seen, lambda: estate.operator("node", "show", node).out)


async def enrolled(estate: EnrollingEstate, state: Path, place: str) -> EnrolmentFolder:
    claim = await asyncio.to_thread(estate.claim, "hall", "--place", place)
    folder = EnrolmentFolder(state)
    assert (await enrol(folder, claim, machine={})).node == f"north/hall/{place}"
    return folder


@pytest.mark.long
async def test_a_running_node_takes_its_new_name_and_then_its_new_site(estate: EnrollingEstate, tmp_path: Path) -> None:
    """By itself, in one process; results go on under the new address."""
    folder = await enrolled(estate, tmp_path / "node", "gate")
    async with running(folder.path):
        await up(estate, "north/hall/gate")
        renamed = await asyncio.to_thread(estate.operator, "node", "rename", "hall/gate", "lamp", "--why", "it is one")
        assert renamed.code == 0, renamed.err
        await left(estate, "hall/lamp", "north/hall/gate")
        assert name_in(folder) == ("hall/lamp", "north/hall/lamp")

        words = ("node", "move", "hall/lamp", "yard", "--name", "free", "--new-site", "--why", "hall closes")
        moved = await asyncio.to_thread(estate.operator, *words)
        assert moved.code == 0, moved.err
        await left(estate, "yard/free", "north/hall/lamp")
    assert name_in(folder) == ("yard/free", "north/yard/free")
    assert folder.begin(None).site == "yard"


@pytest.mark.long
async def test_a_node_whose_files_cannot_be_replaced_goes_on_and_tries_again(
    estate: EnrollingEstate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has ended by then. A disk that was full must not keep it from running."""
    folder = await enrolled(estate, tmp_path / "node", "dock")
    monkeypatch.setattr("hedgerow.enrolment.renewal._URGENT_S", 0.1)
    install, failed = EnrolmentFolder.install, []

    def fails_once(self: EnrolmentFolder, *grant: Any) -> None:
        if not failed:
            failed.append(grant)
            raise PkiError("No space left on device")
        install(self, *grant)

    async with running(folder.path):
        await up(estate, "north/hall/dock")
        monkeypatch.setattr(EnrolmentFolder, "install", fails_once)
        renamed = await asyncio.to_thread(estate.operator, "node", "rename", "hall/dock", "belt", "--why", "it is one")
        assert renamed.code == 0, renamed.err
        await left(estate, "hall/belt", "north/hall/dock")
    assert failed
    assert name_in(folder) == ("hall/belt", "north/hall/belt")


def expire(estate: EnrollingEstate, folder: EnrolmentFolder, days_ago: float) -> None:
    """Let a node's certificate, of a day, have been made so long ago that it expired some days ago."""
    public = files.read_key(folder.key_file).public_key()
    before, signer = folder.granted(public), estate.pki.authority("hall")
    assert before is not None
    ends = datetime.now(UTC) - timedelta(days=days_ago)
    user, begins, issuer = before.node.partition("/")[2], ends - timedelta(days=1), signer.certificate()
    own = certificates.leaf(IdentityKind.NODE, user, "node", public, issuer, signer.key(), begins, ends)
    expired = before.model_copy(update={"certificate": certificates.pem(own, issuer).decode()})
    text, signature = sign_grant(expired, signer.key())
    with estate.database(alongside=True) as database:
        values = (text, signature, fingerprint(public))
        assert database.run("UPDATE enrolment SET grant_text = ?, signature = ? WHERE fingerprint = ?", values) == 1
    folder.install(expired, text, signature)


@pytest.mark.long
async def test_a_node_whose_certificate_expired_gets_in_by_itself(estate: EnrollingEstate, tmp_path: Path) -> None:
    """The site's broker refuses it until then."""
    folder = await enrolled(estate, tmp_path / "node", "side")
    expire(estate, folder, 150)

    async with running(folder.path):
        await up(estate, "north/hall/side")
    assert files.read_certificates(folder.tls / "tls.crt")[0].not_valid_after_utc > datetime.now(UTC)


@pytest.mark.long
async def test_a_node_back_later_than_the_grace_shows_and_gets_in_when_a_person_approves(
    estate: EnrollingEstate, tmp_path: Path
) -> None:
    folder = await enrolled(estate, tmp_path / "node", "roof")
    expire(estate, folder, 300)
    shown = fingerprint(files.read_key(folder.key_file).public_key())
    with estate.database(alongside=True) as database:  # the service notes once a minute that a machine asks
        database.run("UPDATE enrolment SET seen_at = 0 WHERE fingerprint = ?", (shown,))

    async with running(folder.path):

        def waiting() -> list[str]:
            listed = estate.operator("node", "pending", "--json").json
            return [one["fingerprint"] for one in listed if one["state"] == "expired"]

        assert await asyncio.to_thread(until, waiting) == [shown]
        assert not estate.is_up("north/hall/roof")
        approved = await asyncio.to_thread(estate.operator, "node", "approve", shown[:16], "--why", "back from repair")
        assert approved.code == 0, approved.err
        await up(estate, "north/hall/roof")
