"""A call that was killed in the folder of certificates leaves each file whole, and the next call finishes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from cryptography import x509

from hedgerow.cli.region.life_steps import LifeSteps
from hedgerow.enrolment.folder import EnrolmentFolder
from hedgerow.enrolment.keys import node_key
from hedgerow.pki import files
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import PkiError, parse

WHO, LIFE = parse("hall/gateway"), timedelta(days=30)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours handles it."""


class Kills:
    """Kills at a step: a write of a file, before or after it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 0
        write = files.write

        def writes(path: Path, data: bytes, **options: bool) -> None:
            self._step()
            write(path, data, **options)
            self._step()

        patch.setattr(files, "write", writes)

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture
def made(tmp_path: Path) -> Path:
    pki = Pki(tmp_path / "made", lambda: datetime.now(UTC))
    pki.init("north", ["hall"])
    pki.issue(parse("hall/broker"), LIFE, hosts=["broker.lan"])
    return pki.folder


def each_kill(made: Path, kills: Kills, call: str) -> Iterator[Pki]:
    """Yield a folder for each step at which a call was killed."""
    step = 0
    while True:
        step += 1
        pki = Pki(made.with_name(f"killed-{step}"), lambda: datetime.now(UTC))
        shutil.copytree(made, pki.folder)
        if call == "revoke":
            pki.issue(WHO, LIFE)
        kills.left = step
        try:
            pki.revoke(WHO, "superseded") if call == "revoke" else pki.issue(WHO, LIFE)
        except Killed:
            kills.left = 0
            yield pki
        else:
            assert step > 6
            return


@pytest.mark.parametrize("by", ["hedgerow node", "hedgerow pki revoke"])
def test_a_revocation_is_finished_by_the_next(made: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Brokers read the lists beside their certificates, so the revocation must have reached each of them."""
    for pki in each_kill(made, Kills(monkeypatch), "revoke"):
        if by == "hedgerow node":
            LifeSteps(dry_run=False).revoke(pki.folder, str(WHO), "superseded")
        else:
            with suppress(PkiError):  # it is revoked already
                pki.revoke(WHO, "superseded")
        serial = x509.load_pem_x509_certificates((pki.home(WHO) / "tls.crt").read_bytes())[0].serial_number
        for one in pki.lists("hall"):
            (_, own) = [
                part + b"-----END X509 CRL-----\n" for part in one.read_bytes().split(b"-----END X509 CRL-----\n")[:2]
            ]
            assert x509.load_pem_x509_crl(own).get_revoked_certificate_by_serial_number(serial) is not None


def test_a_certificate_is_issued_with_all_its_files_by_the_next(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pki in each_kill(made, Kills(monkeypatch), "issue"):
        LifeSteps(dry_run=False).issue(pki.folder, str(WHO), if_enrolled="")
        assert {path.name for path in pki.home(WHO).iterdir()} == {"tls.key", "tls.crt", "trust.crt", "trust.crl"}


def test_what_a_killed_call_left_aside_is_removed_by_the_next(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a private key."""
    pki = Pki(made, lambda: datetime.now(UTC))

    def killed(_: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        for name in ("issued.json", "tls.key"):
            with pytest.raises(Killed):
                files.write((made / "hall" if name == "issued.json" else made) / name, b"half", private=True)
    (made / ".tls.key.new").rename(pki.home(parse("hall/broker")) / ".tls.key.new")
    assert len([*made.rglob(".*.new")]) == 2
    pki.renew([parse("hall/broker")], new_key=True)

    assert not [*made.rglob(".*.new")]


def test_calls_at_the_same_time_make_one_key(tmp_path: Path) -> None:
    """A timer may renew while an operator enrols."""
    begin = Barrier(8)
    files.make_folder(tmp_path / "node/tls")

    def call(_: int) -> object:
        begin.wait()
        return node_key(EnrolmentFolder(tmp_path / "node"), None).public_key().public_numbers()

    with ThreadPoolExecutor(8) as calls:
        assert len(set(calls.map(call, range(8)))) == 1
