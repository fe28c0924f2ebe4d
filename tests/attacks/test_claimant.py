"""Attempts by a machine that may only ask to enrol: anyone who reaches that listener, with or without a claim.

It tries every other topic, the requests and answers of others, claims that are stolen, replayed, forged, used up, expired or revoked,
floods, huge requests and hostile texts. Each is refused and counted, and an honest machine still gets its answers.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.enrolment.estate import EnrollingEstate, enrolling_estate, until
from tests.enrolment.machines import Machine
from tests.enrolment.makers import Manufacturer, asks, new_key
from tests.topology.raw import Raw, connect, publish, subscribe

from hedgerow.enrolment.answer import Answer, read_answer
from hedgerow.enrolment.claim import Claim

BASE = "hedgerow/v1/north/hall"
PLACES = "[" + ", ".join(f"n{number}" for number in range(8)) + "]"


MAKER, STRANGER = Manufacturer(), Manufacturer()
GENUINE = MAKER.certify("SN-1")
"""A machine's key and certificate, which it used already."""


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrollingEstate]:
    makers = MAKER.write(tmp_path_factory.mktemp("makers"))
    settings = {"places": "places.json", "requests_per_s": 5000, "pending_per_site": 20, "manufacturers": makers}
    with enrolling_estate(PLACES, **settings) as made:
        made.honest, made.honest_claim = Machine(), made.add_claim()
        yield made


class Claimant:
    """A connection to the listener for machines that enrol."""

    def __init__(self, link: Raw, client: str) -> None:
        self.link, self.client = link, client

    @classmethod
    async def open(cls, estate: EnrollingEstate, client: str, site: str = "hall") -> Claimant:
        place = estate.described.topology.sites[site] if site != "north" else estate.described.topology.region
        assert place.enrolment_port is not None
        trusting = ssl.create_default_context(cafile=estate.folder / "pki/root.crt")
        link = await Raw.open(place.enrolment_port, trusting, connect(client))
        link.send(subscribe(1, f"{BASE}/~/enrolled/{client}", qos=0))
        await link.until(lambda: link.suback or link.closed)
        return cls(link, client)

    async def ask(self, payload: bytes) -> Answer:
        before = len(self.link.received)
        self.link.send(publish(f"{BASE}/~/enrol/{self.client}", payload))
        await self.link.until(lambda: len(self.link.received) > before or self.link.closed)
        return read_answer(self.link.received[-1][1])


@pytest.fixture
async def honest(estate: EnrollingEstate) -> AsyncIterator[Callable[[], Any]]:
    """A machine that has asked; afterwards it is still answered."""
    machine = estate.honest
    claimant = await Claimant.open(estate, machine.client)
    payload = machine.request(estate.honest_claim)

    async def is_answered() -> None:
        """As machines do, it repeats what is not answered."""
        answer = None
        while answer is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    answer = await claimant.ask(payload)
        assert answer.state == "pending"

    await is_answered()
    yield is_answered
    await is_answered()
    await claimant.link.end()


WRITES = [
    f"{BASE}/n0/status", f"{BASE}/n0/health", f"{BASE}/n0/event/gap", f"{BASE}/n0/result/doors", f"{BASE}/n0/reported",
    f"{BASE}/n0/dead/doors", f"{BASE}/n0/reply/1", f"{BASE}/n0/reply/up/region/1", f"{BASE}/n0/blob/ask/1",
    f"{BASE}/n0/desired", f"{BASE}/n0/command/stop", f"{BASE}/n0/ack", f"{BASE}/~/desired", f"{BASE}/~/command/stop",
    f"{BASE}/~/enrolled/ME", f"{BASE}/~/enrol/{'0' * 32}", f"{BASE}/~/enrolled/{'0' * 32}", f"{BASE}/n0/enrol/ME",
    f"{BASE}/~/enrol/ME/more", f"{BASE}/~/enrol", "hedgerow/v1/north/yard/~/enrol/ME", "hedgerow/v1/south/hall/~/enrol/ME",
    "plant/1/door", "$SYS/broker/connection/hall/state", f"{BASE}/~/ENROL/ME",
]  # fmt: skip
READS = [
    "#", "+/#", "hedgerow/v1/#", f"{BASE}/~/enrolled/+", f"{BASE}/~/enrolled/#", f"{BASE}/~/enrol/+", f"{BASE}/+/result/#",
    f"{BASE}/+/desired", f"{BASE}/+/command/#", f"{BASE}/+/ack", "plant/#", "$SYS/#",
    f"$share/g/{BASE}/~/enrolled/{'0' * 32}", f"$share/g/{BASE}/+/desired",
]  # fmt: skip
SENT = [topic.replace("ME", "1" * 32) for topic in WRITES if topic[0] != "$"]


