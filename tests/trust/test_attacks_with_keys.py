"""Whoever has stolen some of the keys, and owners who reach for more than is theirs: each is refused, in its own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tests.trust.attackers import OnlineKeyThief, Served, current, other_target, owned, rooted, sign
from tuf.api.metadata import DelegatedRole, Delegations

from hedgerow.models.manifest import digest_of
from hedgerow.trust import ceremony, errors
from hedgerow.wire.fleet import ModelRef

DAY = 86_400.0
World = Any


@pytest.fixture
def world(wired: World) -> World:
    """Every attack comes over the blob channel."""
    return wired


# Stolen keys of the root


def test_one_stolen_key_of_the_root_makes_no_root(world: World) -> None:
    content = rooted(world, world.root_keys[0])

    with pytest.raises(errors.TooFewSignatures, match="1 of the 2"):
        world.client("other", Served(world, {"metadata/2.root.json": content})).refresh()


def test_a_key_that_signs_twice_counts_once(world: World) -> None:
    twice = json.loads(rooted(world, world.root_keys[0]))
    twice["signatures"] *= 2

    with pytest.raises(errors.TrustError) as refused:
        world.client("other", Served(world, {"metadata/2.root.json": json.dumps(twice).encode()})).refresh()
    assert refused.value.code in ("bad-metadata", "too-few-signatures")


def test_a_new_root_needs_the_old_keys(world: World) -> None:
    """New keys that sign for themselves are nobody's."""
    new = [CryptoSigner.generate_ed25519() for _ in range(2)]

    def change(root: Any) -> None:
        for key in new:
            root.add_key(key.public_key, "root")

    content = rooted(world, *new, change=change)
    with pytest.raises(errors.UnknownSigningKey, match="root"):
        world.client("other", Served(world, {"metadata/2.root.json": content})).refresh()


def test_a_new_root_needs_its_own_keys(world: World) -> None:
    """A root whose keys nobody has could never be followed by another."""
    new = [CryptoSigner.generate_ed25519() for _ in range(2)]

    def change(root: Any) -> None:
        for old in world.root_keys:
            root.revoke_key(old.public_key.keyid, "root")
        for key in new:
            root.add_key(key.public_key, "root")

    content = rooted(world, *world.root_keys, change=change)
    with pytest.raises(errors.UnknownSigningKey, match="root"):
        world.client("other", Served(world, {"metadata/2.root.json": content})).refresh()


@pytest.mark.parametrize("version", [1, 3, 7])
def test_a_root_that_does_not_follow_is_refused(world: World, version: int) -> None:
    content = rooted(world, *world.root_keys, version=version)

    with pytest.raises(errors.BrokenRootChain, match=f"it is {version}"):
        world.client("other", Served(world, {"metadata/2.root.json": content})).refresh()


def test_a_gap_in_the_roots_leads_nowhere(world: World) -> None:
    """A root cannot be skipped: what only a later one lets count is a stranger's."""
    new = CryptoSigner.generate_ed25519()
    world.put_online_key(new)
    ceremony.rotate(
        world.repository,
        ("snapshot", "timestamp"),
        new=[new.public_key],
        old=[world.online_key.public_key.keyid],
        signers=world.root_keys,
    )
    ceremony.rotate(world.repository, (), signers=world.root_keys)
    gone = (world.repository.metadata / "2.root.json").read_bytes()
    (world.repository.metadata / "2.root.json").unlink()

    with pytest.raises(errors.UnknownSigningKey, match="timestamp"):
        world.client("new").refresh()
    (world.repository.metadata / "2.root.json").write_bytes(gone)
    assert world.client("new").refresh().root == 3


# Owners who reach for more


def test_an_owner_cannot_sign_for_anothers_model(world: World) -> None:
    world.publish()
    target, ref, _ = other_target("meter")
    thief = owned(world, lambda signed: signed.targets.update({target.path: target}))

    with pytest.raises(errors.UnknownTarget, match="meter"):
        world.client("other", thief).manifest(ref, {})


