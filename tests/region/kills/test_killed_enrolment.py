"""`hedgerow enrol` and `node approve`, killed with SIGKILL at any step; and the region's service, at any step of an answer."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from ruamel.yaml import YAML
from tests.enrolment.estate import TOPOLOGY, EnrollingEstate
from tests.region.conftest import PATIENCE_S, eventually
from tests.region.kills.fleet import rows
from tests.region.kills.forks import Command, Forks, spread
from tests.region.kills.test_killed_life import differences, together
from tests.topology.conftest import prepare

from hedgerow.topics import Address, Channel

PLACES = 150
_ANSWERING = "hedgerow.region.enrolment.registrar:read_request"


class KilledEstate(EnrollingEstate):
    """Real brokers with listeners for machines that enrol, and the region's service as a process that is killed."""

    service: Command | None = None
    expected: Any = None

    def configure_for(self, url: str | None) -> None:
        self.forks = Forks(self.folder)
        yaml = YAML(typ="safe")
        document = yaml.load(self.region_file)
        document["enrolment"] |= {
            "pki": "../../../pki",
            "requests_per_s": 200,
            "rules": [{"name": "batch", "labels": "batch=7", "count": PLACES}],
        }
        document |= {"metrics": {"enabled": False}, "ping": {"every_s": None}}
        if url is not None:
            document["store"] = {"url": url}
        yaml.dump(document, self.region_file)
        self.url = self.config.store.url

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return rows(self.url, sql, *values)

    def serve(self, kill_at: int | None = None, armed_by: str = "") -> Command:
        """Start the service, unless it runs, and wait until it collects."""
        if self.service is None or self.service.ended is not None or armed_by:
            self.end_service()
            self.service = self.forks.start("region", "run", self.region_file, kill_at=kill_at, armed_by=armed_by)
            deadline = time.monotonic() + PATIENCE_S
            while "broker-connected" not in self.service.err + self.service.out:
                assert self.service.ended is None, self.service.err
                assert time.monotonic() < deadline, self.service.err
                time.sleep(0.01)
        return self.service

    def end_service(self) -> None:
        if self.service is not None and self.service.ended is None:
            self.service.end()

    def close(self) -> None:
        self.forks.close()
        super().close()


