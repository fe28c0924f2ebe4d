"""A grant counts only if the site's authority signed it for this machine's key; anything else is refused, and nothing is written."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.enrolment.machines import Machine
from tests.enrolment.world import World

from hedgerow.enrolment.answer import read_answer
from hedgerow.enrolment.folder import EnrolmentFolder, NotEnrolled, configured
from hedgerow.enrolment.grant import BadGrant, NodeGrant, sign_grant, verify_grant
from hedgerow.pki import certificates
from hedgerow.pki.folder import Pki
from hedgerow.pki.names import Identity, IdentityKind


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    made = World(folder, str(folder / "region.db"), pki=folder / "pki")
    machine, claim = Machine(), made.claim()
    made.ask(machine, claim)
    made.approve(machine.fingerprint, "a")
    made.machine, made.approved = machine, made.ask(machine, claim)  # type: ignore[attr-defined]
    made.stranger = Pki(folder / "stranger", lambda: datetime.now(UTC))  # type: ignore[attr-defined]
    made.stranger.init("north", ["hall"])  # type: ignore[attr-defined]
    yield made
    made.close()


Change = Callable[[Any, dict[str, Any]], Any]


def signed_by(name: str, **changes: Any) -> Change:
    """The grant with changes, signed by an authority of the region."""

    def make(world: Any, body: dict[str, Any]) -> tuple[str, str]:
        text, signature = sign_grant(NodeGrant.model_validate(body | changes), world.pki.authority(name).key())
        return text, signature

    return make


def with_certificate(authority: str, who: Identity, key: Any = None) -> Change:
    def make(world: Any, body: dict[str, Any]) -> tuple[str, str]:
        signer, now = world.pki.authority(authority), world.pki.now()
        public = (key or world.machine.key).public_key()
        leaf = certificates.leaf(
            who.kind, who.user, "node", public, signer.certificate(), signer.key(), now, now + timedelta(days=1)
        )
        chain = certificates.pem(leaf, signer.certificate()).decode()
        return sign_grant(NodeGrant.model_validate(body | {"certificate": chain}), signer.key())

    return make


def of_a_stranger(world: Any, body: dict[str, Any]) -> tuple[str, str]:
    """Another root of the same name, with an authority of the same name."""
    entry_key = world.machine.key.public_key()
    signer, now = world.stranger.authority("hall"), world.stranger.now()
    leaf = certificates.leaf(
        IdentityKind.NODE, "hall/a", "node", entry_key, signer.certificate(), signer.key(), now, now + timedelta(days=1)
    )
    changes = {
        "certificate": certificates.pem(leaf, signer.certificate()).decode(),
        "trust": certificates.pem(world.stranger.root.certificate(), signer.certificate()).decode(),
    }
    return sign_grant(NodeGrant.model_validate(body | changes), signer.key())


def unsigned(change: Callable[[str], str]) -> Change:
    return lambda world, _: (change(world.approved.grant), world.approved.signature)


NODE = Identity(IdentityKind.NODE, "hall", "a")
FORGED: dict[str, Change] = {
    "another-configuration": unsigned(lambda text: text.replace("plant/1/door", "plant/1/safe")),
    "another-node": unsigned(lambda text: text.replace("north/hall/a", "north/hall/b")),
    "further-labels": unsigned(lambda text: text.replace('"labels":{}', '"labels":{"ring":"early"}')),
    "no-signature": lambda world, _: (world.approved.grant, ""),
    "another-signature": lambda world, _: (world.approved.grant, base64.b64encode(b"x" * 70).decode()),
    "not-json": unsigned(lambda text: text[:-1]),
    "deep": unsigned(lambda _: "[" * 100_000),
    "huge": unsigned(lambda text: text + " " * 600_000),
    "an-unknown-field": unsigned(lambda text: text.replace("{", '{"run": "sh",', 1)),
    "signed-by-the-region": signed_by("region"),
    "signed-by-another-site": signed_by("yard"),
    "of-another-root": of_a_stranger,
    "certified-by-another-site": with_certificate("yard", Identity(IdentityKind.NODE, "yard", "a")),
    "certified-by-the-region": with_certificate("region", Identity(IdentityKind.SERVICE, "region", "hall")),
    "certified-as-another": with_certificate("hall", Identity(IdentityKind.NODE, "hall", "b")),
    "another-key": with_certificate("hall", NODE, Machine().key),
    "a-brokers-certificate": with_certificate("hall", Identity(IdentityKind.BROKER, "hall", "a")),
    "another-region": signed_by("hall", node="south/hall/a"),
    "another-site": signed_by("hall", node="north/yard/a"),
    "no-name": signed_by("hall", node="north/hall/"),
    "no-trust": signed_by("hall", trust=""),
    "no-certificate": signed_by("hall", certificate=""),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_grant_is_refused_and_nothing_is_written(world: Any, tmp_path: Path, name: str) -> None:
    body = json.loads(world.approved.grant)
    text, signature = FORGED[name](world, body)

    with pytest.raises(BadGrant) as caught:
        verify_grant(text, signature, world.pki.root.certificate(), world.machine.key.public_key(), "hall")
    assert "nothing was written" in caught.value.remedy


def test_more_trust_than_the_root_and_the_site_is_refused(world: Any) -> None:
    body = json.loads(world.approved.grant)
    stranger = certificates.pem(world.stranger.root.certificate()).decode()
    text, signature = sign_grant(
        NodeGrant.model_validate(body | {"trust": body["trust"] + stranger}), world.pki.authority("hall").key()
    )
    with pytest.raises(BadGrant, match="trusts other authorities"):
        verify_grant(text, signature, world.pki.root.certificate(), world.machine.key.public_key(), "hall")


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "tls/tls.key",
        "node.yaml",
        ".bashrc",
        "a/.ssh",
        "",
        "x\0",
        "state/outbox",
        "grant.json",
    ],
)
def test_a_file_of_a_grant_stays_in_the_folder_and_replaces_nothing_of_it(
    world: Any, tmp_path: Path, path: str
) -> None:
    folder = EnrolmentFolder(tmp_path / "node")
    folder.begin(world.claim())
    body = json.loads(world.approved.grant) | {"files": {path: "eA=="}}

    def install() -> None:
        folder.install(NodeGrant.model_validate(body), "{}", "")

    with pytest.raises((BadGrant, ValueError)):
        install()
    assert sorted(one.name for one in tmp_path.rglob("*")) == [".lock", "enrolment.json", "node", "root.crt", "tls"]


@pytest.mark.parametrize(
    "text",
    ["", "- x", "pipelines: {", "node: {region: north, site: hall, name: b}", "node: {region: north, site: hall, name: a}\nnope: 1",
     "node: [1]", "node: &a {x: *a}", "broker: x"],
)  # fmt: skip
def test_a_configuration_that_is_not_this_nodes_is_refused(world: Any, tmp_path: Path, text: str) -> None:
    grant = NodeGrant.model_validate(json.loads(world.approved.grant) | {"configuration": text})

    with pytest.raises(BadGrant):
        configured(grant, tmp_path / "node.yaml")


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[" * 100_000, b"x" * 2_000_000, b'{"state": "approved\\u001b"}', b'{"state": "pending", "again_s": -1}',
     b'{"state": "pending", "again_s": 1e9}', b'{"state": "pending", "again_s": NaN}', b"\xff"],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_refused(payload: bytes) -> None:
    with pytest.raises(BadGrant):
        read_answer(payload)


def test_what_an_answer_tells_cannot_act_on_a_terminal() -> None:
    answer = read_answer(
        json.dumps({"state": "rejected", "code": "a\x1b[2J", "detail": "\x1b]0;x\x07\u202eok" + "x" * 999}).encode()
    )

    assert answer.code.isprintable()
    assert answer.detail.isprintable()


def test_a_folder_is_of_one_site(world: Any, tmp_path: Path) -> None:
    folder = EnrolmentFolder(tmp_path)
    folder.begin(world.claim())
    (tmp_path / "grant.json").write_text("{}")

    with pytest.raises(NotEnrolled, match="is a node of north/hall, and this asks for north/yard"):
        folder.begin(world.claim("yard"))
    with pytest.raises(NotEnrolled, match="has not begun to enrol"):
        EnrolmentFolder(tmp_path / "elsewhere").begin(None)
