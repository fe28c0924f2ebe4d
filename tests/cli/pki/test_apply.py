"""`hedgerow pki apply`: whoever a topology names has a certificate that counts, and nothing else happens."""

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
EVERYBODY = {
    "hall/broker", "hall", "hall/a", "hall/b", "hall/cam", "kim@hall",
    "yard/broker", "yard", "yard/a", "yard/cam",
    "region/broker", "world/bridge/north", "collector@region", "anna@region",
    "world/broker", "world/bridge/south", "board@world",
}  # fmt: skip


@pytest.fixture
def apply(hedgerow: Run, tmp_path: Path) -> Run:
    """`hedgerow pki apply`, on a topology of three levels and an empty folder."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)

    def run(*arguments: object) -> Any:
        return hedgerow("pki", "apply", tmp_path / "topology.yaml", *arguments, "--folder", tmp_path / "pki")

    return run


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "topology.yaml").read_text()
    assert old in text
    (folder / "topology.yaml").write_text(text.replace(old, new))


def did(said: Any) -> dict[str, str]:
    """What was done, by who, but for those who were left as they are."""
    return {one["name"]: one["did"] for one in said.json["certificates"] if one["did"] != "kept"}


def state(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (folder / "pki").rglob("*") if path.is_file()}


def test_everybody_gets_one_and_a_second_time_nothing_happens(apply: Run, tmp_path: Path) -> None:
    first = apply("--init", "--json")
    before = state(tmp_path)
    second = apply("--json")

    assert (first.code, second.code) == (0, 0)
    assert first.json["made"] == ["root", "region", "hall", "yard", "world"]
    assert did(first) == dict.fromkeys(EVERYBODY, "issued")
    assert (second.json["made"], did(second), second.json["surplus"]) == ([], {}, [])
    assert state(tmp_path) == before


def test_every_file_that_is_rendered_finds_its_certificates(apply: Run, hedgerow: Run, tmp_path: Path) -> None:
    """Whatever path below the folder a configuration, unit or README names is there."""
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


def test_a_dry_run_says_what_would_be_done_and_does_nothing(apply: Run, tmp_path: Path) -> None:
    said = apply("--init", "--dry-run")

    assert said.code == 0
    assert "To make root, region, hall, yard, world" in said.out
    assert re.search(r"world/bridge/north +bridge +to issue", said.out)
    assert not (tmp_path / "pki").exists()


def test_without_init_it_says_what_is_missing(apply: Run, tmp_path: Path) -> None:
    said = apply()
    assert said.code == 1
    assert "lacks root, region, hall, yard, world" in said.err
    assert "--init" in said.err

    apply("--init")
    edit(tmp_path, "  yard:", "  barn: {broker: b.lan, nodes: [a]}\n  yard:")
    (tmp_path / "pki/root.key").rename(tmp_path / "root.key")
    assert "lacks barn" in apply().err
    assert "The key of root is not on this machine" in apply("--init").err
    (tmp_path / "root.key").rename(tmp_path / "pki/root.key")
    added = apply("--init", "--json")
    assert did(added) == dict.fromkeys(("barn/broker", "barn", "barn/a", "barn/cam"), "issued")


def test_what_ends_soon_is_renewed_for_as_long_again(
    apply: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were made for longer, or by hand for another time, are left until it is their turn."""
    apply("--init", "--days", 9)
    pki = Pki(tmp_path / "pki", lambda: datetime.now(UTC))
    pki.revoke(parse("anna@region"), "superseded")
    pki.issue(parse("anna@region"), timedelta(days=60), role="operator")
    key = (tmp_path / "pki/hall/issued/a/tls.key").read_bytes()

    monkeypatch.setattr(command, "_now", lambda: datetime.now(UTC) + timedelta(days=7))
    said = apply("--json")

    assert did(said) == dict.fromkeys(EVERYBODY - {"anna@region"}, "renewed")
    ends = {one["name"]: one["certificate"]["ends"] for one in said.json["certificates"]}
    assert datetime.fromisoformat(ends["hall/a"]) - datetime.now(UTC) > timedelta(days=15, hours=23)
    assert (tmp_path / "pki/hall/issued/a/tls.key").read_bytes() == key


def test_what_the_topology_says_otherwise_now_is_certified_anew_for_the_same_key(apply: Run, tmp_path: Path) -> None:
    """A host that somebody added by hand stays."""
    apply("--init")
    pki = Pki(tmp_path / "pki", lambda: datetime.now(UTC))
    pki.amend(parse("region/broker"), "broker", ["r.example", "10.0.0.1"])
    edit(tmp_path, "r.example", "mqtt.north.example")
    edit(tmp_path, "operator: [anna]", "viewer: [anna]")
    said = apply("--json")

    assert did(said) == {"region/broker": "changed", "anna@region": "changed"}
    assert pki.find(parse("region/broker")).hosts == ["mqtt.north.example", "r.example", "10.0.0.1"]  # type: ignore[union-attr]
    assert pki.find(parse("anna@region")).role == "viewer"  # type: ignore[union-attr]
    assert did(apply("--json")) == {}