class KilledMachine:
    """A machine that enrols, and the claim it has.

    Args:
        labels: of the claim; a rule approves some.
    """

    def __init__(self, estate: KilledEstate, **labels: str) -> None:
        self.estate = estate
        self.claim = estate.add_claim(**labels)
        self.state = estate.folder / f"machine-{self.claim.id}"
        self.token = estate.folder / f"claim-{self.claim.id}.txt"
        self.token.write_text(self.claim.token())

    def enrol(self, *more: str, kill_at: int | None = None) -> Command:
        """Start `hedgerow enrol`, with the token only if the machine has not asked yet."""
        token = [] if self.asked else [str(self.token)]
        return self.estate.forks.start("enrol", *token, "--state", self.state, "--json", *more, kill_at=kill_at)

    def approve(self, kill_at: int | None = None) -> Command:
        folder, config = self.estate.folder / "pki", self.estate.region_file
        return self.estate.forks.start(
            "node", "approve", self.fingerprint, "--folder", folder, "--config", config, "--json", kill_at=kill_at
        )

    @property
    def fingerprint(self) -> str:
        key = load_pem_private_key((self.state / "tls/tls.key").read_bytes(), None).public_key()
        digest = hashes.Hash(hashes.SHA256())
        digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        return digest.finalize().hex()

    @property
    def row(self) -> tuple[Any, ...] | None:
        """What the store has of it: fingerprint, state and place."""
        found = self.estate.rows("SELECT fingerprint, state, node FROM enrolment WHERE claim = ?", self.claim.id)
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def asked(self) -> bool:
        return self.row is not None

    def check(self) -> None:
        """Check that there is a whole node or none, and a use of the claim if the store has the machine, else none."""
        ((used,),) = self.estate.rows("SELECT used FROM claim WHERE id = ?", self.claim.id)
        assert used == int(self.asked)
        if self.row is not None:
            assert self.row[0] == self.fingerprint
        if (self.state / "node.yaml").exists():
            self.node()

    def node(self) -> str:
        """Read the node's files; return its name."""
        assert self.row is not None
        config = YAML(typ="safe").load(self.state / "node.yaml")
        tls = self.state / "tls"
        own, authority = x509.load_pem_x509_certificates((tls / "tls.crt").read_bytes())
        assert load_pem_private_key((tls / "tls.key").read_bytes(), None).public_key() == own.public_key()
        assert authority in x509.load_pem_x509_certificates((tls / "trust.crt").read_bytes())
        own.verify_directly_issued_by(authority)
        (named,) = own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        name = config["node"]["name"]
        assert (named.value, self.row[1:]) == (f"hall/{name}", ("approved", name))
        assert config["broker"]["tls"]["key_file"] == "tls/tls.key"
        assert json.loads((self.state / "grant.json").read_bytes())["signature"]
        return str(name)

    async def finish(self) -> None:
        """The next call finishes it: the node can connect, and all is as after an uninterrupted call."""
        await asyncio.to_thread(self.estate.serve)
        enrolled = self.enrol()
        await asyncio.to_thread(enrolled.finish)
        self.check()
        name = self.node()
        context = ssl.create_default_context(cafile=self.state / "tls/trust.crt")
        context.load_cert_chain(self.state / "tls/tls.crt", self.state / "tls/tls.key")
        async with aiomqtt.Client(
            "localhost", self.estate.port("hall"), tls_context=context, identifier=name, timeout=PATIENCE_S
        ):
            pass
        config = YAML(typ="safe").load(self.state / "node.yaml")
        del config["node"]["name"], config["node"]["labels"]
        state = {
            "files": sorted(str(path.relative_to(self.state)) for path in self.state.rglob("*")),
            "modes": sorted((path.name, path.stat().st_mode) for path in self.state.rglob("*")),
            "configuration": config,
            "issued": sorted(path.name for path in (self.estate.folder / "pki/hall/issued" / name).iterdir()),
        }
        self.estate.expected = self.estate.expected or state
        assert not [*differences(state, self.estate.expected)]


@pytest.fixture(scope="module", params=[pytest.param("sqlite", marks=pytest.mark.slow), "postgres"])
def estate(request: pytest.FixtureRequest) -> Iterator[KilledEstate]:
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    made = prepare(
        folder, TOPOLOGY.replace("{NODES}", f"[{', '.join(f'n{number}' for number in range(PLACES))}]"), KilledEstate
    )
    assert isinstance(made, KilledEstate)
    try:
        url = None if request.param == "sqlite" else request.getfixturevalue("postgres").database()
        made.configure_for(url)
        for name in ("north", "hall"):
            made.start(name)
        made.serve()
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


async def learn(estate: KilledEstate) -> int:
    """Enrol a machine uninterrupted. Returns: the number of steps."""
    machine = await asyncio.to_thread(KilledMachine, estate, batch="7")
    await asyncio.to_thread(estate.serve)
    command = machine.enrol()
    await asyncio.to_thread(command.finish)
    await machine.finish()
    return len(command.steps)