@pytest.mark.parametrize("topic", WRITES)
async def test_a_claimant_publishes_nothing_but_its_own_requests(
    estate: EnrollingEstate, honest: Callable[[], Any], topic: str
) -> None:
    client = secrets.token_hex(16)
    claimant = await Claimant.open(estate, client)
    window = await Raw.open(estate.windows["hall"], None, connect(secrets.token_hex(8)))
    window.send(subscribe(1, "#", "$SYS/broker/connection/#"))
    await window.until(lambda: window.suback)

    mark = secrets.token_bytes(8).hex().encode()
    claimant.link.send(
        publish(topic.replace("ME", client), mark), publish(topic.replace("ME", client), mark, retain=True)
    )
    await claimant.link.settle()
    await window.settle()

    assert [one for one in window.received if one[1] == mark] == []

    def told() -> bool:
        lines = [line for line in estate.log("hall").splitlines() if "Denied PUBLISH" in line and client in line]
        return len(lines) == 2 or topic[0] == "$"

    await asyncio.to_thread(until, told, lambda: estate.log("hall")[-2000:])
    await claimant.link.end()
    await window.end()


@pytest.mark.parametrize("pattern", READS)
async def test_a_claimant_reads_nothing_but_its_own_answers(
    estate: EnrollingEstate, honest: Callable[[], Any], pattern: str
) -> None:
    claimant = await Claimant.open(estate, secrets.token_hex(16))
    claimant.link.send(subscribe(2, pattern))
    await claimant.link.settle()
    window = await Raw.open(estate.windows["hall"], None, connect(secrets.token_hex(8)))
    window.send(*(publish(topic, b"{}", number) for number, topic in enumerate(SENT, 1)))
    await window.until(lambda: len(window.pubacks) == len(SENT))
    await claimant.link.settle()

    assert claimant.link.received == []
    await claimant.link.end()
    await window.end()


@pytest.mark.parametrize("client", ["+", "#", "a+b", "+/+", "~", "%c", "%u", "a/b", "", "é", "0" * 31, "A" * 32])
async def test_a_client_id_gives_no_more(estate: EnrollingEstate, honest: Callable[[], Any], client: str) -> None:
    """One with a wildcard would match all in an access list's pattern; one that is not ours is not answered."""
    claimant = await Claimant.open(estate, client)
    claimant.link.send(subscribe(2, f"{BASE}/~/enrolled/{'1' * 32}", f"{BASE}/~/enrolled/#", f"{BASE}/~/enrolled/+/+"))
    window = await Raw.open(estate.windows["hall"], None, connect(secrets.token_hex(8)))
    await claimant.link.settle()
    window.send(publish(f"{BASE}/~/enrolled/{'1' * 32}", b"{}", 1))
    await window.until(lambda: window.pubacks)
    if client not in ("+", "#", "a+b", "+/+", ""):
        claimant.link.send(publish(f"{BASE}/~/enrol/{client}", b"{}"))
    await claimant.link.settle()

    assert claimant.link.received == []
    await claimant.link.end()
    await window.end()


class Forged(NamedTuple):
    """A request that must be refused for a reason."""

    name: str
    reason: str
    make: Callable[[EnrollingEstate, Machine], bytes]


def with_claim(**options: Any) -> Callable[[EnrollingEstate, Machine], bytes]:
    return lambda estate, machine: machine.request(estate.add_claim(**options))


def changed(**changes: Any) -> Callable[[EnrollingEstate, Machine], bytes]:
    return lambda estate, machine: machine.request(estate.add_claim(), **changes)


def saying(**says: str) -> Callable[[EnrollingEstate, Machine], bytes]:
    return lambda estate, machine: machine.request(estate.add_claim(), says=says)


