"""Processor time of enrolments: of the region that decides about a machine and signs for it, and of the machine that asks.

The registrar runs as in the region's service, with a store in SQLite and a folder of certificates; each enrolment is approved by a rule.
Messages are handed over in memory: what a broker, TLS and MQTT cost is in other benchmarks. Where the disk is slow, an enrolment takes
longer than its processor time, since it waits until its files and its transaction are on disk.
"""

from __future__ import annotations

import re
import secrets
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.harness.cells import Cell, Options, cell
from hedgerow.enrolment.claim import Claim
from hedgerow.enrolment.grant import verify_grant
from hedgerow.enrolment.places import Place, Places, PlacesOfSite
from hedgerow.enrolment.request import RequestBody, encode_request
from hedgerow.enrolment.token_keys import request_of
from hedgerow.pki.folder import Pki
from hedgerow.region.config import EnrolmentSection
from hedgerow.region.enrolment.registrar import Registrar
from hedgerow.region.enrolment.store import EnrolmentStore, StoredClaim
from hedgerow.region.store.audit import Actor
from hedgerow.region.store.database.open import open_database

REGION, SITE, BROKER = "bench", "hall", "mqtts://broker.lan:8884"
COUNTS = (1000, 20)
"""Machines per run and per smoke run."""
_NODE = (
    """\
node: {region: bench, site: hall, name: NAME, state_dir: /var/lib/x}
broker: {url: "mqtts://broker.lan:8883", tls: {ca_file: /x, cert_file: /y, key_file: /z}}
pipelines: {doors: {subscribe: plant/1/door, stages: [parse]}}
"""
    + "# As long as an ordinary configuration.\n" * 100
)


class _Machine:
    """A machine that enrols.

    Attributes:
        client: its client id.
        payload: its request.
    """

    def __init__(self, claim: Claim) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.client = secrets.token_hex(16)
        body = RequestBody(
            schema="hedgerow.enrol/1",
            client=self.client,
            region=REGION,
            site=SITE,
            claim=claim.id,
            csr=request_of(self._key),
            machine={"hostname": "gateway"},
        )
        self.payload = encode_request(body, lambda data: self._key.sign(data, ec.ECDSA(hashes.SHA256())), claim.sign)

    def check(self, grant: str, signature: str, claim: Claim) -> str:
        """Check what it was granted. Returns: which node it is."""
        return verify_grant(grant, signature, claim.root, self._key.public_key(), SITE).node


def run(options: Options) -> list[Cell]:
    """Return processor time per enrolment."""
    count = COUNTS[options.smoke]
    measured = [_measure(count) for _ in range(options.repeats)]
    names = ("region, an enrolment", "region, a machine that asks again", "machine, an enrolment")
    keys = ("enrolment.region", "enrolment.again", "enrolment.machine")
    return [
        cell(key, name, [one[number] for one in measured], "µs", f"{count} machines")
        for number, (key, name) in enumerate(zip(keys, names, strict=True))
    ]


def _measure(count: int) -> tuple[float, float, float]:
    """Return microseconds of processor time: of the region per enrolment and per repeated question, and of a machine."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, now = Path(name), time.time()
        pki = Pki(folder / "pki", lambda: datetime.now(UTC))
        pki.init(REGION, [SITE])
        nodes = {
            node: Place(configuration=re.sub("NAME", node, _NODE)) for node in (f"n{number}" for number in range(count))
        }
        places = Places(region=REGION, sites={SITE: PlacesOfSite(broker=BROKER, nodes=nodes)})
        (folder / "places.json").write_text(places.encode())
        section = EnrolmentSection.model_validate(
            {"places": folder / "places.json", "pki": pki.folder, "rules": [{"name": "all", "count": count}]}
        )
        url = str(folder / "region.db")
        open_database(url, write=True).close()
        with closing(open_database(url, write=False, alongside=True)) as database:
            claim, by = Claim.new(REGION, SITE, BROKER, pki.root.certificate()), Actor("bench")
            stored = StoredClaim(claim.id, SITE, None, claim.public.hex(), count, 0, now, now + 3600, {}, by)
            EnrolmentStore(database).add_claim(stored)
            registrar = Registrar(database, REGION, section)
            began = time.process_time()
            machines = [_Machine(claim) for _ in range(count)]
            asked = time.process_time()
            answers = [registrar.answer(SITE, one.client, one.payload, now) for one in machines]
            answered = time.process_time()
            for one in machines:
                registrar.answer(SITE, one.client, one.payload, now).encode()
            again = time.process_time()
            found = {one.check(each.grant, each.signature, claim) for one, each in zip(machines, answers, strict=True)}
            checked = time.process_time()
    if len(found) != count:
        raise RuntimeError(f"{len(found)} of {count} machines were enrolled")
    spent = (answered - asked, again - answered, asked - began + checked - again)
    return tuple(1e6 * one / count for one in spent)  # type: ignore[return-value]