@pytest.mark.parametrize("kills", [pytest.param(8, marks=pytest.mark.long), pytest.param(55, marks=pytest.mark.slow)])
async def test_enrol_killed_at_any_step_goes_on(estate: KilledEstate, kills: int) -> None:
    steps = await learn(estate)

    async def kill(step: int) -> None:
        machine = await asyncio.to_thread(KilledMachine, estate, batch="7")
        killed = machine.enrol(kill_at=step)
        await asyncio.to_thread(killed.die, step)
        try:
            machine.check()
            await machine.finish()
        except BaseException as error:
            error.add_note(f"killed at step {step}: {killed.steps[-1]}")
            raise

    await together(kill, spread(steps, kills))


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.long), pytest.param(20, marks=pytest.mark.slow)])
async def test_an_approval_killed_at_any_step_is_finished_by_the_next(estate: KilledEstate, kills: int) -> None:
    await learn(estate)

    async def approve(step: int) -> int:
        machine = await asyncio.to_thread(KilledMachine, estate)
        asking = machine.enrol()
        await eventually(lambda: machine.asked, lambda: asking.err)
        asking.kill()
        killed = machine.approve(step or None)
        try:
            await (asyncio.to_thread(killed.die, step) if step else asyncio.to_thread(killed.finish))
            machine.check()
            if step:
                again = machine.approve()
                await asyncio.to_thread(again.finish)
            await machine.finish()
        except BaseException as error:
            error.add_note(f"killed at step {step}: {killed.steps[-1]}")
            raise
        return len(killed.steps)

    steps = await approve(0)
    for step in spread(steps, kills):
        await approve(step)


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.long), pytest.param(25, marks=pytest.mark.slow)])
async def test_a_service_killed_at_any_step_of_an_answer_leaves_one_of_two_states(
    estate: KilledEstate, kills: int
) -> None:
    await learn(estate)

    async def answer(step: int) -> int:
        machine = await asyncio.to_thread(KilledMachine, estate, batch="7")
        service = await asyncio.to_thread(estate.serve, step or None, _ANSWERING)
        asking = machine.enrol()
        if step:
            try:
                assert await asyncio.to_thread(service.wait) == -signal.SIGKILL, service.err
                asking.kill()
                machine.check()
                await machine.finish()
            except BaseException as error:
                error.add_note(f"the service killed at step {step}: {service.steps[-1:]}")
                raise
        else:
            await asyncio.to_thread(asking.finish)
        return len(service.steps)

    steps = await answer(0)
    for step in spread(steps, kills):
        await answer(step)


@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.long), pytest.param(12, marks=pytest.mark.slow)])
async def test_a_node_killed_at_any_step_of_its_first_start_comes_up_and_its_results_arrive_once(
    estate: KilledEstate, kills: int
) -> None:
    async def start(step: int) -> int:
        """Start a new node, and kill it at a step. Returns: the steps until it is online, if it is not killed."""
        machine = await asyncio.to_thread(KilledMachine, estate, batch="7")
        await machine.finish()
        name = machine.node()
        status = Address("north", "hall", name).topic(Channel.STATUS)
        killed = estate.forks.start("node", "run", machine.state / "node.yaml", kill_at=step or None)
        if step:
            assert await asyncio.to_thread(killed.wait) == -signal.SIGKILL, killed.err
        async with estate.window("hall") as window:
            node = estate.forks.start("node", "run", machine.state / "node.yaml") if step else killed
            await window.until(lambda: any(topic == status and '"online"' in said for topic, said in window.seen))
            await eventually(lambda: '"node-started"' in node.err + node.out)  # now it is subscribed
            steps = len(node.steps)
        async with estate.client("hall", "hall", "camera") as camera:
            for number in range(3):
                await camera.publish("plant/1/door", f"[{number}]".encode(), qos=1)
        stored = "SELECT r.payload FROM result r JOIN node n ON n.id = r.node WHERE n.name = ?"
        await eventually(lambda: len(estate.rows(stored, name)) >= 3, lambda: node.err)
        await asyncio.to_thread(node.end)
        frames = [json.loads(bytes(payload))["frame"]["sequence"] for (payload,) in estate.rows(stored, name)]
        assert len(frames) == len(set(frames)) == 3
        return steps

    steps = await start(0)
    for step in spread(steps * 9 // 10, kills):  # it may need fewer, and then runs on
        await start(step)
