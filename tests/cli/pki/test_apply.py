"""`hedgerow pki apply`: every identity of a topology gets a valid certificate, and nothing else changes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hedgerow.cli.pki import pki as command
from hedgerow.pki.certificates import leaf, new_key, pem
from hedgerow.pki.files import read_certificates
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import IdentityKind, parse

Run = Callable[..., Any]

BASE = "pipelines: {doors: {subscribe: plant/+/door, stages: [parse]}}\n"
TOPOLOGY = """\
parent: {name: world, broker: mqtt.example, regions: [south], roles: {viewer: [board]}}
region:
  name: north
  broker: mqtts://r.example:8884
  roles: {collector: [collector], operator: [anna]}
pipelines: base.yaml
sensors: {cam: plant/1/door}
sites:
  hall: {broker: "mqtts://10.7.0.2:8883", nodes: [a, b], roles: {operator: [kim]}}
  yard: {broker: broker.yard.lan, nodes: [a]}
machine: {pki: pki, config: out, state: state}
"""
ALL_IDENTITIES = {
    "hall/broker", "hall", "hall/a", "hall/b", "hall/cam", "kim@hall",
    "yard/broker", "yard", "yard/a", "yard/cam",
    "region/broker", "world/bridge/north", "collector@region", "anna@region",
    "world/broker", "world/bridge/south", "board@world",
}  # fmt: skip


@pytest.fixture
def apply(hedgerow: Run, tmp_path: Path) -> Run:
    """Return a function that runs `hedgerow pki apply` on a topology of three levels and an empty folder."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)

    def run(*arguments: object) -> Any:
        return hedgerow("pki", "apply", tmp_path / "topology.yaml", *arguments, "--folder", tmp_path / "pki")

    return run


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "topology.yaml").read_text()
    assert old in text
    (folder / "topology.yaml").write_text(text.replace(old, new))


def actions(result: Any) -> dict[str, str]:
    """Return the action taken for each identity, without those left unchanged."""
    return {one["name"]: one["did"] for one in result.json["certificates"] if one["did"] != "kept"}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (folder / "pki").rglob("*") if path.is_file()}


def test_every_identity_gets_a_certificate_and_a_second_run_changes_nothing(apply: Run, tmp_path: Path) -> None:
    first = apply("--init", "--json")
    before = contents(tmp_path)
    second = apply("--json")

    assert (first.code, second.code) == (0, 0)
    assert first.json["made"] == ["root", "region", "hall", "yard", "world"]
    assert actions(first) == dict.fromkeys(ALL_IDENTITIES, "issued")
    assert (second.json["made"], actions(second), second.json["surplus"]) == ([], {}, [])
    assert contents(tmp_path) == before


def test_certificates_named_in_rendered_files_exist(apply: Run, hedgerow: Run, tmp_path: Path) -> None:
    """Every path below the folder that a configuration, unit or README names exists."""
    assert apply("--init").code == 0
    assert hedgerow("topology", "render", tmp_path / "topology.yaml", "--out", tmp_path / "out").code == 0

    named: set[Path] = set()
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            text = path.read_text()
            named |= {Path(found) for found in re.findall(rf"{tmp_path}/pki[\w/.-]*\w", text)}
            named |= {tmp_path / "pki" / found for found in re.findall(r"^\| (\w+/issued/\w+) ", text, re.MULTILINE)}
    assert {path.name for path in named} >= {
        "tls.crt",
        "tls.key",
        "trust.crt",
        "trust.crl",
        "collector",
        "kim",
        "south",
    }
    assert [path for path in named if not path.exists()] == []


def test_a_broker_is_certified_for_the_host_of_its_url(apply: Run, tmp_path: Path) -> None:
    apply("--init")
    pki = Pki(tmp_path / "pki", lambda: datetime.now(UTC))
    hosts = {name: pki.find(parse(f"{name}/broker")).hosts for name in ("hall", "yard", "region", "world")}  # type: ignore[union-attr]

    assert hosts == {
        "hall": ["10.7.0.2"],
        "yard": ["broker.yard.lan"],
        "region": ["r.example"],
        "world": ["mqtt.example"],
    }
    (north,) = read_certificates(tmp_path / "pki/world/issued/north/tls.crt")[:1]
    assert north.subject.rfc4514_string().startswith("CN=north,")


