"""Attempts to have a node run pipelines that nobody signed for it, by who may sign something else, or serves what was signed.

The thief has an owner's key for models or for other pipelines, or the online key and all that was ever signed. Each attempt is
refused with its own error, and what was signed for the node goes on being accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tests.trust.attackers import OnlineKeyThief, current, sign
from tests.trust.conftest import World
from tuf.api.metadata import DelegatedRole, Delegations, TargetFile

from hedgerow.labels import parse_selector
from hedgerow.models.bundle.manifest import LARGEST_MANIFEST, PIPELINES, digest_of
from hedgerow.pipeline.pipelines_document import collect_pipelines
from hedgerow.trust import errors, key_ceremony
from hedgerow.trust.client import TrustClient
from hedgerow.trust.errors import TrustError
from hedgerow.wire.fleet import ModelRef


class Estate(World):
    """A repository with owners of models, of `meters` and of `gates`, and a node at hall-2."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.meters_key, self.gates_key = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
        for name, key in (("meters-owner", self.meters_key), ("gates-owner", self.gates_key)):
            key_ceremony.add_owner(
                self.repository,
                name,
                pipelines=[name.partition("-")[0]],
                keys=[key.public_key],
                signers=[self.targets_key],
            )
        self.model = self.publish()
        self.old = self.sign("meters", "1.0.0", self.meters_key)
        self.other = self.sign("gates", "1.0.0", self.gates_key)

    def document(self, name: str, version: str) -> bytes:
        folder = self.folder / f"{name}-{version}"
        folder.mkdir(exist_ok=True)
        (folder / "pipelines.yaml").write_text(f"pipelines: {{p: {{subscribe: 'a/{version}', stages: [trial]}}}}")
        return collect_pipelines(folder, name, version).encode()

    def sign(self, name: str, version: str, key: CryptoSigner, selector: str = "site=hall-2") -> ModelRef:
        done = self.repository.publish_pipelines(
            name, version, self.document(name, version), key, parse_selector(selector)
        )
        return ModelRef(name=name, version=version, digest=done.digest)

    def metadata(self, owner: str) -> Any:
        found = self.read(Path(current(self, owner)).stem)
        found.signed.version += 1
        return found

    def forge(
        self, owner: str, key: CryptoSigner, name: str, version: str, content: bytes, custom: Any = None
    ) -> tuple[ModelRef, OnlineKeyThief]:
        """Have an owner sign this content as pipelines, with other tools than Hedgerow's; the online key includes it."""
        target = TargetFile.from_data(f"{name}/{version}/{PIPELINES}", content, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        metadata = self.metadata(owner)
        metadata.signed.targets[target.path] = target
        path = f"targets/{name}/{version}/{target.hashes['sha256']}.{PIPELINES}"
        thief = OnlineKeyThief(self, {path: content}).replace(owner, sign(metadata, key)).sign()
        return ModelRef(name=name, version=version, digest=digest_of(content)), thief


Attempt = Callable[[Estate], tuple[ModelRef, Any]]


def _delegated(estate: Estate) -> tuple[ModelRef, Any]:
    """The owner of models delegates all pipelines to a helper, who signs some."""
    helper, content = CryptoSigner.generate_ed25519(), estate.document("meters", "9.9.9")
    target = TargetFile.from_data(f"meters/9.9.9/{PIPELINES}", content, ["sha256"])
    owner = estate.metadata("doors")
    role = DelegatedRole("helper", [helper.public_key.keyid], 1, True, paths=["*/*/*"])
    owner.signed.delegations = Delegations({helper.public_key.keyid: helper.public_key}, {"helper": role})
    own = estate.metadata("doors")
    own.signed.targets, own.signed.version = {target.path: target}, 1
    thief = OnlineKeyThief(estate).replace("doors", sign(owner, estate.owner_key)).replace("helper", sign(own, helper))
    return ModelRef(name="meters", version="9.9.9", digest=digest_of(content)), thief.sign()


def _withdrawn(estate: Estate) -> tuple[ModelRef, Any]:
    key_ceremony.renew(estate.repository, "meters-owner", [estate.meters_key], keep=lambda path: "1.0.0" not in path)
    return estate.old, None


def _owner_removed(estate: Estate) -> tuple[ModelRef, Any]:
    key_ceremony.remove_owner(estate.repository, "meters-owner", [estate.targets_key])
    return estate.old, None


def _replaced(change: Callable[[bytes], bytes]) -> Attempt:
    def attempt(estate: Estate) -> tuple[ModelRef, Any]:
        estate.between.tamper = lambda path, data: change(data) if path.endswith(PIPELINES) else data
        return estate.old, None

    return attempt


def _replayed(estate: Estate) -> tuple[ModelRef, Any]:
    """All of an older moment, to bring a withdrawn version back, after the node has seen the newer one."""
    documents = {
        f"metadata/{path.name}": path.read_bytes() for path in sorted(estate.repository.metadata.glob("*.json"))
    }
    _withdrawn(estate)
    estate.node.refresh()
    estate.between.tamper = documents.get
    return estate.old, None


def _mixed(estate: Estate) -> tuple[ModelRef, Any]:
    """An owner's metadata of before, which is longer, with the snapshot of now."""
    before = (estate.repository.folder / current(estate, "meters-owner")).read_bytes()
    _withdrawn(estate)
    now = current(estate, "meters-owner")
    estate.between.tamper = lambda path, data: before if path == now else data
    return estate.old, None


def _rolled_back(estate: Estate) -> tuple[ModelRef, Any]:
    """The same, signed with the online key."""
    before = (estate.repository.folder / current(estate, "meters-owner")).read_bytes()
    _withdrawn(estate)
    with pytest.raises(TrustError):
        read(estate.node, estate.old)  # the node has seen the newer metadata
    estate.between.tamper = OnlineKeyThief(estate).replace("meters-owner", before).sign().tamper
    return estate.old, None


def _frozen(estate: Estate) -> tuple[ModelRef, Any]:
    estate.time.wall += 8 * 86_400
    return estate.old, None


def _forged(owner: str, name: str, version: str, content: str, custom: Any = None) -> Attempt:
    """`content`: NAME VERSION of a document, or as it is."""

    def attempt(estate: Estate) -> tuple[ModelRef, Any]:
        key = {"doors": estate.owner_key, "meters-owner": estate.meters_key, "gates-owner": estate.gates_key}[owner]
        described = content.split()
        body = estate.document(*described) if len(described) == 2 else content.encode()
        return estate.forge(owner, key, name, version, body, custom)

    return attempt


ATTEMPTS: dict[str, tuple[Attempt, type[TrustError]]] = {
    "a-model-as-pipelines": (lambda estate: (estate.model, None), errors.UnknownTarget),
    "a-version-that-nobody-signed": (
        lambda estate: (estate.old.model_copy(update={"version": "2.0.0"}), None),
        errors.UnknownTarget,
    ),
    "the-digest-of-other-pipelines": (
        lambda estate: (estate.old.model_copy(update={"digest": estate.other.digest}), None),
        errors.WrongDigest,
    ),
    "the-digest-of-a-model": (
        lambda estate: (estate.old.model_copy(update={"digest": estate.model.digest}), None),
        errors.WrongDigest,
    ),
    "for-another-site": (
        lambda estate: (estate.sign("meters", "2.0.0", estate.meters_key, "site=hall-3"), None),
        errors.NotForThisNode,
    ),
    "for-a-label-that-the-node-has-not": (
        lambda estate: (estate.sign("meters", "2.0.0", estate.meters_key, "site=hall-2, spare"), None),
        errors.NotForThisNode,
    ),
    "by-an-owner-of-models": (_forged("doors", "meters", "9.9.9", "meters 9.9.9"), errors.UnknownTarget),
    "by-an-owner-of-models-under-a-models-name": (_forged("doors", "door", "9.9.9", "door 9.9.9"), errors.UnknownTarget),
    "by-an-owner-of-other-pipelines": (_forged("gates-owner", "meters", "9.9.9", "meters 9.9.9"), errors.UnknownTarget),
    "by-a-helper-of-an-owner-of-models": (_delegated, errors.UnknownTarget),
    "under-the-version-of-another": (_forged("meters-owner", "meters", "9.9.9", "meters 1.0.0"), errors.WrongVersion),
    "under-the-name-of-another": (_forged("meters-owner", "meters", "9.9.9", "gates 9.9.9"), errors.WrongVersion),
    "that-are-no-document": (_forged("meters-owner", "meters", "9.9.9", "[]"), errors.WrongVersion),
    "for-a-selector-that-is-none": (
        _forged("meters-owner", "meters", "9.9.9", "meters 9.9.9", {"hedgerow": {"selector": "= ="}}),
        errors.BadMetadata,
    ),
    "for-a-selector-of-another-kind": (
        _forged("meters-owner", "meters", "9.9.9", "meters 9.9.9", {"hedgerow": {"selector": ["site=hall-2"]}}),
        errors.BadMetadata,
    ),
    "that-are-too-large": (_forged("meters-owner", "meters", "9.9.9", "x" * (LARGEST_MANIFEST + 1)), errors.EndlessData),
    "withdrawn": (_withdrawn, errors.UnknownTarget),
    "of-an-owner-who-was-removed": (_owner_removed, errors.UnknownTarget),
    "withdrawn-and-all-metadata-replayed": (_replayed, errors.RollbackAttack),
    "withdrawn-and-mixed-with-new-metadata": (_mixed, errors.EndlessData),
    "withdrawn-and-rolled-back-with-the-online-key": (_rolled_back, errors.RollbackAttack),
    "frozen-for-a-week": (_frozen, errors.ExpiredMetadata),
    "changed-at-the-same-length": (_replaced(lambda data: data.replace(b"trial", b"shell")), errors.WrongContent),
    "truncated": (_replaced(lambda data: data[:-1]), errors.TruncatedData),
    "longer-than-signed": (_replaced(lambda data: data + b" "), errors.EndlessData),
    "replaced-by-nothing": (_replaced(lambda _: b""), errors.TruncatedData),
}  # fmt: skip

LABELS = {"site": "hall-2"}


def read(node: TrustClient, ref: ModelRef) -> bytes:
    """Ask as a node does: with the newest metadata."""
    node.refresh()
    return node.manifest(ref, LABELS, PIPELINES)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_pipelines_that_nobody_signed_for_this_node_are_refused(tmp_path: Path, attempt: str) -> None:
    estate = Estate(tmp_path)
    make, expected = ATTEMPTS[attempt]
    ref, source = make(estate)
    node = estate.node if source is None else estate.client("attacked", source)

    with pytest.raises(expected) as refused:
        read(node, ref)

    assert type(refused.value) is expected
    assert refused.value.remedy
    estate.between.tamper = lambda _, data: data
    estate.time.wall = estate.time_began
    estate.expire_caches()
    assert digest_of(read(estate.client("another"), estate.other)) == estate.other.digest, "others are served"


@pytest.mark.parametrize("name", ["../meters", "me/ters", "meters\n", "", "m" * 65])
def test_a_reference_that_is_a_path_is_no_reference(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        ModelRef(name=name, version="1.0.0", digest=digest_of(b""))


def test_pipelines_do_not_pass_for_a_model(tmp_path: Path) -> None:
    estate = Estate(tmp_path)

    with pytest.raises(errors.UnknownTarget):
        estate.node.manifest(estate.old, LABELS)
