"""`hedgerow pki`: what it says, what it exits with, and what it never shows."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hedgerow.cli.pki import pki as command
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import parse

Run = Callable[..., Any]


@pytest.fixture
def pki(hedgerow: Run, tmp_path: Path) -> Run:
    """`hedgerow pki VERB …` on a folder with a region and one site."""

    def run(verb: str, *arguments: object) -> Any:
        return hedgerow("pki", verb, *arguments, "--folder", tmp_path / "pki")

    made = run("init", "--region", "plant", "--site", "hall", "--json")
    assert (made.code, made.json["made"]) == (0, ["root", "region", "hall"])
    return run


def certificate(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "pki/hall/issued" / name / "tls.crt").read_bytes())


def test_what_is_issued_is_shown_renewed_and_revoked(pki: Run, tmp_path: Path) -> None:
    issued = pki("issue", "hall/gateway", "--days", 9, "--json")
    first = certificate(tmp_path, "gateway")
    assert issued.code == 0
    assert issued.json["name"] == "hall/gateway"
    assert int(issued.json["serial"], 16) == first.serial_number

    shown = {entry["name"]: entry for entry in pki("show", "--json").json}
    assert shown.keys() == {"root", "region", "hall", "hall/gateway"}
    assert 8 * 86_400 < shown["hall/gateway"]["left_s"] <= 9 * 86_400

    assert pki("renew", "--json").json == {"renewed": [], "failed": []}
    (renewed,) = pki("renew", "--within-days", 10, "--json").json["renewed"]
    assert renewed["name"] == "hall/gateway"
    assert certificate(tmp_path, "gateway").serial_number != first.serial_number
    assert certificate(tmp_path, "gateway").public_key() == first.public_key()
    assert pki("renew", "hall/gateway", "--new-key").code == 0
    assert certificate(tmp_path, "gateway").public_key() != first.public_key()

    revoked = pki("revoke", "hall/gateway", "--reason", "key-compromise", "--json")
    assert (revoked.code, revoked.json["certificates"]) == (0, 3)
    on_list = x509.load_pem_x509_crl((tmp_path / "pki/hall/crl.pem").read_bytes())
    assert on_list.get_revoked_certificate_by_serial_number(first.serial_number) is not None
    refused = pki("renew", "hall/gateway")
    assert refused.code == 1
    assert "was revoked: key-compromise" in refused.err


def test_every_secret_is_for_its_owner_alone_and_is_never_printed(pki: Run, tmp_path: Path) -> None:
    said = [
        pki("issue", "hall/gateway"),
        pki("issue", "hall/broker", "--host", "localhost", "--json"),
        pki("show"),
        pki("show", "--json"),
        pki("renew", "hall/gateway", "--new-key", "--json"),
        pki("revoke", "hall/gateway"),
    ]
    keys = sorted(tmp_path.rglob("*.key"))

    assert [key.name for key in keys] == ["ca.key", "tls.key", "tls.key", "ca.key", "root.key"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert {stat.S_IMODE(key.parent.stat().st_mode) for key in keys if key.name != "root.key"} == {0o700}
    for one in said:
        assert one.code == 0
        assert "PRIVATE KEY" not in one.out + one.err
        for key in keys:
            secret = "".join(key.read_text().splitlines()[1:-1])
            assert secret not in (one.out + one.err).replace("\n", "")


def test_the_roots_key_may_have_a_passphrase_and_be_elsewhere(hedgerow: Run, tmp_path: Path) -> None:
    folder, words = tmp_path / "own", tmp_path / "words"
    words.write_text("correct horse\n")
    made = hedgerow("pki", "init", "--region", "plant", "--folder", folder, "--passphrase-file", words)
    assert made.code == 0
    assert "correct horse" not in made.out + made.err
    assert b"ENCRYPTED" in (folder / "root.key").read_bytes()

    again = ("pki", "init", "--region", "plant", "--site", "hall", "--folder", folder)
    assert "has a passphrase" in hedgerow(*again).err
    words.write_text("wrong\n")
    assert "the passphrase is wrong" in hedgerow(*again, "--passphrase-file", words).err
    (folder / "root.key").rename(tmp_path / "drawer.key")
    refused = hedgerow(*again)
    assert refused.code == 1
    assert "The key of root is not on this machine" in refused.err
    assert hedgerow("pki", "issue", "anna@region", "--folder", folder).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("issue", "no/such/form"), 1, "cannot be the name of a certificate"),
        (("issue", "yard/gateway"), 1, "There is no authority yard"),
        (("issue", "hall/broker"), 1, "a broker needs host names"),
        (("issue", "hall/gateway", "--host", "localhost"), 1, "only a broker has host names"),
        (("issue", "hall/gateway", "--days", "1", "--hours", "1"), 2, "not both"),
        (("issue", "hall/gateway", "--days", "0"), 2, "for a minute at least"),
        (("renew", "hall/nobody"), 1, "There is no certificate in"),
        (("revoke", "hall/nobody"), 1, "has no valid certificate"),
        (("revoke",), 2, "name one"),
        (("revoke", "hall/gateway", "--reason", "boredom"), 2, "--reason is one of"),
    ],
)
def test_what_cannot_be_done_says_why_and_exits_accordingly(
    pki: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found = pki(*arguments)

    assert found.code == code
    assert said in re.sub(r"\s*│?\n│?\s*", " ", found.err)


def test_a_second_certificate_for_somebody_is_a_renewal(pki: Run) -> None:
    assert pki("issue", "hall/gateway").code == 0
    again = pki("issue", "hall/gateway")

    assert again.code == 1
    assert "hedgerow pki renew hall/gateway" in again.err


def test_show_exits_with_1_when_a_certificate_has_ended(
    pki: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pki(tmp_path / "pki", lambda: datetime.now(UTC)).issue(parse("hall/gateway"), timedelta(days=1))
    assert pki("show").code == 0

    monkeypatch.setattr(command, "_now", lambda: datetime.now(UTC) + timedelta(days=2))
    ended = pki("show")
    assert ended.code == 1
    assert re.search(r"hall/gateway .* ended !", ended.out)


def test_one_certificate_that_cannot_be_renewed_holds_up_no_other(pki: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert pki("issue", f"hall/{name}").code == 0
    (tmp_path / "pki/hall/issued/a/tls.crt").write_text("spoiled")
    said = pki("renew", "--within-days", 60, "--json")

    assert said.code == 1
    assert [entry["name"] for entry in said.json["renewed"]] == ["hall/b"]
    assert len(said.json["failed"]) == 1
    assert pki("revoke", "hall/b").code == 0
