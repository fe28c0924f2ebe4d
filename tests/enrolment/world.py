"""A registrar with a store, authorities and places, and machines that ask it without a broker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.enrolment.machines import Machine

from hedgerow.enrolment import enrol as enrolling
from hedgerow.enrolment.answer import Answer, read_answer
from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.folder import Enrolment
from hedgerow.enrolment.places import Place, Places, PlacesOfSite
from hedgerow.enrolment.request import EnrolmentRefused
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import Identity, IdentityKind
from hedgerow.region.config import RegionConfig
from hedgerow.region.enrolment.handlers import ACTIONS, EnrolmentOperation
from hedgerow.region.enrolment.registrar import Registrar
from hedgerow.region.enrolment.store import EnrolmentStore, StoredMachine
from hedgerow.region.store.audit import Actor
from hedgerow.region.store.database.database import Database
from hedgerow.region.store.database.open import open_database

NODE = """\
node: {{region: north, site: {site}, name: {name}, state_dir: /var/lib/x, labels: {{floor: "1"}}}}
broker: {{url: "mqtts://broker.lan:8883", tls: {{ca_file: /x, cert_file: /y, key_file: /z}}}}
pipelines: {{doors: {{subscribe: plant/1/door, stages: [parse]}}}}
"""


class World:
    """A region with the sites hall (places a, b, c) and yard (d).

    Args:
        folder: for its files.
        url: of its store.
        enrolment: settings of the section `enrolment`.
    """

    def __init__(self, folder: Path, url: str, **enrolment: Any) -> None:
        self.folder = folder
        self.pki = Pki(folder / "pki", lambda: datetime.now(UTC))
        self.pki.init("north", ["hall", "yard"])
        self.pki.issue(Identity(IdentityKind.SERVICE, "region", "collector"), timedelta(days=1))
        sites = {"hall": "abc", "yard": "d"}
        places = Places(
            region="north",
            sites={
                site: PlacesOfSite(
                    broker="mqtts://broker.lan:8884",
                    nodes={name: Place(configuration=NODE.format(site=site, name=name)) for name in names},
                )
                for site, names in sites.items()
            },
        )
        (folder / "places.json").write_text("# header\n" + places.encode())
        trust = folder / "pki/region/issued/collector/trust.crt"
        self.config = RegionConfig.model_validate(
            {
                "region": {"name": "north"},
                "broker": {"url": "mqtts://broker.lan:8883", "tls": {"ca_file": trust}},
                "store": {"url": url},
                "enrolment": {"places": folder / "places.json", **enrolment},
            }
        )
        open_database(url, write=True).close()  # creates it
        self.database: Database = open_database(url, write=False, alongside=True)
        self.database.lead(0)
        self.now = time.time()

    @property
    def registrar(self) -> Registrar:
        return Registrar(self.database, "north", self.config.enrolment)

    @property
    def store(self) -> EnrolmentStore:
        return EnrolmentStore(self.database)

    def close(self) -> None:
        self.database.close()

    def request(self, verb: str, *, who: str = "anna", why: str = "", **args: Any) -> Any:
        """Handle an operator's request, in a transaction as the service does."""
        with self.database.transaction():
            return ACTIONS[verb](EnrolmentOperation(self.database, self.config, args, Actor(who, why), self.now))

    def claim(
        self, site: str = "hall", *, place: str | None = None, uses: int = 1, hours: float = 1.0, **labels: str
    ) -> Claim:
        made = Claim.new("north", site, "mqtts://broker.lan:8884", self.pki.root.certificate())
        self.request(
            "claim-create",
            id=made.id,
            site=site,
            place=place,
            public_key=made.public.hex(),
            uses=uses,
            hours=hours,
            labels=labels,
        )
        return made

    def approve(self, machine: str, place: str | None = None) -> Any:
        return self.request("node-approve", machine=machine, place=place)

    def answer(self, payload: bytes, client: str, site: str = "hall") -> Answer:
        """Ask the registrar, as its service does."""
        try:
            made = self.registrar.answer(site, client, payload, self.now)
        except EnrolmentRefused as error:
            made = Answer(state="refused", code=error.code, detail=str(error))
        return read_answer(made.encode())

    def ask(self, machine: Machine, claim: Claim | None, site: str = "hall", **changes: Any) -> Answer:
        return self.answer(machine.request(claim, site=site, **changes), machine.client, site)

    def machines(self, state: str | None = None) -> list[StoredMachine]:
        return self.store.machines(state)

    def actions(self) -> list[str]:
        """Return the audit log's actions, oldest first."""
        return [action for (action,) in self.database.rows("SELECT action FROM audit ORDER BY ingest")]

    def connect(self, patch: Any, approves: Iterable[str] = ()) -> None:
        """Let `enrol` ask this registrar; pending machines are approved as they ask, if `approves` is not empty."""

        async def ask(
            enrolment: Enrolment, root_file: Path, payload: bytes, told: Any, *, once: bool
        ) -> AsyncIterator[Answer]:
            while True:
                answer = self.answer(payload, enrolment.client, enrolment.site)
                yield answer
                if answer.state != "pending" or once:
                    return
                for machine in self.machines("pending"):
                    self.approve(machine.fingerprint)

        patch.setattr(enrolling, "ask_until_decided", ask)


def opened(url: str) -> closing[Database]:
    return closing(open_database(url, write=False))