def used_up(estate: EnrollingEstate, machine: Machine) -> bytes:
    """A claim that its machine has used: a thief who copied the token comes too late."""
    claim = estate.add_claim(uses=0)
    return machine.request(claim)


def of_another(estate: EnrollingEstate, machine: Machine) -> bytes:
    """A request that was captured, sent again by another client."""
    return Machine().request(estate.add_claim())


def enveloped(
    change: Callable[[dict[str, Any], Machine], dict[str, Any]],
) -> Callable[[EnrollingEstate, Machine], bytes]:
    return lambda estate, machine: orjson.dumps(change(orjson.loads(machine.request(estate.add_claim())), machine))


def guessed(estate: EnrollingEstate, machine: Machine) -> bytes:
    claim = estate.add_claim()
    guess = Claim(claim.id, claim.region, claim.site, claim.broker, claim.root, secrets.token_bytes(32))
    return machine.request(guess)


def renamed(estate: EnrollingEstate, machine: Machine) -> bytes:
    """The claim's id replaced by one that lives, the signature by that of the claim at hand."""
    mine, other = estate.add_claim(revoked=True), estate.add_claim()
    return machine.request(mine, claim=other.id)


def rsa_key(estate: EnrollingEstate, machine: Machine) -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return machine.request(estate.add_claim(), csr=machine.csr(key))


def other_curve(estate: EnrollingEstate, machine: Machine) -> bytes:
    return machine.request(estate.add_claim(), csr=machine.csr(ec.generate_private_key(ec.SECP384R1())))


def anothers_key(estate: EnrollingEstate, machine: Machine) -> bytes:
    """Another's request for a certificate, of whose key it has no private half."""
    return machine.request(estate.add_claim(), csr=Machine().csr())


def certified(**how: Any) -> Callable[[EnrollingEstate, Machine], bytes]:
    return lambda _, machine: MAKER.request(machine, **how)


def used_certificate(estate: EnrollingEstate, machine: Machine) -> bytes:
    """The machine of this certificate has asked already; a copy of its key comes too late."""
    if "maker:SN-1" not in {one.claim for one in estate.machines().values()}:
        estate.add_machine(Machine(), "maker:SN-1")
    return MAKER.request(machine, device=GENUINE)


def captured_certificate(estate: EnrollingEstate, machine: Machine) -> bytes:
    """Certificate and signature of another machine's request, beside the thief's own body and key."""
    genuine, own = orjson.loads(MAKER.request(Machine())), orjson.loads(machine.request(None))
    return orjson.dumps(own | {name: genuine[name] for name in ("maker", "certificates")})


def claim_and_stranger(estate: EnrollingEstate, machine: Machine) -> bytes:
    """A good claim does not help a certificate that proves nothing."""
    shown = orjson.loads(STRANGER.request(machine))["certificates"]
    return orjson.dumps(orjson.loads(machine.request(estate.add_claim())) | {"certificates": shown})


def by_a_machine(estate: EnrollingEstate, machine: Machine) -> bytes:
    """A genuine machine certifies others."""
    return MAKER.request(machine, "SN-2", by=GENUINE[::-1], chain=[GENUINE[1]])


def by_the_region(estate: EnrollingEstate, machine: Machine) -> bytes:
    """A certificate of the region itself, which every node has, with its key not held."""
    node = estate.pki.authority("hall").certificate()
    return asks(machine, new_key(), [node])


def changed_body(envelope: dict[str, Any], machine: Machine) -> dict[str, Any]:
    return envelope | {"body": envelope["body"].replace('"gw"', '"gx"')}


