"""A manufacturer's certificate stands in place of a claim: genuine ones are taken, once each; all others are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.enrolment.machines import Machine
from tests.enrolment.makers import Manufacturer, asks, new_key, write_device
from tests.enrolment.world import World

from hedgerow.enrolment.enrol import enrol
from hedgerow.enrolment.folder import EnrolmentFolder, NotEnrolled
from hedgerow.enrolment.maker import read_maker_proof
from hedgerow.errors import CommandError, ConfigError

BROKER = "mqtts://broker.lan:8884"


@pytest.fixture
def maker() -> Manufacturer:
    return Manufacturer()


@pytest.fixture
def world(tmp_path: Path, maker: Manufacturer) -> Iterator[World]:
    (tmp_path / "serials.txt").write_text("# bought in May\nSN-1\nforged\n")
    rules = [{"name": "bought", "count": 9, "serials": tmp_path / "serials.txt"}]
    made = World(
        tmp_path, str(tmp_path / "region.db"), pki=tmp_path / "pki", manufacturers=maker.write(tmp_path), rules=rules
    )
    yield made
    made.close()


def ask(world: World, machine: Machine, payload: bytes) -> Any:
    return world.answer(payload, machine.client)


async def test_a_machine_enrols_with_its_manufacturers_certificate(
    world: World, maker: Manufacturer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With authorities in between. Its own key is another one, made here; it asks again without the certificate."""
    world.connect(monkeypatch)
    key, middle = maker.certify("", authority=True)
    device = maker.certify("SN-1", by=(middle, key))
    certificate, key_file = write_device(tmp_path, device[0], device[1], middle)
    proof = read_maker_proof(certificate, str(key_file), "hall", BROKER, tmp_path / "pki/root.crt")
    folder = EnrolmentFolder(tmp_path / "node")

    grant = await enrol(folder, proof, machine={"serial": "SN-9"})

    assert grant.node == "north/hall/a"
    assert folder.complete
    assert x509.load_pem_x509_certificates(grant.certificate.encode())[0].public_key() != device[1].public_key()
    (stored,) = world.machines()
    assert (stored.claim, stored.rule) == ("maker:SN-1", "bought")
    assert await enrol(folder, None, machine={}) == grant
    with pytest.raises(NotEnrolled, match="is a node of north/hall"):
        await enrol(folder, read_maker_proof(certificate, str(key_file), "yard", BROKER, tmp_path / "pki/root.crt"))


def test_a_rule_counts_the_serial_number_that_the_manufacturer_certified(world: World, maker: Manufacturer) -> None:
    """Not what the machine says of itself."""
    first, second = Machine(), Machine()

    assert ask(world, first, maker.request(first, "SN-1")).state == "approved"
    assert ask(world, second, maker.request(second, "SN-2")).state == "pending"


def test_a_certificate_is_for_one_machine(world: World, maker: Manufacturer) -> None:
    """Whoever has a machine, or copied its key, cannot become many nodes with it, nor one more after it was rejected."""
    device, machines = maker.certify("SN-1"), [Machine() for _ in range(3)]
    first, copy, later = (
        ask(world, one, maker.request(one, device=device)) for one in (machines[0], machines[1], machines[1])
    )
    assert (first.state, copy.code, later.code) == ("approved", "certificate-used", "certificate-used")
    again = maker.certify("SN-1")  # the same machine, certified once more
    assert ask(world, machines[2], maker.request(machines[2], device=again)).code == "certificate-used"

    world.request("node-reject", machine=machines[0].fingerprint, why="stolen")

    answer = ask(world, machines[1], maker.request(machines[1], device=device))
    assert answer.state == "pending"
    assert "rejected before" in answer.detail
    assert ask(world, machines[0], maker.request(machines[0], device=device)).state == "rejected"
    assert ask(world, machines[2], maker.request(machines[2], device=device)).code == "certificate-used"


def test_a_request_sent_again_by_another_is_refused(world: World, maker: Manufacturer) -> None:
    machine, thief = Machine(), Machine()
    payload = maker.request(machine)

    assert world.answer(payload, thief.client).code == "another-client"
    assert ask(world, machine, payload).state == "approved"
    assert ask(world, machine, payload).state == "approved"
    assert len(world.machines()) == 1


def test_a_signature_of_another_request_does_not_count(world: World, maker: Manufacturer) -> None:
    """Captured from a genuine machine, put beside the certificate in a request with the thief's own key."""
    machine, thief = Machine(), Machine()
    genuine = orjson.loads(maker.request(machine))
    own = orjson.loads(thief.request(None))
    forged = orjson.dumps(own | {name: genuine[name] for name in ("maker", "certificates")})

    assert ask(world, thief, forged).code == "bad-proof"


Make = Callable[[Manufacturer, Machine], bytes]


def by(stranger: Manufacturer) -> Make:
    return lambda _, machine: stranger.request(machine)


def key_not_held(maker: Manufacturer, machine: Machine) -> bytes:
    return asks(machine, new_key(), [maker.certify("SN-1")[1]])