def test_a_stolen_site_authority_cannot_play_a_broker_elsewhere(apply: Run, tmp_path: Path) -> None:
    """Everybody believes the root, and so what it has signed; but each of those only for its own host."""
    apply("--init")
    now, signer, key = datetime.now(UTC), Pki(tmp_path / "pki", lambda: datetime.now(UTC)).authority("yard"), new_key()

    def certifies(host: str) -> bool:
        made = leaf(
            IdentityKind.BROKER, host, "broker", key.public_key(), signer.certificate(), signer.key(), now, now + timedelta(days=1), [host]
        )  # fmt: skip
        (tmp_path / "forged.pem").write_bytes(pem(made))
        (tmp_path / "authority.pem").write_bytes(pem(signer.certificate()))
        checking = ["openssl", "verify", "-CAfile", tmp_path / "pki/root.crt", "-untrusted", tmp_path / "authority.pem"]
        return subprocess.run([*checking, tmp_path / "forged.pem"], capture_output=True, check=False).returncode == 0

    assert certifies("broker.yard.lan")
    assert not certifies("r.example")


def test_a_site_whose_broker_moves_needs_an_authority_that_may_say_so(
    apply: Run, hedgerow: Run, tmp_path: Path
) -> None:
    """A stolen site's authority cannot certify a broker elsewhere; the remedy that is named is one."""
    apply("--init")
    edit(tmp_path, "broker.yard.lan", "b.yard-2.lan")
    edit(tmp_path, "10.7.0.2", "10.7.0.3")
    refused = apply("--json")
    assert (refused.code, did(refused)) == (1, {"yard/broker": "failed", "hall/broker": "failed"})
    assert did(apply("--dry-run", "--json")) == did(refused)

    for one in refused.json["certificates"]:
        if one["did"] == "failed":
            (remedy,) = re.findall(r"`hedgerow (.*)`", one["remedy"])
            assert hedgerow(*remedy.split(), "--folder", tmp_path / "pki").code == 0
    assert did(apply("--json")) == {"yard/broker": "changed", "hall/broker": "changed"}


def test_what_was_revoked_is_not_issued_again_by_itself(apply: Run, hedgerow: Run, tmp_path: Path) -> None:
    """Nor does it, or a file that is spoiled, hold up anybody else."""
    apply("--init")
    hedgerow("pki", "revoke", "hall/a", "--reason", "key-compromise", "--folder", tmp_path / "pki")
    (tmp_path / "pki/hall/issued/b/tls.crt").write_text("spoiled")
    edit(tmp_path, "nodes: [a]", "nodes: [a, c]")
    said = apply("--json")

    assert (said.code, did(said)) == (1, {"hall/a": "failed", "hall/b": "failed", "yard/c": "issued"})
    assert "hall/a was revoked: key-compromise" in apply().err


def test_what_the_topology_does_not_name_is_told_and_left(apply: Run, tmp_path: Path) -> None:
    apply("--init")
    edit(tmp_path, "nodes: [a, b]", "nodes: [a]")
    said = apply()

    assert said.code == 0
    assert "hall/b is not in the topology" in said.err
    assert (tmp_path / "pki/hall/issued/b/tls.crt").exists()


def test_authorities_that_are_kept_elsewhere_are_left_to_who_has_them(apply: Run, tmp_path: Path) -> None:
    """Their key is not here, or they are not ours at all."""
    apply("--init", "--without", "world")
    assert not (tmp_path / "pki/world").exists()
    assert "lacks world" in apply().err

    (tmp_path / "pki/yard/ca.key").unlink()
    edit(tmp_path, "nodes: [a]", "nodes: [a, c]")
    said = apply("--without", "world", "--json")
    assert said.code == 0
    assert did(said) == dict.fromkeys(("yard/broker", "yard/a", "yard/c", "yard/cam"), "elsewhere")
    assert "Elsewhere, since their keys are not here: what yard certifies." in apply("--without", "world").out


def test_a_folder_of_another_region_is_refused(apply: Run, tmp_path: Path) -> None:
    apply("--init")
    edit(tmp_path, "name: north", "name: east")

    assert "belongs to the region north, not east" in apply("--init").err


def test_the_roots_key_may_have_a_passphrase(apply: Run, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("correct horse\n")
    said = apply("--init", "--passphrase-file", tmp_path / "words")

    assert said.code == 0
    assert b"ENCRYPTED" in (tmp_path / "pki/root.key").read_bytes()
    assert "Take " in said.out
    assert "correct horse" not in said.out + said.err
    assert apply().code == 0