REQUESTS = [
    Forged("a-claim-used-up", "claim-used", used_up),
    Forged("an-expired-claim", "claim-expired", with_claim(hours=-0.1)),
    Forged("a-revoked-claim", "claim-revoked", with_claim(revoked=True)),
    Forged("a-claim-of-another-site", "claim-of-another-site", with_claim(site="yard")),
    Forged("a-guessed-key-of-a-claim", "no-claim", guessed),
    Forged("no-claim", "no-claim", lambda _, machine: machine.request(None)),
    Forged("an-unknown-claim", "no-claim", changed(claim="0" * 16)),
    Forged("another-claims-id", "no-claim", renamed),
    Forged("a-captured-request", "another-client", of_another),
    Forged("another-site-in-the-body", "another-client", changed(site="yard")),
    Forged("another-region-in-the-body", "another-client", changed(region="south")),
    Forged("another-key", "bad-proof", anothers_key),
    Forged("an-rsa-key", "bad-key", rsa_key),
    Forged("another-curve", "bad-key", other_curve),
    Forged("a-changed-body", "bad-proof", enveloped(changed_body)),
    Forged("an-empty-proof", "bad-proof", enveloped(lambda one, _: one | {"proof": ""})),
    Forged("a-proof-that-is-not-base64", "bad-request", enveloped(lambda one, _: one | {"proof": "%%%"})),
    Forged("a-claims-proof-as-ones-own", "no-claim", enveloped(lambda one, _: one | {"claim": one["proof"]})),
    Forged("an-unknown-manufacturer", "bad-request", enveloped(lambda one, _: one | {"certificates": ["AAAA"]})),
    Forged("too-many-certificates", "bad-request", enveloped(lambda one, _: one | {"certificates": ["AAAA"] * 99})),
    Forged("a-certificate-of-another-manufacturer", "unknown-manufacturer", lambda _, machine: STRANGER.request(machine)),
    Forged("a-certificate-that-expired", "certificate-expired", certified(ends=timedelta(hours=-1))),
    Forged("a-certificate-not-yet-valid", "certificate-expired", certified(begins=timedelta(hours=1))),
    Forged("a-certificate-whose-key-is-not-held", "bad-proof", lambda _, machine: asks(machine, new_key(), [GENUINE[1]])),
    Forged("a-certificate-of-a-machine-that-has-asked", "certificate-used", used_certificate),
    Forged("a-certificate-of-a-captured-request", "bad-proof", captured_certificate),
    Forged("a-certificate-signed-by-a-machine", "unknown-manufacturer", by_a_machine),
    Forged("a-certificate-of-the-manufacturer-itself", "unknown-manufacturer", lambda _, machine: asks(machine, MAKER.key, [MAKER.root])),
    Forged("a-certificate-of-the-regions-authority", "unknown-manufacturer", by_the_region),
    Forged("a-claim-beside-a-strangers-certificate", "unknown-manufacturer", claim_and_stranger),
    Forged("a-request-with-a-certificate-of-another-client", "another-client", lambda *_: MAKER.request(Machine(), device=GENUINE)),
    Forged("an-unknown-field", "bad-request", enveloped(lambda one, _: one | {"state": "approved"})),
    Forged("a-body-that-is-a-map", "bad-request", enveloped(lambda one, _: one | {"body": {}})),
    Forged("a-csr-that-is-not-one", "bad-request", changed(csr="-----BEGIN")),
    Forged("a-huge-csr", "bad-request", changed(csr="A" * 5000)),
    Forged("escape-sequences", "bad-request", saying(hostname="\x1b[2J\x1b[31mok")),
    Forged("a-line-feed", "bad-request", saying(hostname="gw\napproved by anna")),
    Forged("a-right-to-left-override", "bad-request", saying(serial="\u202e1234")),
    Forged("a-nul", "bad-request", saying(model="\0")),
    Forged("a-byte-order-mark", "bad-request", saying(model="\ufeffx")),
    Forged("a-hostile-name-of-a-fact", "bad-request", saying(**{"host\nname": "x"})),
    Forged("a-long-text", "bad-request", saying(hostname="x" * 500)),
    Forged("many-facts", "bad-request", saying(**{f"fact{number}": "x" for number in range(100)})),
    Forged("a-huge-request", "bad-request", lambda *_: b" " * 20_000),
    Forged("a-request-of-300-kB", "bad-request", lambda *_: b"[" * 300_000),
    Forged("nothing", "bad-request", lambda *_: b""),
    Forged("deep-lists", "bad-request", lambda *_: b"[" * 16_000),
    Forged("not-utf-8", "bad-request", lambda *_: b"\xff\xfe{}"),
    Forged("a-lone-surrogate", "bad-request", lambda *_: b'{"body": "\\ud800", "proof": ""}'),
    Forged("duplicate-keys", "bad-proof", lambda estate, machine: machine.request(estate.add_claim())[:-1] + b',"proof":"AA=="}'),
    Forged("a-large-number", "bad-request", lambda *_: b'{"body": 1' + b"0" * 10_000 + b"}"),
]  # fmt: skip