def test_a_dry_run_prints_planned_actions_and_changes_nothing(apply: Run, tmp_path: Path) -> None:
    result = apply("--init", "--dry-run")

    assert result.code == 0
    assert "Would create root, region, hall, yard, world" in result.out
    assert re.search(r"world/bridge/north +bridge +to issue", result.out)
    assert not (tmp_path / "pki").exists()


def test_without_init_a_missing_authority_is_an_error(apply: Run, tmp_path: Path) -> None:
    result = apply()
    assert result.code == 1
    assert "lacks root, region, hall, yard, world" in result.err
    assert "--init" in result.err

    apply("--init")
    edit(tmp_path, "  yard:", "  barn: {broker: b.lan, nodes: [a]}\n  yard:")
    (tmp_path / "pki/root.key").rename(tmp_path / "root.key")
    assert "lacks barn" in apply().err
    assert "The key of root is not on this machine" in apply("--init").err
    (tmp_path / "root.key").rename(tmp_path / "pki/root.key")
    added = apply("--init", "--json")
    assert actions(added) == dict.fromkeys(("barn/broker", "barn", "barn/a", "barn/cam"), "issued")


def test_a_certificate_that_expires_soon_is_renewed_for_its_original_lifetime(
    apply: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates issued by hand for longer are not renewed yet."""
    apply("--init", "--days", 9)
    pki = Pki(tmp_path / "pki", lambda: datetime.now(UTC))
    pki.revoke(parse("anna@region"), "superseded")
    pki.issue(parse("anna@region"), timedelta(days=60), role="operator")
    key = (tmp_path / "pki/hall/issued/a/tls.key").read_bytes()

    monkeypatch.setattr(command, "_now", lambda: datetime.now(UTC) + timedelta(days=7))
    result = apply("--json")

    assert actions(result) == dict.fromkeys(ALL_IDENTITIES - {"anna@region"}, "renewed")
    expires = {one["name"]: one["certificate"]["ends"] for one in result.json["certificates"]}
    assert datetime.fromisoformat(expires["hall/a"]) - datetime.now(UTC) > timedelta(days=15, hours=23)
    assert (tmp_path / "pki/hall/issued/a/tls.key").read_bytes() == key


def test_a_changed_host_or_role_is_certified_again_for_the_same_key(apply: Run, tmp_path: Path) -> None:
    """Hosts added by hand are kept."""
    apply("--init")
    pki = Pki(tmp_path / "pki", lambda: datetime.now(UTC))
    pki.amend(parse("region/broker"), "broker", ["r.example", "10.0.0.1"])
    edit(tmp_path, "r.example", "mqtt.north.example")
    edit(tmp_path, "operator: [anna]", "viewer: [anna]")
    result = apply("--json")

    assert actions(result) == {"region/broker": "changed", "anna@region": "changed"}
    assert pki.find(parse("region/broker")).hosts == ["mqtt.north.example", "r.example", "10.0.0.1"]  # type: ignore[union-attr]
    assert pki.find(parse("anna@region")).role == "viewer"  # type: ignore[union-attr]
    assert actions(apply("--json")) == {}


def test_a_stolen_site_authority_cannot_certify_another_broker(apply: Run, tmp_path: Path) -> None:
    """All clients trust the root and every authority it signed, but an authority is constrained to its own host."""
    apply("--init")
    now, signer, key = datetime.now(UTC), Pki(tmp_path / "pki", lambda: datetime.now(UTC)).authority("yard"), new_key()

    def certifies(host: str) -> bool:
        forged = leaf(
            IdentityKind.BROKER, host, "broker", key.public_key(), signer.certificate(), signer.key(), now, now + timedelta(days=1), [host]
        )  # fmt: skip
        (tmp_path / "forged.pem").write_bytes(pem(forged))
        (tmp_path / "authority.pem").write_bytes(pem(signer.certificate()))
        command = ["openssl", "verify", "-CAfile", tmp_path / "pki/root.crt", "-untrusted", tmp_path / "authority.pem"]
        return subprocess.run([*command, tmp_path / "forged.pem"], capture_output=True, check=False).returncode == 0

    assert certifies("broker.yard.lan")
    assert not certifies("r.example")


def test_moving_a_broker_needs_a_renewed_authority_and_the_printed_remedy_works(
    apply: Run, hedgerow: Run, tmp_path: Path
) -> None:
    """A site's authority is constrained to its broker's host."""
    apply("--init")
    edit(tmp_path, "broker.yard.lan", "b.yard-2.lan")
    edit(tmp_path, "10.7.0.2", "10.7.0.3")
    refused = apply("--json")
    assert (refused.code, actions(refused)) == (1, {"yard/broker": "failed", "hall/broker": "failed"})
    assert actions(apply("--dry-run", "--json")) == actions(refused)

    for one in refused.json["certificates"]:
        if one["did"] == "failed":
            (remedy,) = re.findall(r"`hedgerow (.*)`", one["remedy"])
            assert hedgerow(*remedy.split(), "--folder", tmp_path / "pki").code == 0
    assert actions(apply("--json")) == {"yard/broker": "changed", "hall/broker": "changed"}


def test_a_revoked_certificate_is_not_reissued_automatically(apply: Run, hedgerow: Run, tmp_path: Path) -> None:
    """Neither that nor a damaged file blocks the others."""
    apply("--init")
    hedgerow("pki", "revoke", "hall/a", "--reason", "key-compromise", "--folder", tmp_path / "pki")
    (tmp_path / "pki/hall/issued/b/tls.crt").write_text("spoiled")
    edit(tmp_path, "nodes: [a]", "nodes: [a, c]")
    result = apply("--json")

    assert (result.code, actions(result)) == (1, {"hall/a": "failed", "hall/b": "failed", "yard/c": "issued"})
    assert "hall/a was revoked: key-compromise" in apply().err


def test_certificates_not_in_the_topology_are_reported_and_kept(apply: Run, tmp_path: Path) -> None:
    apply("--init")
    edit(tmp_path, "nodes: [a, b]", "nodes: [a]")
    result = apply()

    assert result.code == 0
    assert "hall/b is not in the topology" in result.err
    assert (tmp_path / "pki/hall/issued/b/tls.crt").exists()


def test_authorities_managed_elsewhere_are_skipped(apply: Run, tmp_path: Path) -> None:
    """Because their key is not here, or because of --without."""
    apply("--init", "--without", "world")
    assert not (tmp_path / "pki/world").exists()
    assert "lacks world" in apply().err

    (tmp_path / "pki/yard/ca.key").unlink()
    edit(tmp_path, "nodes: [a]", "nodes: [a, c]")
    result = apply("--without", "world", "--json")
    assert result.code == 0
    assert actions(result) == dict.fromkeys(("yard/broker", "yard/a", "yard/c", "yard/cam"), "elsewhere")
    message = "Skipped certificates by yard: the authority's key is not on this machine."
    assert message in apply("--without", "world").out


def test_a_folder_of_another_region_is_refused(apply: Run, tmp_path: Path) -> None:
    apply("--init")
    edit(tmp_path, "name: north", "name: east")

    assert "belongs to the region north, not east" in apply("--init").err


def test_root_key_may_have_a_passphrase(apply: Run, tmp_path: Path) -> None:
    (tmp_path / "root.pass").write_text("correct horse\n")
    result = apply("--init", "--passphrase-file", tmp_path / "root.pass")

    assert result.code == 0
    assert b"ENCRYPTED" in (tmp_path / "pki/root.key").read_bytes()
    assert f"Move {tmp_path / 'pki/root.key'} off this machine" in result.out
    assert "correct horse" not in result.out + result.err
    assert apply().code == 0
