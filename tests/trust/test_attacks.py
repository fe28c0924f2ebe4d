"""Whoever sits between the repository and a node, and whoever has stolen a key: each is refused, each in its own words.

The attacks are those that The Update Framework names. Documents are real ones, tampered with on their way; where an attack
needs a key, it is signed with it. After each, an honest repository is believed again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, TargetFile

from hedgerow.blobs.errors import RegionAway
from hedgerow.blobs.notes import LARGEST_PART
from hedgerow.models.manifest import digest_of
from hedgerow.trust import ceremony, errors
from hedgerow.trust.roles import SIGNED_AT
from hedgerow.wire.fleet import ModelRef

DAY = 86_400.0
World = Any


@pytest.fixture
def world(wired: World) -> World:
    """Every attack comes over the blob channel; where it takes thousands of them, see `near`."""
    return wired


Tamper = Callable[[str, Any], Any]


@contextmanager
def attacked(world: World, tamper: Tamper) -> Iterator[None]:
    """While somebody tampers; afterwards the node believes the repository as before."""
    honest, world.between.tamper = world.between.tamper, tamper
    world.later()
    try:
        yield
    finally:
        world.between.tamper = honest
        world.later()


def replaced(path: str, content: bytes) -> Tamper:
    return lambda asked, data: content if asked == path else data


def current(world: World, role: str) -> str:
    """The path of the metadata that nodes see of a role."""
    if role == "timestamp":
        return "metadata/timestamp.json"
    if role == "snapshot":
        return f"metadata/{world.repository.timestamp().signed.snapshot_meta.version}.snapshot.json"
    return f"metadata/{world.repository.snapshot().signed.meta[f'{role}.json'].version}.{role}.json"


def sign(metadata: Metadata[Any], *keys: CryptoSigner) -> bytes:
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(key, append=True)
    return metadata.to_bytes()


class OnlineKeyThief:
    """Somebody who has the online key, and serves what he likes with it."""

    def __init__(self, world: World, documents: dict[str, bytes] | None = None) -> None:
        self.world = world
        self.documents = documents or {}
        self.snapshot = world.read(str(Path(current(world, "snapshot")).stem))
        self.timestamp = world.read("timestamp")

    def says(self, role: str, content: bytes, version: int | None = None) -> OnlineKeyThief:
        """That this is the metadata of a role; `version`: what the snapshot says of it."""
        version = version or json.loads(content)["signed"]["version"]
        self.snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(version, content, ["sha256"])
        self.documents[f"metadata/{version}.{role}.json"] = content
        return self

    def signs(self, *, snapshot_version: int | None = None) -> OnlineKeyThief:
        self.snapshot.signed.version = snapshot_version or self.snapshot.signed.version + 1
        content = sign(self.snapshot, self.world.online_key)
        self.timestamp.signed.version += 1
        self.timestamp.signed.snapshot_meta = MetaFile.from_data(self.snapshot.signed.version, content, ["sha256"])
        self.documents[f"metadata/{self.snapshot.signed.version}.snapshot.json"] = content
        self.documents["metadata/timestamp.json"] = sign(self.timestamp, self.world.online_key)
        return self

    def tamper(self, path: str, data: Any) -> Any:
        return self.documents.get(path, data)

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        if path in self.documents:
            yield self.documents[path]
        else:
            yield from self.world.between.get(path, max_bytes)


# Arbitrary software


def test_other_content_of_the_same_length_is_refused(world: World) -> None:
    ref = world.publish()

    with (
        attacked(world, lambda path, data: b"x" * len(data) if "manifest" in path else data),
        pytest.raises(errors.WrongContent, match="what serves goes on"),
    ):
        world.node.manifest(ref, {})
    assert digest_of(world.node.manifest(ref, {})) == ref.digest


def test_a_manifest_that_is_cut_short_is_refused(world: World) -> None:
    ref = world.publish()

    with (
        attacked(world, lambda path, data: data[:-1] if "manifest" in path else data),
        pytest.raises(errors.TruncatedData),
    ):
        world.node.manifest(ref, {})
    assert world.node.manifest(ref, {})


def test_a_whole_repository_of_somebody_else_is_refused(world: World, tmp_path: Path) -> None:
    world.publish()
    world.node.refresh()
    (tmp_path / "other").mkdir()
    other = type(world)(tmp_path / "other")
    ref = other.publish(content=b"malice")
    world.between.folder = other.repository.folder
    world.later()

    with pytest.raises(errors.UnknownSigningKey, match="timestamp"):
        world.node.refresh()
    with pytest.raises(errors.UnknownSigningKey, match="timestamp"):
        world.client("new").manifest(ref, {})


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "doors"])
def test_what_a_stranger_has_signed_is_refused(world: World, role: str) -> None:
    """Even if he has the online key, for the roles below."""
    ref = world.publish()
    metadata, stranger = world.read(Path(current(world, role)).stem), CryptoSigner.generate_ed25519()
    content = sign(metadata, stranger)
    documents = replaced(current(world, role), content)
    if role in ("targets", "doors"):
        documents = OnlineKeyThief(world).says(role, content).signs().tamper
    if role == "snapshot":
        thief = OnlineKeyThief(world)
        thief.timestamp.signed.snapshot_meta = MetaFile.from_data(metadata.signed.version, content, ["sha256"])
        thief.timestamp.signed.version += 1
        timestamp = sign(thief.timestamp, world.online_key)
        documents = OnlineKeyThief(world, {current(world, role): content, "metadata/timestamp.json": timestamp}).tamper

    with attacked(world, documents), pytest.raises(errors.UnknownSigningKey, match=stranger.public_key.keyid[:8]):
        world.node.manifest(ref, {})


@pytest.mark.parametrize("role", ["timestamp", "targets", "doors"])
def test_what_was_changed_after_it_was_signed_is_refused(world: World, role: str) -> None:
    ref = world.publish()
    metadata = world.read(Path(current(world, role)).stem)
    metadata.signed.unrecognized_fields["more"] = "than was signed"
    content = metadata.to_bytes()
    documents = replaced(current(world, role), content)
    if role != "timestamp":
        documents = OnlineKeyThief(world).says(role, content).signs().tamper

    with attacked(world, documents), pytest.raises(errors.BadSignature, match="what serves goes on"):
        world.node.manifest(ref, {})


def test_without_a_signature_nothing_is_believed(world: World) -> None:
    world.publish()

    with (
        attacked(world, replaced("metadata/timestamp.json", sign(world.read("timestamp")))),
        pytest.raises(errors.TooFewSignatures, match="0 of the 1"),
    ):
        world.node.refresh()


def test_a_document_of_another_kind_is_refused(world: World) -> None:
    """The online key signs snapshots too, but a snapshot is no timestamp."""
    world.publish()
    snapshot = (world.repository.folder / current(world, "snapshot")).read_bytes()

    with attacked(world, replaced("metadata/timestamp.json", snapshot)), pytest.raises(errors.BadMetadata):
        world.node.refresh()


# Endless, slow and truncated data


class Endless:
    """Sends without end whatever path begins with `where`; counts what was taken."""

    def __init__(self, world: World, where: str) -> None:
        self.world, self.where, self.taken = world, where, 0

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        if self.where not in path:
            yield from self.world.between.get(path, max_bytes)
            return
        while True:
            self.taken += 4096
            yield b"\0" * 4096


@pytest.mark.parametrize(
    ("where", "most"),
    [
        ("timestamp", 16_384),
        ("snapshot", 4096),
        ("targets", 4096),
        ("doors", 4096),
        ("manifest", 4096),
        ("root", 512_000),
    ],
)
def test_endless_data_is_cut_off_at_what_is_signed_for(world: World, where: str, most: int) -> None:
    """The channel brings it in parts, and no part is asked for beyond that."""
    ref = world.publish()
    documents = Endless(world, where)

    with pytest.raises(errors.EndlessData):
        world.client("other", documents).manifest(ref, {})
    parts = most // LARGEST_PART + 1
    assert documents.taken <= sum(range(1, parts + 1)) * LARGEST_PART + parts * 4096


def test_what_is_endless_is_not_taken_beyond_a_piece(near: World) -> None:
    documents = Endless(near, "timestamp")

    with pytest.raises(errors.EndlessData):
        near.client("other", documents).refresh()
    assert documents.taken <= 16_384 + 4096


def test_data_that_trickles_is_given_up(near: World) -> None:
    """Each byte comes in time, and the document never would."""

    class Trickle:
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            if "timestamp" not in path:
                yield from near.between.get(path, max_bytes)
                return
            while True:
                near.time.passes(20)
                yield b" "

    with pytest.raises(errors.SlowData):
        near.client("other", Trickle()).refresh()


@pytest.mark.parametrize("where", ["timestamp", "snapshot", "targets", "doors"])
def test_metadata_that_is_cut_short_is_refused(world: World, where: str) -> None:
    ref = world.publish()

    with (
        attacked(world, lambda path, data: data[: len(data) // 2] if where in path else data),
        pytest.raises(errors.TruncatedData),
    ):
        world.node.manifest(ref, {})
    assert world.node.manifest(ref, {})


def test_what_cannot_be_reached_is_no_refusal(near: World) -> None:
    """A cut link raises what the link raises; nobody is suspected."""

    class Cut:
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            raise RegionAway("nobody answers", remedy="wait")

    with pytest.raises(RegionAway):
        near.client("other", Cut()).refresh()


def test_a_repository_that_is_not_whole_is_told_as_such(world: World) -> None:
    ref = world.publish()

    def gone(path: str, data: Any) -> Any:
        return None if "manifest" in path or "timestamp" in path else data

    with attacked(world, gone), pytest.raises(errors.MissingMetadata, match="timestamp"):
        world.node.manifest(ref, {})
    world.node.refresh()
    with attacked(world, gone), pytest.raises(errors.MissingMetadata, match="manifest"):
        world.node.manifest(ref, {})


# Rollback


def test_an_older_timestamp_is_refused_also_after_a_restart(world: World) -> None:
    old = (world.repository.metadata / "timestamp.json").read_bytes()
    world.publish()
    world.node.refresh()

    for node in (world.node, world.client("node")):
        with (
            attacked(world, replaced("metadata/timestamp.json", old)),
            pytest.raises(errors.RollbackAttack, match="was seen"),
        ):
            node.refresh()
        node.refresh()


def test_a_timestamp_that_goes_back_behind_a_snapshot_is_refused(world: World) -> None:
    before = world.read("timestamp").signed.snapshot_meta
    world.publish()
    world.node.refresh()
    timestamp = world.read("timestamp")
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = before

    with (
        attacked(world, replaced("metadata/timestamp.json", sign(timestamp, world.online_key))),
        pytest.raises(errors.RollbackAttack, match="goes back behind snapshot"),
    ):
        world.node.refresh()


@pytest.mark.parametrize("role", ["targets", "doors"])
def test_a_snapshot_that_takes_a_role_back_is_refused(world: World, role: str) -> None:
    """Only whoever has the online key could try."""
    world.publish("1.0.0")
    old = (world.repository.folder / current(world, role)).read_bytes()
    world.publish("1.1.0")
    world.add_owner("gates", CryptoSigner.generate_ed25519(), "turnstile")
    world.node.refresh()
    thief = OnlineKeyThief(world).says(role, old).signs()

    with attacked(world, thief.tamper), pytest.raises(errors.RollbackAttack, match="snapshot"):
        world.node.refresh()


def test_a_snapshot_that_forgets_an_owner_is_refused(world: World) -> None:
    world.publish()
    world.node.refresh()
    thief = OnlineKeyThief(world)
    del thief.snapshot.signed.meta["doors.json"]

    with attacked(world, thief.signs().tamper), pytest.raises(errors.RollbackAttack, match="no longer knows"):
        world.node.refresh()


def test_another_timestamp_of_the_same_version_changes_nothing(world: World) -> None:
    ref = world.publish()
    world.node.refresh()
    timestamp = world.read("timestamp")
    timestamp.signed.snapshot_meta.version += 5

    with attacked(world, replaced("metadata/timestamp.json", sign(timestamp, world.online_key))):
        world.node.refresh()
        assert world.node.manifest(ref, {})


# Fast-forward


def test_versions_driven_to_the_end_are_mended_by_another_online_key(world: World) -> None:
    """Whoever had the online key can make nodes refuse the true repository: until the root takes the key away."""
    world.publish()
    thief = OnlineKeyThief(world)
    thief.timestamp.signed.version = 2**31
    with attacked(world, thief.signs(snapshot_version=2**31).tamper):
        world.node.refresh()
    with pytest.raises(errors.RollbackAttack):
        world.node.refresh()

    new = CryptoSigner.generate_ed25519()
    world.put_online_key(new)
    ceremony.rotate(
        world.repository,
        ("snapshot", "timestamp"),
        new=[new.public_key],
        old=[world.online_key.public_key.keyid],
        signers=world.root_keys[:2],
    )
    ref = world.publish("1.1.0")
    assert world.node.refresh().root == 2
    assert world.node.manifest(ref, {})
    with attacked(world, thief.tamper), pytest.raises(errors.UnknownSigningKey):
        world.node.refresh()


# Freeze


def test_a_repository_held_at_one_moment_is_refused_when_that_is_over(world: World) -> None:
    ref = world.publish()
    world.node.refresh()
    world.time.passes(6.9 * DAY)
    assert world.node.manifest(ref, {})
    world.time.passes(0.2 * DAY)

    with pytest.raises(errors.ExpiredMetadata, match="the timestamp counted until"):
        world.node.refresh()
    with pytest.raises(errors.ExpiredMetadata):
        world.node.manifest(ref, {})
    assert world.repository.refresh_timestamp()
    assert world.node.manifest(ref, {})


@pytest.mark.parametrize("role", ["root", "snapshot", "targets", "doors"])
def test_each_role_may_expire_while_the_others_count(world: World, role: str) -> None:
    """The region signs on and on; who does not sign his own part anew is refused."""
    ref = world.publish()
    lives = {"root": 730, "targets": 365, "doors": 365, "snapshot": 0}
    if role == "snapshot":
        thief = OnlineKeyThief(world)
        thief.snapshot.signed.expires = datetime.fromtimestamp(world.time.wall - 1, UTC)
        documents = thief.signs().tamper
    else:
        if role == "root":
            world.time.passes(364 * DAY)
            ceremony.renew(world.repository, "doors", [world.owner_key])
            ceremony.renew(world.repository, "targets", [world.targets_key])
            world.time.passes(364 * DAY)
            ceremony.renew(world.repository, "doors", [world.owner_key])
            ceremony.renew(world.repository, "targets", [world.targets_key])
            world.time.passes(3 * DAY)
        else:
            world.time.passes(364 * DAY)
            other = {"targets": "doors", "doors": "targets"}[role]
            ceremony.renew(world.repository, other, [world.owner_key if other == "doors" else world.targets_key])
            world.time.passes((lives[role] - 363) * DAY)
        world.repository.refresh_timestamp()
        documents = world.between.tamper

    with attacked(world, documents), pytest.raises(errors.ExpiredMetadata, match=f"{role} counted until"):
        world.node.manifest(ref, {})


# Mix and match


@pytest.mark.parametrize("role", ["snapshot", "targets", "doors"])
def test_parts_of_two_moments_do_not_go_together(world: World, role: str) -> None:
    """Each is signed; they were never true at once."""
    world.publish("1.0.0")
    old = (world.repository.folder / current(world, role)).read_bytes()
    world.add_owner("gates", CryptoSigner.generate_ed25519(), "turnstile")
    ref = world.publish("1.1.0")

    with (
        attacked(world, replaced(current(world, role), old.ljust(_length(world, role)))),
        pytest.raises(errors.MixAndMatch),
    ):
        world.node.manifest(ref, {})


def _length(world: World, role: str) -> int:
    """As long as what is signed for, so that the length gives nothing away; JSON may end in spaces."""
    return (world.repository.folder / current(world, role)).stat().st_size


@pytest.mark.parametrize("role", ["targets", "doors"])
def test_a_version_in_the_name_that_is_not_the_one_inside_is_refused(world: World, role: str) -> None:
    ref = world.publish()
    content = (world.repository.folder / current(world, role)).read_bytes()
    version = world.read(Path(current(world, role)).stem).signed.version
    thief = OnlineKeyThief(world).says(role, content, version + 1).signs()

    with attacked(world, thief.tamper), pytest.raises(errors.MixAndMatch, match=f"version {version}"):
        world.node.manifest(ref, {})


# Stolen keys of the root


def rooted(
    world: World, *keys: CryptoSigner, version: int = 2, change: Callable[[Any], None] = lambda _: None
) -> bytes:
    root = world.read("1.root")
    root.signed.version = version
    change(root.signed)
    return sign(root, *keys)


class Served:
    """The repository with further documents."""

    def __init__(self, world: World, documents: dict[str, bytes]) -> None:
        self.world, self.documents = world, documents

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        if path in self.documents:
            yield self.documents[path]
        else:
            yield from self.world.between.get(path, max_bytes)


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


def owned(world: World, change: Callable[[Any], None]) -> OnlineKeyThief:
    """What an owner signs who does not use our tools, taken in by somebody with the online key."""
    metadata = world.read(Path(current(world, "doors")).stem)
    metadata.signed.version += 1
    change(metadata.signed)
    return OnlineKeyThief(world).says("doors", sign(metadata, world.owner_key)).signs()


def other_target(name: str, content: bytes = b"{}", version: str = "1.0.0") -> tuple[TargetFile, ModelRef, str]:
    path = f"{name}/{version}/manifest.json"
    target = TargetFile.from_data(path, content, ["sha256"])
    where = f"targets/{name}/{version}/{target.hashes['sha256']}.manifest.json"
    return target, ModelRef(name=name, version=version, digest=digest_of(content)), where


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


# Anything


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_to_any_document_is_believed(near: World, data: st.DataObject) -> None:
    """Whatever is flipped, cut or put in, anywhere: it is refused, or what comes out is the same."""
    world = near
    ref = world.publish()
    asked = {"timestamp", "snapshot", ".targets.", "doors", "manifest"}
    where = data.draw(st.sampled_from(sorted(asked)))
    place = data.draw(st.floats(0, 1, exclude_max=True))
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "double"]))
    bit = data.draw(st.integers(1, 255))

    def tamper(path: str, content: Any) -> Any:
        if where not in path:
            return content
        at = int(place * len(content))
        match how:
            case "flip":
                return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
            case "cut":
                return content[:at]
            case "insert":
                return content[:at] + bytes([bit]) + content[at:]
            case "remove":
                return content[:at] + content[at + 1 :]
        return content + content

    node = world.client(f"node-{next(_NUMBERS)}")
    with attacked(world, tamper):
        believed, refused = None, None
        try:
            believed = node.manifest(ref, {})
        except errors.TrustError as error:
            refused = error.code
    assert refused not in ("not-trusted", "unknown-target")
    assert refused or digest_of(believed) == ref.digest
    assert digest_of(node.manifest(ref, {})) == ref.digest


_NUMBERS = itertools.count()


def test_when_it_was_signed_is_signed_too(world: World) -> None:
    timestamp = json.loads((world.repository.metadata / "timestamp.json").read_bytes())
    timestamp["signed"][SIGNED_AT] += 1

    with (
        attacked(world, replaced("metadata/timestamp.json", json.dumps(timestamp).encode())),
        pytest.raises(errors.BadSignature),
    ):
        world.node.refresh()