def below(**how: Any) -> Make:
    """Certified by an authority below the manufacturer's that is wrong."""

    def make(maker: Manufacturer, machine: Machine) -> bytes:
        key, middle = maker.certify("", **how)
        return maker.request(machine, chain=[middle], by=(middle, key))

    return make


def two_below_one(maker: Manufacturer, machine: Machine) -> bytes:
    """An authority that may have none below it has one."""
    key, upper = maker.certify("upper", authority=True, path_length=0)
    lower_key, lower = maker.certify("lower", authority=True, by=(upper, key))
    return maker.request(machine, chain=[lower, upper], by=(lower, lower_key))


def another_root_of_the_name(maker: Manufacturer, machine: Machine) -> bytes:
    return Manufacturer().request(machine)


def the_root_itself(maker: Manufacturer, machine: Machine) -> bytes:
    return asks(machine, maker.key, [maker.root])


def a_key_of_rsa(maker: Manufacturer, machine: Machine) -> bytes:
    _, own = maker.certify("SN-1", rsa.generate_private_key(65537, 2048))
    return asks(machine, new_key(), [own])


REFUSED: dict[str, tuple[str, Make]] = {
    "of-another-manufacturer": ("unknown-manufacturer", by(Manufacturer())),
    "another-root-of-the-same-name": ("unknown-manufacturer", another_root_of_the_name),
    "expired": ("certificate-expired", lambda maker, machine: maker.request(machine, ends=timedelta(hours=-1))),
    "not-yet-valid": ("certificate-expired", lambda maker, machine: maker.request(machine, begins=timedelta(days=1))),
    "an-issuer-expired": ("certificate-expired", below(authority=True, ends=timedelta(hours=-1))),
    "key-not-held": ("bad-proof", key_not_held),
    "key-of-rsa": ("bad-proof", a_key_of_rsa),
    "certified-by-a-machine": ("unknown-manufacturer", below()),
    "too-many-authorities-below": ("unknown-manufacturer", two_below_one),
    "the-manufacturers-own-certificate": ("unknown-manufacturer", the_root_itself),
    "a-serial-number-with-a-space": ("unknown-manufacturer", lambda maker, machine: maker.request(machine, "SN-1 ")),
    "a-long-serial-number": ("unknown-manufacturer", lambda maker, machine: maker.request(machine, "1" * 64 + "2")),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Manufacturer]]:
    folder, maker = tmp_path_factory.mktemp("shared"), Manufacturer()
    made = World(folder, str(folder / "region.db"), pki=folder / "pki", manufacturers=maker.write(folder))
    yield made, maker
    made.close()


@pytest.mark.parametrize("name", REFUSED)
def test_a_certificate_that_proves_nothing_is_refused(shared: tuple[World, Manufacturer], name: str) -> None:
    world, maker = shared
    code, make = REFUSED[name]
    machine = Machine()
    answer = ask(world, machine, make(maker, machine))

    assert (answer.state, answer.code) == ("refused", code)
    assert world.machines() == []


def test_a_region_without_manufacturers_takes_no_certificate(tmp_path: Path, maker: Manufacturer) -> None:
    world, machine = World(tmp_path, str(tmp_path / "region.db")), Machine()
    try:
        assert ask(world, machine, maker.request(machine)).code == "unknown-manufacturer"
    finally:
        world.close()


async def test_a_refused_machine_is_told_why_and_writes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.connect(monkeypatch)
    key, own = Manufacturer().certify("SN-1")
    certificate, key_file = write_device(tmp_path, key, own)
    proof = read_maker_proof(certificate, str(key_file), "hall", BROKER, tmp_path / "pki/root.crt")

    with pytest.raises(CommandError, match="unknown-manufacturer"):
        await enrol(EnrolmentFolder(tmp_path / "node"), proof, machine={})
    assert not (tmp_path / "node/node.yaml").exists()


def test_a_machine_refuses_what_the_region_would(world: World, maker: Manufacturer, tmp_path: Path) -> None:
    key, own = maker.certify("SN-1")
    certificate, key_file = write_device(tmp_path, key, own)
    root = tmp_path / "pki/root.crt"
    assert read_maker_proof(certificate, str(key_file), "hall", BROKER, root).region == "north"

    for wrong, match in (
        ({"root": certificate}, "not the root"),
        ({"broker": "mqtt://broker.lan"}, "not an address"),
        ({"site": "a/b"}, "not a name"),
        ({"key": str(write_device(tmp_path, new_key(), own)[1])}, "not the key"),
    ):
        with pytest.raises(ConfigError, match=match):
            read_maker_proof(
                **{"certificate": certificate, "key": str(key_file), "site": "hall", "broker": BROKER, "root": root}
                | wrong
            )  # type: ignore[arg-type]
    certificate.write_bytes(own.public_bytes(Encoding.PEM) * 9)
    with pytest.raises(ConfigError, match="9 certificates"):
        read_maker_proof(certificate, str(key_file), "hall", BROKER, root)