@pytest.mark.parametrize("one", REQUESTS, ids=lambda one: one.name)
async def test_a_request_is_refused_and_counted_and_leaves_nothing(
    estate: EnrollingEstate, honest: Callable[[], Any], one: Forged
) -> None:
    machine = Machine()
    payload = one.make(estate, machine)
    before, known = estate.counts.get(one.reason, 0), set(estate.machines())
    claimant = await Claimant.open(estate, machine.client)
    claimant.link.send(publish(f"{BASE}/~/enrol/{machine.client}", payload))
    await asyncio.to_thread(until, lambda: estate.counts.get(one.reason, 0) > before, lambda: estate.counts)

    await claimant.link.settle()
    answers = [read_answer(payload) for _, payload in claimant.link.received]
    assert [(answer.state, answer.code, answer.grant) for answer in answers] in ([], [("refused", one.reason, "")])
    assert set(estate.machines()) == known
    await claimant.link.end()


async def test_a_flood_is_dropped_and_others_are_answered(estate: EnrollingEstate, honest: Callable[[], Any]) -> None:
    """Of one client, more than its site may ask; QoS 0, so the broker holds nothing."""
    machine = Machine()
    payload = machine.request(None)
    claimant = await Claimant.open(estate, machine.client)
    before = estate.counts.get("too-many-requests", 0)
    for _ in range(3):
        claimant.link.send(*(publish(f"{BASE}/~/enrol/{machine.client}", payload) for _ in range(500)))
        await claimant.link.settle()
    await asyncio.to_thread(until, lambda: estate.counts.get("too-many-requests", 0) > before, lambda: estate.counts)
    await claimant.link.end()


async def test_a_thief_of_a_used_claim_shows_and_gets_nothing(estate: EnrollingEstate) -> None:
    """The token is stolen before its machine asks: the thief is pending, the owner is told that the claim is used."""
    claim, thief, owner = estate.add_claim(), Machine(), Machine()
    for machine, state in ((thief, "pending"), (owner, "refused"), (thief, "pending")):
        claimant = await Claimant.open(estate, machine.client)
        answer = await claimant.ask(machine.request(claim))
        assert (answer.state, answer.grant) == (state, "")
        await claimant.link.end()
    assert answer.code == "pending"
    assert estate.machines()[thief.fingerprint].claim == claim.id
    assert owner.fingerprint not in estate.machines()


@pytest.mark.parametrize("authority", ["hall", "region"])
async def test_a_pending_machine_gets_no_further_than_tls_elsewhere(estate: EnrollingEstate, authority: str) -> None:
    broker = "hall" if authority == "hall" else "north"
    trusting = ssl.create_default_context(cafile=estate.folder / "pki/root.crt")
    link = await Raw.open(estate.port(broker), trusting, connect("x"))

    assert link.closed
    assert not link.connack
    await link.end()


async def test_more_pending_machines_than_a_site_may_have_are_refused(estate: EnrollingEstate) -> None:
    claim = estate.add_claim(uses=1000)
    codes = []
    for _ in range(60):
        machine = Machine()
        claimant = await Claimant.open(estate, machine.client)
        codes.append((await claimant.ask(machine.request(claim))).code)
        await claimant.link.end()
        if codes[-1] != "pending":
            break
    pending = len(estate.machines("pending"))
    with estate.database(alongside=True) as database:  # other tests need their room
        database.run("DELETE FROM enrolment WHERE claim = ?", (claim.id,))
    assert codes[-1] == "too-many-pending"
    assert pending == 20


async def test_all_that_was_refused_is_told_in_the_regions_status(estate: EnrollingEstate) -> None:
    """One of each reason."""
    by_reason = {one.reason: one for one in REQUESTS}
    for one in by_reason.values():
        machine = Machine()
        claimant = await Claimant.open(estate, machine.client)
        claimant.link.send(publish(f"{BASE}/~/enrol/{machine.client}", one.make(estate, machine)))
        await claimant.link.settle()
        await claimant.link.end()
    expected = {("hall", f"enrolment-{reason}") for reason in by_reason}

    await asyncio.to_thread(until, lambda: expected <= set(estate.refused()), lambda: expected - set(estate.refused()))