def test_an_owner_cannot_delegate_what_is_not_his(world: World) -> None:
    world.publish()
    target, ref, _ = other_target("meter")
    helper = CryptoSigner.generate_ed25519()

    def change(signed: Any) -> None:
        role = DelegatedRole("helper", [helper.public_key.keyid], 1, True, paths=["*/*/manifest.json"])
        signed.delegations = Delegations({helper.public_key.keyid: helper.public_key}, {"helper": role})

    thief = owned(world, change)
    metadata = world.read(Path(current(world, "doors")).stem)
    metadata.signed.targets, metadata.signed.version = {target.path: target}, 1
    thief.says("helper", sign(metadata, helper)).signs()

    with pytest.raises(errors.UnknownTarget):
        world.client("other", thief).manifest(ref, {})


def test_one_owners_word_does_not_pass_for_anothers(world: World) -> None:
    gates = CryptoSigner.generate_ed25519()
    world.add_owner("gates", gates, "turnstile")
    world.publish(name="turnstile", key=gates)
    ref = world.publish("1.0.0")
    theirs = (world.repository.folder / current(world, "gates")).read_bytes()

    thief = OnlineKeyThief(world).says("doors", theirs, 9).signs()
    with pytest.raises(errors.UnknownSigningKey, match="owner doors"):
        world.client("other", thief).manifest(ref, {})


def test_a_manifest_is_what_its_place_says(world: World) -> None:
    """An owner who signs one version by the name of another."""
    world.publish("1.0.0")
    real = world.bundle(b"other", version="2.0.0").manifest.encode()
    target, ref, where = other_target("door", real, "9.9.9")
    thief = owned(world, lambda signed: signed.targets.update({target.path: target}))
    thief.documents[where] = real

    with pytest.raises(errors.WrongVersion, match=r"it is door 2\.0\.0"):
        world.client("other", thief).manifest(ref, {})


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'"door"'])
def test_what_is_no_manifest_is_refused(world: World, content: bytes) -> None:
    world.publish("1.0.0")
    target, ref, where = other_target("door", content, "9.9.9")
    thief = owned(world, lambda signed: signed.targets.update({target.path: target}))
    thief.documents[where] = content

    with pytest.raises(errors.WrongVersion, match="no manifest"):
        world.client("other", thief).manifest(ref, {})


@pytest.mark.parametrize("custom", [{"hedgerow": {"selector": "= ="}}, {"hedgerow": {"selector": 7}}, {"hedgerow": []}])
def test_for_whom_it_is_must_be_readable(world: World, custom: Any) -> None:
    """A restriction that cannot be read is none that can be kept."""
    world.publish("1.0.0")
    target, ref, _ = other_target("door", b"{}", "9.9.9")
    target.unrecognized_fields["custom"] = custom
    thief = owned(world, lambda signed: signed.targets.update({target.path: target}))

    with pytest.raises(errors.BadMetadata, match="for which nodes"):
        world.client("other", thief).manifest(ref, {})


def test_a_digest_that_is_not_the_signed_one_is_refused(world: World) -> None:
    ref = world.publish()

    with pytest.raises(errors.WrongDigest):
        world.node.manifest(ref.model_copy(update={"digest": digest_of(b"other")}), {})


def test_a_version_nobody_has_signed_is_refused(world: World) -> None:
    ref = world.publish()

    with pytest.raises(errors.UnknownTarget, match=r"door 1\.0\.1"):
        world.node.manifest(ref.model_copy(update={"version": "1.0.1"}), {})


def test_an_owner_who_has_published_nothing_has_no_models(world: World) -> None:
    with pytest.raises(errors.UnknownTarget):
        world.node.manifest(ModelRef(name="door", version="1.0.0", digest=digest_of(b"")), {})
