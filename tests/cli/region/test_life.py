"""`hedgerow node forget|admit|rename|move|replace`, on a real store with a simulated region, a real PKI and a real topology."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.enrolment.machines import Machine
from tests.region.rollouts.life.test_rename import come_up
from tests.region.world import World
from typer.testing import CliRunner

from hedgerow.cli.main import app
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse
from hedgerow.topics import Address
from hedgerow.topology.load import load_alone

A, NEW = Address("test", "s0", "n000"), Address("test", "s0", "entrance")
TOPOLOGY = """\
# Our plant.
region: {name: test, broker: mqtt.test.lan}
sites:
  s0:
    broker: broker.s0.lan  # in the cellar
    nodes: [n000, n002]
  s1:
    broker: broker.s1.lan
    nodes:
      # the strong one
      n001:
        override: {log: {level: debug}}
      n003:
"""


class Desk:
    """An operator's command line, a simulated region, its certificates and its topology."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.pki = Pki(folder / "pki", lambda: datetime.now(UTC))
        self.pki.init("test", ["s0", "s1"])
        self.topology = folder / "topology.yaml"
        self.topology.write_text(TOPOLOGY)

    def run(self, *args: str) -> Any:
        """Run a command with --json; return what it prints."""
        code, out = self.say(*args, "--why", "a test", "--json")
        assert code == 0, out
        return json.loads(out)

    def run_nodes(self, *args: str) -> Any:
        command = ["nodes", *args, "--json", "--store", self.world.url]
        return json.loads(CliRunner().invoke(app, command, prog_name="hedgerow").stdout)

    def say(self, *args: str) -> tuple[int, str]:
        """Run a command; return its exit code and what it prints."""
        command = ["node", *args, "--store", self.world.url]
        with ThreadPoolExecutor(1) as operator:
            done = operator.submit(CliRunner().invoke, app, command, prog_name="hedgerow", terminal_width=200)
            while not done.done():
                self.world.beat()
                if self.world.request_open():
                    self.world.turn()
                time.sleep(0.005)
        return done.result().exit_code, done.result().output

    def files(self) -> list[str]:
        return ["--pki", str(self.pki.folder), "--topology", str(self.topology)]

    def valid(self, who: str) -> bool:
        """Whether an identity has a valid certificate."""
        entry = self.pki.find(parse(who))
        return entry is not None and entry.revoked is None

    def nodes(self, site: str) -> list[str]:
        return list(load_alone(self.topology).sites[site].nodes)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with World(str(tmp_path / "region.db"), 4, began=time.time() - 5000) as world:
        yield Desk(world, tmp_path)


def test_a_node_is_renamed_with_its_certificate_and_in_the_topology(desk: Desk) -> None:
    rename = ["rename", "s0/n000", "entrance"]
    assert "test/s0/n000 would become test/s0/entrance" in desk.say(*rename, "--dry-run")[1]
    told = desk.run(*rename)
    assert "hedgerow pki issue s0/entrance" in told["left"]
    assert "in the topology: rename n000 to entrance in the nodes of s0" in told["left"]
    desk.world.nodes[A].online = False
    for again in range(2):  # the operator's machine may have died anywhere in between
        done = desk.run(*rename, *desk.files())
        assert (done["already"], done["seen"], desk.valid("s0/entrance"), desk.nodes("s0")) == (
            True,
            False,
            True,
            ["entrance", "n002"],
        )
        assert ("it is so already" in str(done["done"])) == bool(again)
    listed = desk.pki.home(parse("s0/entrance")) / "trust.crl"
    listed.unlink()  # as if the command had been killed before it wrote it
    desk.run(*rename, *desk.files())
    assert listed.exists()
    desk.world.nodes[A].online = True
    come_up(desk.world, A, NEW)
    done = desk.run(*rename, *desk.files())
    assert done["seen"]
    assert "copy to the brokers" in str(done["left"])
    assert "# in the cellar" in desk.topology.read_text()
    code, out = desk.say("show", "n000")
    assert (code != 0, "it is test/s0/entrance now" in out) == (True, True)
    assert "formerly" in desk.say("show", "entrance")[1]


