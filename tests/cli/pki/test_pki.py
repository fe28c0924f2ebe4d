"""`hedgerow pki`: output, exit codes, and secrets that are never printed."""

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
from hedgerow.pki.provide import CertificateRequest, provide

Run = Callable[..., Any]


@pytest.fixture
def pki(hedgerow: Run, tmp_path: Path) -> Run:
    """Return a function that runs `hedgerow pki VERB …` on a folder with a region and one site."""

    def run(verb: str, *arguments: object) -> Any:
        return hedgerow("pki", verb, *arguments, "--folder", tmp_path / "pki")

    made = run("init", "--region", "plant", "--site", "hall", "--json")
    assert (made.code, made.json["made"]) == (0, ["root", "region", "hall"])
    return run


def certificate(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "pki/hall/issued" / name / "tls.crt").read_bytes())


def test_issued_certificates_can_be_shown_renewed_and_revoked(pki: Run, tmp_path: Path) -> None:
    issued = pki("issue", "hall/gateway", "--days", 9, "--json")
    first = certificate(tmp_path, "gateway")
    assert issued.code == 0
    assert issued.json["name"] == "hall/gateway"
    assert int(issued.json["serial"], 16) == first.serial_number

    shown = {entry["name"]: entry for entry in pki("show", "--json").json}
    assert shown.keys() == {"root", "region", "hall", "hall/gateway"}
    assert 8 * 86_400 < shown["hall/gateway"]["left_s"] <= 9 * 86_400

    assert pki("renew", "--json").json == {"renewed": [], "failed": [], "lists": []}
    (renewed,) = pki("renew", "--within-days", 10, "--json").json["renewed"]
    assert renewed["name"] == "hall/gateway"
    assert certificate(tmp_path, "gateway").serial_number != first.serial_number
    assert certificate(tmp_path, "gateway").public_key() == first.public_key()
    assert pki("renew", "hall/gateway", "--new-key").code == 0
    assert certificate(tmp_path, "gateway").public_key() != first.public_key()

    revoked = pki("revoke", "hall/gateway", "--reason", "key-compromise", "--json")
    assert (revoked.code, revoked.json["certificates"]) == (0, 3)
    crl = x509.load_pem_x509_crl((tmp_path / "pki/hall/crl.pem").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(first.serial_number) is not None
    refused = pki("renew", "hall/gateway")
    assert refused.code == 1
    assert "was revoked: key-compromise" in refused.err


def test_secret_files_are_private_and_never_printed(pki: Run, tmp_path: Path) -> None:
    results = [
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
    for result in results:
        assert result.code == 0
        assert "PRIVATE KEY" not in result.out + result.err
        for key in keys:
            secret = "".join(key.read_text().splitlines()[1:-1])
            assert secret not in (result.out + result.err).replace("\n", "")


def test_root_key_may_have_a_passphrase_and_be_offline(hedgerow: Run, tmp_path: Path) -> None:
    folder, passphrase_file = tmp_path / "own", tmp_path / "root.pass"
    passphrase_file.write_text("correct horse\n")
    made = hedgerow("pki", "init", "--region", "plant", "--folder", folder, "--passphrase-file", passphrase_file)
    assert made.code == 0
    assert "correct horse" not in made.out + made.err
    assert b"ENCRYPTED" in (folder / "root.key").read_bytes()

    again = ("pki", "init", "--region", "plant", "--site", "hall", "--folder", folder)
    assert "has a passphrase" in hedgerow(*again).err
    passphrase_file.write_text("wrong\n")
    assert "the passphrase is wrong" in hedgerow(*again, "--passphrase-file", passphrase_file).err
    (folder / "root.key").rename(tmp_path / "offline.key")
    refused = hedgerow(*again)
    assert refused.code == 1
    assert "The key of root is not on this machine" in refused.err
    assert hedgerow("pki", "issue", "anna@region", "--folder", folder).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("issue", "no/such/form"), 1, "is not a valid certificate name"),
        (("issue", "yard/gateway"), 1, "There is no authority yard"),
        (("issue", "hall/broker"), 1, "a broker needs host names"),
        (("issue", "hall/gateway", "--host", "localhost"), 1, "only a broker has host names"),
        (("issue", "hall/gateway", "--days", "1", "--hours", "1"), 2, "not both"),
        (("issue", "hall/gateway", "--days", "0"), 2, "valid for at least a minute"),
        (("renew", "hall/nobody"), 1, "There is no certificate in"),
        (("revoke", "hall/nobody"), 1, "has no valid certificate"),
        (("revoke",), 2, "name either WHO or --authority"),
        (("revoke", "hall/gateway", "--reason", "boredom"), 2, "--reason must be one of"),
    ],
)
def test_invalid_requests_exit_with_a_reason(pki: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = pki(*arguments)

    assert result.code == code
    assert message in re.sub(r"\s*│?\n│?\s*", " ", result.err)


@pytest.mark.parametrize(
    ("who", "options", "hours"),
    [
        ("anna@hall", ("--role", "operator"), 12),
        ("anna@hall", ("--role", "operator", "--hours", "2"), 2),
        ("anna@hall", ("--role", "operator", "--days", "3"), 72),
        ("ben@hall", ("--role", "viewer"), 720),
        ("hall/gateway", (), 720),
    ],
)
def test_an_operators_certificate_is_valid_for_half_a_day(
    pki: Run, who: str, options: tuple[str, ...], hours: float
) -> None:
    assert pki("issue", who, *options).code == 0
    (left_s,) = (entry["left_s"] for entry in pki("show", "--json").json if entry["name"] == who)

    assert (hours - 0.1) * 3600 < left_s <= hours * 3600


@pytest.mark.parametrize("days", [None, 90.0])
@pytest.mark.parametrize(("was", "hours"), [(None, 12), ("viewer", 12), ("operator", 240)])
def test_apply_gives_operators_half_a_day_and_keeps_what_was_chosen_for_one(
    tmp_path: Path, days: float | None, was: str | None, hours: float
) -> None:
    """Also where a viewer becomes one; a longer life is chosen with `pki issue`, for one person."""
    pki, now = Pki(tmp_path, lambda: datetime.now(UTC)), datetime.now(UTC)
    pki.init("test", ["hall"])
    anna, node = parse("anna@hall"), parse("hall/a")
    if was is not None:
        pki.issue(anna, timedelta(hours=240), role=was)
    wanted = [CertificateRequest(anna, "operator"), CertificateRequest(node, "node")]
    done = list(provide(pki, wanted, None if days is None else timedelta(days=days)))

    lives = [one.entry.ends - now for one in done if one.entry is not None]
    expected = [timedelta(hours=hours), timedelta(days=days or 30)]
    assert [abs(life - wish) < timedelta(minutes=1) for life, wish in zip(lives, expected, strict=True)] == [True, True]


def test_what_to_copy_when_an_authority_is_revoked_includes_whom_to_trust(pki: Run, tmp_path: Path) -> None:
    """A broker that keeps its `trust.crt` would still accept the authority: it checks no list above the certificate's issuer."""
    assert pki("issue", "hall/gateway").code == 0
    assert pki("issue", "hall/broker", "--host", "broker.lan").code == 0
    before = (tmp_path / "pki/hall/issued/broker/trust.crt").read_bytes()
    revoked = pki("revoke", "--authority", "hall", "--reason", "key-compromise")

    home = tmp_path / "pki/hall/issued"
    named = [line.strip() for line in revoked.out.splitlines() if line.startswith("  ")]
    assert named == [str(home / who / f"trust.{kind}") for who in ("broker", "gateway") for kind in ("crt", "crl")]
    assert (home / "broker/trust.crt").read_bytes() != before


def test_renewing_in_a_folder_without_certificates_is_a_failure(hedgerow: Run, tmp_path: Path) -> None:
    """Else a timer in the wrong folder would look fine until all certificates have expired."""
    done = hedgerow("pki", "renew", "--folder", tmp_path / "elsewhere")

    assert done.code == 1
    assert "--folder" in done.err


def test_issuing_a_second_certificate_for_an_identity_suggests_renewal(pki: Run) -> None:
    assert pki("issue", "hall/gateway").code == 0
    again = pki("issue", "hall/gateway")

    assert again.code == 1
    assert "hedgerow pki renew hall/gateway" in again.err


def test_show_exits_with_1_when_a_certificate_has_expired(
    pki: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pki(tmp_path / "pki", lambda: datetime.now(UTC)).issue(parse("hall/gateway"), timedelta(days=1))
    assert pki("show").code == 0

    monkeypatch.setattr(command, "_now", lambda: datetime.now(UTC) + timedelta(days=2))
    result = pki("show")
    assert result.code == 1
    assert re.search(r"hall/gateway .* expired !", result.out)


def test_a_damaged_certificate_does_not_block_the_renewal_of_others(pki: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert pki("issue", f"hall/{name}").code == 0
    (tmp_path / "pki/hall/issued/a/tls.crt").write_text("spoiled")
    result = pki("renew", "--within-days", 60, "--json")

    assert result.code == 1
    assert [entry["name"] for entry in result.json["renewed"]] == ["hall/b"]
    assert len(result.json["failed"]) == 1
    assert pki("revoke", "hall/b").code == 0


def test_the_command_refuses_a_wildcard_and_warns_when_told_to_allow_it(hedgerow: Run, tmp_path: Path) -> None:
    folder = ("--folder", tmp_path / "pki")
    hedgerow("pki", "init", "--region", "plant", "--site", "hall", *folder)
    for host in ("*", "*.hall.lan"):
        refused = hedgerow("pki", "issue", "hall/broker", "--host", host, *folder)
        assert (refused.code, "covers names of other machines" in refused.err) == (1, True)
    assert not (tmp_path / "pki/hall/issued/broker").exists()
    for place in (("init", "--region", "plant", "--site", "yard"), ("renew", "--authority", "hall")):
        assert "covers names" in hedgerow("pki", *place, "--host", "*", *folder).err

    allowed = hedgerow("pki", "issue", "hall/broker", "--host", "*.hall.lan", "--allow-wildcard", *folder)
    assert allowed.code == 0
    assert "warning: hall/broker can impersonate every host of *.hall.lan" in allowed.err


def test_show_and_renew_tell_about_lists(hedgerow: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ("--folder", tmp_path)
    now = datetime.now(UTC)
    assert hedgerow("pki", "init", "--region", "plant", "--site", "hall", *folder).code == 0
    assert "revocation list" not in hedgerow("pki", "show", *folder).err
    for days, code, text in ((25, 0, "has not been renewed"), (31, 1, "expired on")):
        monkeypatch.setattr(command, "_now", lambda days=days: now + timedelta(days=days))
        shown = hedgerow("pki", "show", *folder)
        assert (shown.code, text in shown.err) == (code, True)
    renewed = hedgerow("pki", "renew", *folder, "--list-days", "7")
    assert f"Revocation list of hall: valid until {now + timedelta(days=38):%Y-%m-%d}" in renewed.out
    assert "kill -HUP" in renewed.out
    assert hedgerow("pki", "show", *folder).code == 0
