"""What the registrar decides, with real keys and authorities, in both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.enrolment.machines import Machine
from tests.enrolment.world import World
from tests.region.conftest import postgres, store_url

from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.grant import verify_grant
from hedgerow.errors import CommandError
from hedgerow.pki.names import Identity, IdentityKind, PkiError
from hedgerow.region.enrolment.approval import make_grant
from hedgerow.region.enrolment.rules import Rules

__all__ = ["postgres", "store_url"]

MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    made: list[World] = []

    def make(url: str | None = None, **enrolment: Any) -> World:
        made.append(World(tmp_path, url or str(tmp_path / "region.db"), **enrolment))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def world(make_world: MakeWorld, tmp_path: Path) -> World:
    return make_world(pki=tmp_path / "pki")


def grant_of(world: World, machine: Machine, answer: Any, site: str = "hall") -> Any:
    return verify_grant(answer.grant, answer.signature, world.pki.root.certificate(), machine.key.public_key(), site)


def test_the_same_key_gets_the_same_answer_and_uses_its_claim_once(
    make_world: MakeWorld, store_url: str, tmp_path: Path
) -> None:
    """In both databases."""
    world = make_world(store_url, pki=tmp_path / "pki")
    machine, claim = Machine(), world.claim(hardware="nuc")
    assert [world.ask(machine, claim).state for _ in range(3)] == ["pending"] * 3
    assert world.approve(machine.fingerprint[:8]) == {
        "node": "hall/a", "fingerprint": machine.fingerprint, "again": False,
    }  # fmt: skip
    first, second = world.ask(machine, claim), world.ask(machine, None)

    assert first.state == "approved"
    assert first == second
    grant = grant_of(world, machine, first)
    assert (grant.node, grant.labels) == ("north/hall/a", {"hardware": "nuc"})
    (stored,) = world.store.claims()
    assert (stored.used, stored.uses) == (1, 1)
    assert world.approve(machine.fingerprint)["again"]
    assert world.store.pending() == (0, {})
    assert world.store.taken("hall") == {"a"}
    assert world.store.by_rule("r") == 0
    assert world.actions() == ["claim-created", "enrolment-asked", "enrolment-approved"]


def test_a_claim_is_for_so_many_machines_and_hours_and_for_one_site(world: World) -> None:
    claim = world.claim(uses=2)
    machines = [Machine() for _ in range(3)]
    assert [world.ask(machine, claim).code for machine in machines] == ["pending", "pending", "claim-used"]
    yard = world.claim("yard", hours=1)
    assert world.ask(Machine(), yard).code == "claim-of-another-site"
    world.now += 3601
    assert world.ask(Machine(), yard, "yard").code == "claim-expired"
    assert world.ask(machines[0], claim).code == "pending"  # it has asked in time


def test_a_revoked_claim_lets_nobody_ask_and_names_who_has(world: World) -> None:
    claim, before = world.claim(uses=5), Machine()
    world.ask(before, claim)

    assert world.request("claim-revoke", id=claim.id) == {"claim": claim.id, "pending": [before.fingerprint]}
    assert world.ask(Machine(), claim).code == "claim-revoked"
    assert world.request("claim-revoke", id=claim.id)["pending"] == [before.fingerprint]
    assert world.actions().count("claim-revoked") == 1


def test_a_rejected_machine_is_told_so_and_stays_rejected(world: World) -> None:
    machine, claim = Machine(), world.claim(uses=2)
    world.ask(machine, claim)
    world.request("node-reject", machine=machine.fingerprint[:12], why="nobody knows it")

    answer = world.ask(machine, claim)
    assert (answer.state, answer.detail, answer.again_s, answer.grant) == ("rejected", "nobody knows it", None, "")
    with pytest.raises(CommandError, match="was rejected by anna"):
        world.approve(machine.fingerprint)


def test_a_place_has_one_machine(world: World) -> None:
    claims = world.claim(uses=9)
    machines = [Machine() for _ in range(5)]
    for machine in machines:
        world.ask(machine, claims)
    assert world.approve(machines[0].fingerprint, "b")["node"] == "hall/b"
    with pytest.raises(CommandError, match="hall/b has a machine already"):
        world.approve(machines[1].fingerprint, "b")
    with pytest.raises(CommandError, match="There is no place hall/zz"):
        world.approve(machines[1].fingerprint, "zz")
    assert [world.approve(machine.fingerprint)["node"] for machine in machines[1:3]] == ["hall/a", "hall/c"]
    with pytest.raises(CommandError, match="All 3 places at hall are taken"):
        world.approve(machines[3].fingerprint)


def test_an_approved_machine_that_is_rejected_leaves_its_place(world: World) -> None:
    """Its certificate is for whoever has the authority to revoke; until then the place is not given to another key."""
    machine, other, claim = Machine(), Machine(), world.claim(uses=2)
    for one in (machine, other):
        world.ask(one, claim)
    world.approve(machine.fingerprint, "b")
    assert world.request("node-reject", machine=machine.fingerprint, why="stolen")["revoke"] == "hall/b"

    answer = world.ask(machine, None)
    assert (answer.state, answer.detail, answer.grant) == ("rejected", "stolen", "")
    with pytest.raises(PkiError, match="another key"):
        world.approve(other.fingerprint, "b")
    world.pki.revoke(Identity(IdentityKind.NODE, "hall", "b"), "key-compromise")
    assert world.approve(other.fingerprint, "b")["node"] == "hall/b"
    assert world.actions()[-2:] == ["enrolment-withdrawn", "enrolment-approved"]


def test_a_claim_for_a_place_gives_that_place_alone(world: World) -> None:
    machine, claim = Machine(), world.claim(place="c")
    world.ask(machine, claim)

    assert world.approve(machine.fingerprint)["node"] == "hall/c"


def test_a_place_whose_node_has_a_certificate_from_files_is_not_given(world: World) -> None:
    world.pki.issue(Identity(IdentityKind.NODE, "hall", "a"), timedelta(days=30))
    machine, claim = Machine(), world.claim(place="a")
    world.ask(machine, claim)

    with pytest.raises(PkiError, match="has a certificate for another key"):
        world.approve(machine.fingerprint)
    assert world.ask(machine, claim).state == "pending"


def test_without_an_authoritys_key_the_service_says_where_to_sign(make_world: MakeWorld) -> None:
    world = make_world()
    machine, claim = Machine(), world.claim()
    world.ask(machine, claim)

    with pytest.raises(CommandError, match="no authority's key") as caught:
        world.approve(machine.fingerprint)
    assert "--folder" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "12", "zzzz", "%", "____", "a" * 4])
def test_a_machine_is_named_by_digits_of_its_fingerprint(world: World, text: str) -> None:
    for _ in range(2):
        world.ask(Machine(), world.claim())
    if text == "aaaa" and any(one.fingerprint.startswith(text) for one in world.machines()):
        return
    with pytest.raises(CommandError, match="No machine"):
        world.approve(text)


def test_an_operators_grant_for_another_place_or_key_is_refused(make_world: MakeWorld, tmp_path: Path) -> None:
    """Signed by hand, or by a stolen authority of another site."""
    world = make_world(pki=tmp_path / "pki")
    machine, other, claim = Machine(), Machine(), world.claim(uses=2)
    for one in (machine, other):
        world.ask(one, claim)
    world.approve(other.fingerprint, "b")
    stolen = world.store.machine(other.fingerprint)
    assert stolen is not None
    signed = {"text": stolen.grant, "signature": stolen.signature}
    with pytest.raises(Exception, match="another node or key"):
        world.request("node-approve", machine=machine.fingerprint, place="a", grant=signed)
    assert world.ask(machine, claim).state == "pending"


@pytest.mark.parametrize(
    ("rule", "approved"),
    [
        ({}, True),
        ({"labels": "batch=7"}, True),
        ({"labels": "batch=8"}, False),
        ({"sites": ["hall"]}, True),
        ({"sites": ["yard"]}, False),
    ],
)
def test_a_rule_approves_by_site_and_labels_of_the_claim(
    make_world: MakeWorld, tmp_path: Path, rule: dict[str, Any], approved: bool
) -> None:
    world = make_world(pki=tmp_path / "pki", rules=[{"name": "r", "count": 5, **rule}])

    assert (world.ask(Machine(), world.claim(batch="7")).state == "approved") is approved
    assert ("enrolment-approved" in world.actions()) is approved


def test_a_rule_approves_so_many_and_no_more(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(pki=tmp_path / "pki", rules=[{"name": "r", "count": 2}])
    claim = world.claim(uses=9)

    assert [world.ask(Machine(), claim).state for _ in range(4)] == ["approved", "approved", "pending", "pending"]


def test_a_claim_made_by_hand_is_refused(world: World) -> None:
    for wrong in (
        {"id": "../x"},
        {"public_key": "00"},
        {"uses": 0},
        {"hours": 1e9},
        {"site": "a/b"},
        {"place": "a", "uses": 2},
    ):
        args = {
            "id": "0" * 16,
            "site": "hall",
            "place": None,
            "public_key": "00" * 32,
            "uses": 1,
            "hours": 1,
            "labels": {},
        }
        with pytest.raises((CommandError, ValueError)):
            world.request("claim-create", **args | wrong)
    assert world.store.claims() == []


def test_a_stolen_store_has_nothing_that_signs(world: World) -> None:
    claim = world.claim()
    rows = str(world.database.rows("SELECT * FROM claim"))

    assert claim.seed.hex() not in rows
    assert claim.token() not in rows
    assert claim.public.hex() in rows


def test_a_certificate_is_renewed_when_it_is_due(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(pki=tmp_path / "pki", days=0.0001)
    machine, claim = Machine(), world.claim()
    world.ask(machine, claim)
    world.approve(machine.fingerprint)
    first = world.ask(machine, claim)
    world.now += 7

    assert world.ask(machine, None).grant != first.grant


@pytest.mark.parametrize("when", ["approved by rule", "renewed"])
def test_a_person_who_decides_while_the_registrar_signs_has_the_last_word(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Signing takes a while, outside of the transaction; a rejection in the meantime is not overwritten."""
    rule = {"name": "nucs", "labels": "hardware=nuc", "count": 9}
    world = make_world(pki=tmp_path / "pki", days=0.0001, rules=[rule])
    machine, claim = Machine(), world.claim(hardware="nuc")
    if when == "renewed":
        assert world.ask(machine, claim).state == "approved"
        world.now += 7

    else:  # it asked before there was the rule
        with monkeypatch.context() as before:
            before.setattr(Rules, "match", lambda *_: None)
            assert world.ask(machine, claim).state == "pending"

    def sign_and_be_overtaken(*args: Any, **options: Any) -> tuple[str, str]:
        signed = make_grant(*args, **options)
        monkeypatch.undo()
        world.request("node-reject", machine=machine.fingerprint, why="stolen")
        return signed

    monkeypatch.setattr("hedgerow.region.enrolment.registrar.make_grant", sign_and_be_overtaken)
    answer = world.ask(machine, claim)

    assert (answer.state, answer.detail, answer.grant) == ("rejected", "stolen", "")
    assert [one.state for one in world.machines()] == ["rejected"]
    assert world.store.taken("hall") == set()


def test_a_token_survives_copying_and_nothing_else(world: World) -> None:
    from hedgerow.enrolment.claim import BadClaim, read_claim

    claim: Claim = world.claim()
    token = claim.token()
    assert read_claim(f"  {token}\n") == claim
    for wrong in (
        "",
        "hc1.",
        token[:-1],
        token[1:],
        token + "A",
        token.swapcase(),
        token[:50] + "x" + token[51:],
        "hc1." + "A" * 9000,
    ):
        with pytest.raises(BadClaim):
            read_claim(wrong)