def test_a_node_moves_to_another_site(desk: Desk) -> None:
    code, out = desk.say("move", "n001", "s9", "--why", "a test")
    assert (code != 0, "--new-site" in out) == (True, True)
    done = desk.run("move", "n001", "s0", "--name", "strong", *desk.files())
    assert "a list of names" in str(done["left"])  # its settings would be lost; nothing is changed
    assert desk.topology.read_text() == TOPOLOGY
    desk.run("move", "n002", "s1", *desk.files())
    assert (desk.nodes("s0"), desk.nodes("s1"), desk.valid("s1/n002")) == (["n000"], ["n001", "n003", "n002"], True)
    assert "# the strong one" in desk.topology.read_text()


def test_a_replaced_machine_gets_a_new_key_and_the_old_one_is_revoked(desk: Desk) -> None:
    assert desk.say("replace", "n000", "--dry-run")[0] == 0
    desk.run("replace", "n000", "--pki", str(desk.pki.folder))
    first = desk.pki.find(parse("s0/n000"))
    desk.run("replace", "n000", "--pki", str(desk.pki.folder))
    second = desk.pki.find(parse("s0/n000"))
    assert first is not None
    assert second is not None
    assert (first.serial != second.serial, second.revoked) == (True, None)
    assert len(desk.pki.authority("s0").revoked()) == 1
    code, out = desk.say("replace", "n000")
    assert (code != 0, "--why" in out) == (True, True)


def test_a_replaced_machine_that_enrolled_makes_way_for_one_that_enrols(desk: Desk) -> None:
    """No certificate is issued for a key made elsewhere: it would keep the new machine from getting its own."""
    who, life = parse("s0/n000"), timedelta(days=30)
    old, new = (x509.load_pem_x509_csr(Machine().csr().encode()) for _ in range(2))
    desk.pki.certify(who, old, life)
    for _ in range(2):  # the operator's machine may have died anywhere in between
        done = desk.run("replace", "n000", "--pki", str(desk.pki.folder))
        assert "hedgerow claim create s0 --place n000" in str(done["left"])
        assert not desk.valid("s0/n000")
    assert "hedgerow claim create s0 --place n000" in str(desk.run("replace", "n000")["left"])

    desk.pki.certify(who, new, life)
    assert desk.valid("s0/n000")


@pytest.mark.parametrize(
    ("verb", "who", "told"),
    [
        pytest.param(["rename", "n000", "entrance"], "s0/entrance", "hedgerow enrol --state DIR", id="rename"),
        pytest.param(["move", "n000", "s1"], "s1/n000", "hedgerow claim create s1 --place n000", id="move"),
    ],
)
def test_a_machine_that_enrolled_gets_its_next_certificate_for_its_own_key(
    desk: Desk, verb: list[str], who: str, told: str
) -> None:
    csr, life = x509.load_pem_x509_csr(Machine().csr().encode()), timedelta(days=30)
    desk.pki.certify(parse("s0/n000"), csr, life)
    assert told in str(desk.run(*verb, "--pki", str(desk.pki.folder))["left"])

    desk.pki.certify(parse(who), csr, life)  # as approving it does
    assert desk.valid(who)


def test_a_node_is_forgotten_with_its_certificate_and_admitted_again(desk: Desk) -> None:
    desk.run("replace", "n000", "--pki", str(desk.pki.folder))
    assert "hedgerow pki revoke s0/n000" in str(desk.run("forget", "n000", "--dry-run")["left"])
    assert "n000" in desk.nodes("s0")
    assert desk.valid("s0/n000")
    desk.run("forget", "n000")
    done = desk.run("forget", "n000", *desk.files())  # repeated, with what was left to do
    assert (done["already"], desk.valid("s0/n000"), desk.nodes("s0")) == (True, False, ["n002"])
    assert "was forgotten already" in desk.say("forget", "n000", *desk.files(), "--why", "again")[1]
    left = desk.run("forget", "n002", *desk.files())["left"]
    assert "the only node of the site s0" in str(left)
    assert [one["node"] for one in desk.run_nodes("--forgotten")] == ["test/s0/n000", "test/s0/n002"]
    assert desk.run("admit", "n000")["admitted"]
    assert desk.run("admit", "test/s0/n000")["already"]
