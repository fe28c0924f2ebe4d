"""Stolen keys, and owners who exceed their authority: each is refused with its own error."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tests.trust.attackers import (
    ExtendedRepository,
    OnlineKeyThief,
    attacked,
    current,
    make_root,
    other_target,
    replaced,
    sign,
    with_owner_metadata,
)
from tuf.api.metadata import DelegatedRole, Delegations

from hedgerow.models.bundle.manifest import digest_of
from hedgerow.trust import errors, key_ceremony
from hedgerow.wire.fleet import ModelRef

DAY = 86_400.0
World = Any


@pytest.fixture
def world(wired: World) -> World:
    """Every attack uses the blob channel."""
    return wired


# Stolen keys of the root


Table = tuple[list[int], int, list[int]]
"""Indices of the root's keys, the threshold, and the signers."""


@pytest.mark.parametrize(
    ("before", "after", "refusal"),
    [
        (([1], 1, [1]), ([2], 1, [1, 2]), None),
        (([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 1, 4]), None),
        (([1], 1, [1]), ([2], 1, [2, 3, 4]), errors.UnknownSigningKey),
        (([1], 1, [1]), ([2], 1, [1, 3, 4]), errors.UnknownSigningKey),
        (([1], 1, [1]), ([1], 1, []), errors.TooFewSignatures),
        (([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 1]), None),
        (([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4]), errors.TooFewSignatures),
        (([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 5]), errors.TooFewSignatures),
        (([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7]), None),
        (([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2]), None),
        (([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [2]), errors.TooFewSignatures),
        (([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1]), errors.TooFewSignatures),
        (([1], 1, [1]), ([1, 2], 2, [1, 2]), None),
    ],
)
def test_a_root_needs_enough_of_its_own_and_of_the_previous_keys(
    world: World, before: Table, after: Table, refusal: type[errors.TrustError] | None
) -> None:
    keys = [CryptoSigner.generate_ed25519() for _ in range(10)]

    def root(version: int, table: Table) -> bytes:
        metadata, (names, threshold, signers) = world.read("1.root"), table
        role = metadata.signed.roles["root"]
        for keyid in list(role.keyids):
            metadata.signed.revoke_key(keyid, "root")
        for name in names:
            metadata.signed.add_key(keys[name].public_key, "root")
        role.threshold, metadata.signed.version = threshold, version
        return sign(metadata, *(keys[name] for name in signers))

    world.root = root(1, before)
    node = world.client("node-2", ExtendedRepository(world, {"metadata/2.root.json": root(2, after)}))

    if refusal is None:
        assert node.refresh().root == 2
    else:
        with pytest.raises(refusal, match="root"):
            node.refresh()


def test_an_unsigned_root_is_not_skipped_for_a_signed_one(world: World) -> None:
    key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    unsigned = sign(world.read("2.root"))

    with (
        attacked(world, replaced("metadata/2.root.json", unsigned)),
        pytest.raises(errors.TooFewSignatures, match="0 of 2 required signatures"),
    ):
        world.node.refresh()
    assert world.node.refresh().root == 3


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_role_needs_as_many_signatures_as_its_threshold(world: World, role: str) -> None:
    """One of the keys is stolen."""
    ref, partner = world.publish(), CryptoSigner.generate_ed25519()

    def change(root: Any) -> None:
        root.add_key(partner.public_key, role)
        root.roles[role].threshold = 2

    documents = {"metadata/2.root.json": make_root(world, *world.root_keys, change=change)}

    with pytest.raises(errors.TooFewSignatures, match=f"the {role} has 1 of 2 required signatures"):
        world.client("other", ExtendedRepository(world, documents)).manifest(ref, {})


def test_one_stolen_root_key_cannot_sign_a_root(world: World) -> None:
    content = make_root(world, world.root_keys[0])

    with pytest.raises(errors.TooFewSignatures, match="1 of 2 required signatures"):
        world.client("other", ExtendedRepository(world, {"metadata/2.root.json": content})).refresh()


def test_a_key_that_signs_twice_counts_once(world: World) -> None:
    twice = json.loads(make_root(world, world.root_keys[0]))
    twice["signatures"] *= 2

    with pytest.raises(errors.TrustError) as refused:
        world.client("other", ExtendedRepository(world, {"metadata/2.root.json": json.dumps(twice).encode()})).refresh()
    assert refused.value.code in ("bad-metadata", "too-few-signatures")


def test_a_new_root_needs_the_old_keys(world: World) -> None:
    """New keys that only sign for themselves are not trusted."""
    new = [CryptoSigner.generate_ed25519() for _ in range(2)]

    def change(root: Any) -> None:
        for key in new:
            root.add_key(key.public_key, "root")

    content = make_root(world, *new, change=change)
    with pytest.raises(errors.UnknownSigningKey, match="root"):
        world.client("other", ExtendedRepository(world, {"metadata/2.root.json": content})).refresh()


def test_a_new_root_needs_its_own_keys(world: World) -> None:
    """A root whose keys do not exist could never be replaced."""
    new = [CryptoSigner.generate_ed25519() for _ in range(2)]

    def change(root: Any) -> None:
        for old in world.root_keys:
            root.revoke_key(old.public_key.keyid, "root")
        for key in new:
            root.add_key(key.public_key, "root")

    content = make_root(world, *world.root_keys, change=change)
    with pytest.raises(errors.UnknownSigningKey, match="root"):
        world.client("other", ExtendedRepository(world, {"metadata/2.root.json": content})).refresh()


@pytest.mark.parametrize("version", [1, 3, 7])
def test_a_root_that_does_not_follow_is_refused(world: World, version: int) -> None:
    content = make_root(world, *world.root_keys, version=version)

    with pytest.raises(errors.BrokenRootChain, match=f"followed by one with version {version}"):
        world.client("other", ExtendedRepository(world, {"metadata/2.root.json": content})).refresh()


def test_a_missing_root_breaks_the_chain(world: World) -> None:
    """A root cannot be skipped: keys that only a later root names are not trusted yet."""
    new = CryptoSigner.generate_ed25519()
    world.put_online_key(new)
    key_ceremony.rotate(
        world.repository,
        ("snapshot", "timestamp"),
        new=[new.public_key],
        old=[world.online_key.public_key.keyid],
        signers=world.root_keys,
    )
    key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    missing = (world.repository.metadata / "2.root.json").read_bytes()
    (world.repository.metadata / "2.root.json").unlink()

    with pytest.raises(errors.UnknownSigningKey, match="timestamp"):
        world.client("new").refresh()
    (world.repository.metadata / "2.root.json").write_bytes(missing)
    assert world.client("new").refresh().root == 3


# Owners who exceed their authority


def test_an_owner_cannot_sign_for_anothers_model(world: World) -> None:
    world.publish()
    target, ref, _ = other_target("meter")
    thief = with_owner_metadata(world, lambda signed: signed.targets.update({target.path: target}))

    with pytest.raises(errors.UnknownTarget, match="meter"):
        world.client("other", thief).manifest(ref, {})


def test_an_owner_cannot_delegate_another_ones_model(world: World) -> None:
    world.publish()
    target, ref, _ = other_target("meter")
    helper = CryptoSigner.generate_ed25519()

    def change(signed: Any) -> None:
        role = DelegatedRole("helper", [helper.public_key.keyid], 1, True, paths=["*/*/manifest.json"])
        signed.delegations = Delegations({helper.public_key.keyid: helper.public_key}, {"helper": role})

    thief = with_owner_metadata(world, change)
    metadata = world.read(Path(current(world, "doors")).stem)
    metadata.signed.targets, metadata.signed.version = {target.path: target}, 1
    thief.replace("helper", sign(metadata, helper)).sign()

    with pytest.raises(errors.UnknownTarget):
        world.client("other", thief).manifest(ref, {})


def test_a_delegate_of_one_owner_cannot_sign_for_another(world: World) -> None:
    """Both delegate to `release`, with different keys; only one key signs it."""
    ours, theirs, gates = (CryptoSigner.generate_ed25519() for _ in range(3))
    world.add_owner("gates", gates, "turnstile")
    world.publish()
    world.publish(name="turnstile", key=gates)
    own, own_ref, document = other_target("door", world.bundle(b"mine", version="9.9.9").manifest.encode(), "9.9.9")
    foreign, foreign_ref, _ = other_target("turnstile", version="9.9.9")
    thief = OnlineKeyThief(world, {document: world.bundle(b"mine", version="9.9.9").manifest.encode()})
    for owner, key, helper in (("doors", world.owner_key, ours), ("gates", gates, theirs)):
        metadata = world.read(Path(current(world, owner)).stem)
        role = DelegatedRole("release", [helper.public_key.keyid], 1, True, paths=["*/*/manifest.json"])
        metadata.signed.delegations = Delegations({helper.public_key.keyid: helper.public_key}, {"release": role})
        metadata.signed.version += 1
        thief.replace(owner, sign(metadata, key))
    release = world.read(Path(current(world, "doors")).stem)
    release.signed.targets, release.signed.version = {own.path: own, foreign.path: foreign}, 1
    node = world.client("other", thief.replace("release", sign(release, ours)).sign())

    assert digest_of(node.manifest(own_ref, {})) == own_ref.digest
    with pytest.raises(errors.UnknownSigningKey, match="owner release"):
        node.manifest(foreign_ref, {})


def test_circular_and_endless_delegations_are_refused(world: World) -> None:
    """A node follows a limited number of delegations, then reports that the target is unsigned."""
    ref = world.publish().model_copy(update={"version": "9.9.9"})
    names = ["doors", *(f"deep-{number}" for number in range(60)), "doors"]
    thief = OnlineKeyThief(world)
    for name, following in itertools.pairwise(names):
        metadata = world.read(Path(current(world, "doors")).stem)
        role = DelegatedRole(following, [world.owner_key.public_key.keyid], 1, False, paths=["*/*/manifest.json"])
        key = world.owner_key.public_key
        metadata.signed.delegations = Delegations({key.keyid: key}, {following: role})
        metadata.signed.version += 1
        thief.replace(name, sign(metadata, world.owner_key))
    counted = ExtendedRepository(world, {})
    requested: list[str] = []

    def get(path: str, max_bytes: int) -> Any:
        requested.append(path)
        counted.documents = thief.sign().documents if not counted.documents else counted.documents
        yield from ExtendedRepository(world, counted.documents).get(path, max_bytes)

    counted.get = get  # type: ignore[method-assign]
    with pytest.raises(errors.UnknownTarget):
        world.client("other", counted).manifest(ref, {})
    assert sum("deep-" in path for path in requested) <= 32


def test_one_owners_metadata_cannot_replace_another_ones(world: World) -> None:
    gates = CryptoSigner.generate_ed25519()
    world.add_owner("gates", gates, "turnstile")
    world.publish(name="turnstile", key=gates)
    ref = world.publish("1.0.0")
    theirs = (world.repository.folder / current(world, "gates")).read_bytes()

    thief = OnlineKeyThief(world).replace("doors", theirs, 9).sign()
    with pytest.raises(errors.UnknownSigningKey, match="owner doors"):
        world.client("other", thief).manifest(ref, {})


def test_a_manifest_must_match_its_path(world: World) -> None:
    """An owner signs one version under the name of another."""
    world.publish("1.0.0")
    real = world.bundle(b"other", version="2.0.0").manifest.encode()
    target, ref, document = other_target("door", real, "9.9.9")
    thief = with_owner_metadata(world, lambda signed: signed.targets.update({target.path: target}))
    thief.documents[document] = real

    with pytest.raises(errors.WrongVersion, match=r"its manifest is for door 2\.0\.0"):
        world.client("other", thief).manifest(ref, {})


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'"door"'])
def test_a_target_that_is_not_a_manifest_is_refused(world: World, content: bytes) -> None:
    world.publish("1.0.0")
    target, ref, document = other_target("door", content, "9.9.9")
    thief = with_owner_metadata(world, lambda signed: signed.targets.update({target.path: target}))
    thief.documents[document] = content

    with pytest.raises(errors.WrongVersion, match="is not a manifest"):
        world.client("other", thief).manifest(ref, {})


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"hedgerow": {"selector": "= ="}}, "has an invalid selector: "),
        ({"hedgerow": {"selector": 7}}, "has an unreadable selector$"),
        ({"hedgerow": []}, "has an unreadable selector$"),
    ],
)
def test_an_unreadable_selector_is_refused(world: World, custom: Any, message: str) -> None:
    """A selector that cannot be read cannot be enforced."""
    world.publish("1.0.0")
    target, ref, _ = other_target("door", b"{}", "9.9.9")
    target.unrecognized_fields["custom"] = custom
    thief = with_owner_metadata(world, lambda signed: signed.targets.update({target.path: target}))

    with pytest.raises(errors.BadMetadata, match=message):
        world.client("other", thief).manifest(ref, {})


def test_a_digest_other_than_the_signed_one_is_refused(world: World) -> None:
    ref = world.publish()

    with pytest.raises(errors.WrongDigest):
        world.node.manifest(ref.model_copy(update={"digest": digest_of(b"other")}), {})


def test_an_unsigned_version_is_refused(world: World) -> None:
    ref = world.publish()

    with pytest.raises(errors.UnknownTarget, match=r"door 1\.0\.1"):
        world.node.manifest(ref.model_copy(update={"version": "1.0.1"}), {})


def test_an_owner_who_has_published_nothing_has_no_models(world: World) -> None:
    with pytest.raises(errors.UnknownTarget):
        world.node.manifest(ModelRef(name="door", version="1.0.0", digest=digest_of(b"")), {})
