"""Attackers between the repository and a node, or with a stolen key: each is refused with its own error.

The attacks are those that The Update Framework names. Documents are real, tampered with in transit, and signed with the
stolen key where an attack needs one. After each attack, the genuine repository is accepted again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tests.examples import examples
from tests.trust.attackers import OnlineKeyThief, attacked, current, replaced, sign
from tuf.api.metadata import MetaFile

from hedgerow.blobs.announcements import MAX_PART_BYTES
from hedgerow.blobs.errors import RegionUnavailable
from hedgerow.models.bundle.manifest import digest_of
from hedgerow.trust import errors, key_ceremony
from hedgerow.trust.roles import SIGNED_AT

DAY = 86_400.0
World = Any


@pytest.fixture
def world(wired: World) -> World:
    """Every attack uses the blob channel; tests that need thousands of attacks use `near`."""
    return wired


# Arbitrary software


def test_other_content_of_the_same_length_is_refused(world: World) -> None:
    ref = world.publish()

    with (
        attacked(world, lambda path, data: b"x" * len(data) if "manifest" in path else data),
        pytest.raises(errors.WrongContent, match="the old version keeps serving"),
    ):
        world.node.manifest(ref, {})
    assert digest_of(world.node.manifest(ref, {})) == ref.digest


def test_a_truncated_manifest_is_refused(world: World) -> None:
    ref = world.publish()

    with (
        attacked(world, lambda path, data: data[:-1] if "manifest" in path else data),
        pytest.raises(errors.TruncatedData),
    ):
        world.node.manifest(ref, {})
    assert world.node.manifest(ref, {})


def test_another_repository_is_refused(world: World, tmp_path: Path) -> None:
    world.publish()
    world.node.refresh()
    (tmp_path / "other").mkdir()
    other = type(world)(tmp_path / "other")
    ref = other.publish(content=b"malice")
    world.between.folder = other.repository.folder
    world.expire_caches()

    with pytest.raises(errors.UnknownSigningKey, match="timestamp"):
        world.node.refresh()
    with pytest.raises(errors.UnknownSigningKey, match="timestamp"):
        world.client("new").manifest(ref, {})


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "doors"])
def test_metadata_signed_by_an_unknown_key_is_refused(world: World, role: str) -> None:
    """Even if the online key signs a snapshot with it."""
    ref = world.publish()
    metadata, stranger = world.read(Path(current(world, role)).stem), CryptoSigner.generate_ed25519()
    content = sign(metadata, stranger)
    documents = replaced(current(world, role), content)
    if role in ("targets", "doors"):
        documents = OnlineKeyThief(world).replace(role, content).sign().tamper
    if role == "snapshot":
        thief = OnlineKeyThief(world)
        thief.timestamp.signed.snapshot_meta = MetaFile.from_data(metadata.signed.version, content, ["sha256"])
        thief.timestamp.signed.version += 1
        timestamp = sign(thief.timestamp, world.online_key)
        documents = OnlineKeyThief(world, {current(world, role): content, "metadata/timestamp.json": timestamp}).tamper

    with attacked(world, documents), pytest.raises(errors.UnknownSigningKey, match=stranger.public_key.keyid[:8]):
        world.node.manifest(ref, {})


@pytest.mark.parametrize("role", ["timestamp", "targets", "doors"])
def test_metadata_changed_after_signing_is_refused(world: World, role: str) -> None:
    ref = world.publish()
    metadata = world.read(Path(current(world, role)).stem)
    metadata.signed.unrecognized_fields["more"] = "than was signed"
    content = metadata.to_bytes()
    documents = replaced(current(world, role), content)
    if role != "timestamp":
        documents = OnlineKeyThief(world).replace(role, content).sign().tamper

    with attacked(world, documents), pytest.raises(errors.BadSignature, match="the old version keeps serving"):
        world.node.manifest(ref, {})


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "doors"])
def test_unsigned_metadata_is_refused(world: World, role: str) -> None:
    ref = world.publish()
    content = sign(world.read(Path(current(world, role)).stem))
    documents = replaced(current(world, role), content)
    if role == "snapshot":
        documents = OnlineKeyThief(world).sign(content=content).tamper
    elif role != "timestamp":
        documents = OnlineKeyThief(world).replace(role, content).sign().tamper

    with attacked(world, documents), pytest.raises(errors.TooFewSignatures, match="0 of 1 required signatures"):
        world.node.manifest(ref, {})


def test_a_damaged_local_manifest_is_fetched_again(world: World) -> None:
    ref = world.publish()
    good = world.node.manifest(ref, {})
    (stored,) = (world.folder / "node" / "manifests").iterdir()
    stored.write_bytes(good.replace(b"onnx", b"evil"))

    assert world.node.manifest(ref, {}) == good


def test_a_version_for_other_nodes_is_refused(world: World) -> None:
    """Permission to assign versions to nodes does not include choosing which nodes a version is for."""
    ref = world.publish(selector="site=hall-2, hardware in (nuc)")

    with pytest.raises(errors.NotForThisNode, match="site=hall-2"):
        world.node.manifest(ref, {"site": "hall-3", "hardware": "nuc"})


def test_a_document_of_another_kind_is_refused(world: World) -> None:
    """The online key signs snapshots too, but a snapshot is not a timestamp."""
    world.publish()
    snapshot = (world.repository.folder / current(world, "snapshot")).read_bytes()

    with attacked(world, replaced("metadata/timestamp.json", snapshot)), pytest.raises(errors.BadMetadata):
        world.node.refresh()


# Endless, slow and truncated data


class Endless:
    """Sends endless data for paths that contain `name`; counts the bytes read."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.bytes_read = world, name, 0

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        if self.name not in path:
            yield from self.world.between.get(path, max_bytes)
            return
        while True:
            self.bytes_read += 4096
            yield b"\0" * 4096


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("timestamp", 16_384),
        ("snapshot", 4096),
        ("targets", 4096),
        ("doors", 4096),
        ("manifest", 4096),
        ("root", 512_000),
    ],
)
def test_endless_data_is_cut_off_at_the_signed_size(world: World, name: str, most: int) -> None:
    """The channel delivers parts, and no part is requested beyond the limit."""
    ref = world.publish()
    documents = Endless(world, name)

    with pytest.raises(errors.EndlessData):
        world.client("other", documents).manifest(ref, {})
    parts = most // MAX_PART_BYTES + 1
    assert documents.bytes_read <= sum(range(1, parts + 1)) * MAX_PART_BYTES + parts * 4096


def test_at_most_one_piece_is_read_beyond_the_limit(near: World) -> None:
    documents = Endless(near, "timestamp")

    with pytest.raises(errors.EndlessData):
        near.client("other", documents).refresh()
    assert documents.bytes_read <= 16_384 + 4096


def test_slow_data_is_abandoned(near: World) -> None:
    """Each byte arrives in time, but the document would take forever."""

    class Trickle:
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            if "timestamp" not in path:
                yield from near.between.get(path, max_bytes)
                return
            while True:
                near.time.advance(20)
                yield b" "

    with pytest.raises(errors.SlowData):
        near.client("other", Trickle()).refresh()


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets", "doors"])
def test_truncated_metadata_is_refused(world: World, name: str) -> None:
    ref = world.publish()

    with (
        attacked(world, lambda path, data: data[: len(data) // 2] if name in path else data),
        pytest.raises(errors.TruncatedData),
    ):
        world.node.manifest(ref, {})
    assert world.node.manifest(ref, {})


def test_an_unreachable_source_is_not_a_refusal(near: World) -> None:
    """A lost connection raises its own error, not a TrustError."""

    class Cut:
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            raise RegionUnavailable("no reply", remedy="wait")

    with pytest.raises(RegionUnavailable):
        near.client("other", Cut()).refresh()


def test_an_incomplete_repository_is_reported_as_such(world: World) -> None:
    ref = world.publish()

    def missing(path: str, data: Any) -> Any:
        return None if "manifest" in path or "timestamp" in path else data

    with attacked(world, missing), pytest.raises(errors.MissingMetadata, match="timestamp"):
        world.node.manifest(ref, {})
    world.node.refresh()
    with attacked(world, missing), pytest.raises(errors.MissingMetadata, match="manifest"):
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


def test_a_newer_timestamp_of_an_older_snapshot_is_refused(world: World) -> None:
    before = world.read("timestamp").signed.snapshot_meta
    world.publish()
    world.node.refresh()
    timestamp = world.read("timestamp")
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = before

    with (
        attacked(world, replaced("metadata/timestamp.json", sign(timestamp, world.online_key))),
        pytest.raises(errors.RollbackAttack, match="refers to a snapshot older than"),
    ):
        world.node.refresh()


def test_expired_metadata_still_blocks_older_metadata(world: World) -> None:
    """A node that was off for weeks still rejects anything older than its stored timestamp."""
    old = world.read("timestamp")
    world.publish()
    world.node.refresh()
    world.time.advance(18 * DAY)
    for version, match in ((old.signed.version, "was seen"), (99, "refers to a snapshot older than")):
        old.signed.version = version
        old.signed.expires = datetime.fromtimestamp(world.time.wall + DAY, UTC)
        with (
            attacked(world, replaced("metadata/timestamp.json", sign(old, world.online_key))),
            pytest.raises(errors.RollbackAttack, match=match),
        ):
            world.client("node").refresh()
    world.repository.refresh_timestamp()
    world.client("node").refresh()


@pytest.mark.parametrize("role", ["targets", "doors"])
def test_a_snapshot_that_rolls_a_role_back_is_refused(world: World, role: str) -> None:
    """This needs the online key."""
    world.publish("1.0.0")
    old = (world.repository.folder / current(world, role)).read_bytes()
    world.publish("1.1.0")
    world.add_owner("gates", CryptoSigner.generate_ed25519(), "turnstile")
    world.node.refresh()
    thief = OnlineKeyThief(world).replace(role, old).sign()

    with attacked(world, thief.tamper), pytest.raises(errors.RollbackAttack, match="snapshot"):
        world.node.refresh()


def test_a_snapshot_that_omits_an_owner_is_refused(world: World) -> None:
    world.publish()
    world.node.refresh()
    thief = OnlineKeyThief(world)
    del thief.snapshot.signed.meta["doors.json"]

    with (
        attacked(world, thief.sign().tamper),
        pytest.raises(errors.RollbackAttack, match="omits a role it had before"),
    ):
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


def test_inflated_versions_are_reset_by_a_new_online_key(world: World) -> None:
    """A stolen online key can make nodes refuse the genuine repository, until the root replaces the key."""
    world.publish()
    thief = OnlineKeyThief(world)
    thief.timestamp.signed.version = 2**31
    with attacked(world, thief.sign(snapshot_version=2**31).tamper):
        world.node.refresh()
    with pytest.raises(errors.RollbackAttack):
        world.node.refresh()

    world.replace_online_key()
    ref = world.publish("1.1.0")
    assert world.node.refresh().root == 2
    assert world.node.manifest(ref, {})
    with attacked(world, thief.tamper), pytest.raises(errors.UnknownSigningKey):
        world.node.refresh()


@pytest.mark.parametrize("role", ["targets", "doors"])
def test_an_inflated_role_version_is_reset_by_a_new_online_key(world: World, role: str) -> None:
    """The snapshot lists the versions seen; they are forgotten with its key."""
    ref = world.publish()
    metadata = world.read(Path(current(world, role)).stem)
    metadata.signed.version = 2**31
    key = world.targets_key if role == "targets" else world.owner_key
    with attacked(world, OnlineKeyThief(world).replace(role, sign(metadata, key)).sign().tamper):
        world.node.manifest(ref, {})
    with pytest.raises(errors.RollbackAttack):
        world.node.refresh()

    world.replace_online_key()
    world.expire_caches()
    assert world.node.refresh().root == 2
    assert world.node.manifest(ref, {})


# Freeze


def test_a_frozen_repository_is_refused_once_it_has_expired(world: World) -> None:
    ref = world.publish()
    world.node.refresh()
    world.time.advance(6.9 * DAY)
    assert world.node.manifest(ref, {})
    world.time.advance(0.2 * DAY)

    with pytest.raises(errors.ExpiredMetadata, match="the timestamp expired on"):
        world.node.refresh()
    with pytest.raises(errors.ExpiredMetadata):
        world.node.manifest(ref, {})
    assert world.repository.refresh_timestamp()
    assert world.node.manifest(ref, {})


@pytest.mark.parametrize("role", ["root", "snapshot", "targets", "doors"])
def test_each_role_may_expire_while_the_others_are_valid(world: World, role: str) -> None:
    """The region keeps signing; a role that does not renew its own metadata is refused."""
    ref = world.publish()
    lives = {"root": 730, "targets": 365, "doors": 365, "snapshot": 0}
    if role == "snapshot":
        thief = OnlineKeyThief(world)
        thief.snapshot.signed.expires = datetime.fromtimestamp(world.time.wall - 1, UTC)
        documents = thief.sign().tamper
    else:
        if role == "root":
            world.time.advance(364 * DAY)
            key_ceremony.renew(world.repository, "doors", [world.owner_key])
            key_ceremony.renew(world.repository, "targets", [world.targets_key])
            world.time.advance(364 * DAY)
            key_ceremony.renew(world.repository, "doors", [world.owner_key])
            key_ceremony.renew(world.repository, "targets", [world.targets_key])
            world.time.advance(3 * DAY)
        else:
            world.time.advance(364 * DAY)
            other = {"targets": "doors", "doors": "targets"}[role]
            key_ceremony.renew(world.repository, other, [world.owner_key if other == "doors" else world.targets_key])
            world.time.advance((lives[role] - 363) * DAY)
        world.repository.refresh_timestamp()
        documents = world.between.tamper

    with attacked(world, documents), pytest.raises(errors.ExpiredMetadata, match=f"{role} expired on"):
        world.node.manifest(ref, {})


def test_an_expired_root_leads_to_the_next_one(world: World) -> None:
    """If the root's holders sign late, nodes refuse metadata until then. Intermediate roots may be expired."""
    ref = world.publish()
    key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    world.time.advance(731 * DAY)
    key_ceremony.renew(world.repository, "targets", [world.targets_key])
    key_ceremony.renew(world.repository, "doors", [world.owner_key])
    world.repository.refresh_timestamp()
    with pytest.raises(errors.ExpiredMetadata, match="root expired on"):
        world.node.refresh()

    key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    world.repository.refresh_timestamp()
    world.expire_caches()
    assert world.node.refresh().root == 3
    assert world.node.manifest(ref, {})


# Mix and match


@pytest.mark.parametrize("role", ["snapshot", "targets", "doors"])
def test_metadata_of_two_moments_cannot_be_mixed(world: World, role: str) -> None:
    """Each part is signed, but they were never valid at the same time."""
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
    """Return the signed length, to which content is padded so that only its hash differs; JSON may end in spaces."""
    return (world.repository.folder / current(world, role)).stat().st_size


@pytest.mark.parametrize("role", ["snapshot", "targets", "doors"])
def test_a_file_name_with_another_version_than_its_content_is_refused(world: World, role: str) -> None:
    ref = world.publish()
    content = (world.repository.folder / current(world, role)).read_bytes()
    version = world.read(Path(current(world, role)).stem).signed.version
    thief = OnlineKeyThief(world)
    if role == "snapshot":
        thief.sign(snapshot_version=version + 1, content=content)
    else:
        thief.replace(role, content, version + 1).sign()

    with attacked(world, thief.tamper), pytest.raises(errors.MixAndMatch, match=f"version {version}"):
        world.node.manifest(ref, {})


# Arbitrary changes


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_to_any_document_is_refused(near: World, data: st.DataObject) -> None:
    """Flipping, removing or inserting anything anywhere is refused, or does not change the result."""
    world = near
    ref = world.publish()
    names = {"timestamp", "snapshot", ".targets.", "doors", "manifest"}
    name = data.draw(st.sampled_from(sorted(names)))
    position = data.draw(st.floats(0, 1, exclude_max=True))
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "double"]))
    bit = data.draw(st.integers(1, 255))

    def tamper(path: str, content: Any) -> Any:
        if name not in path:
            return content
        at = int(position * len(content))
        match change:
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
        accepted, code = None, None
        try:
            accepted = node.manifest(ref, {})
        except errors.TrustError as error:
            code = error.code
    assert code not in ("not-trusted", "unknown-target")
    assert code or digest_of(accepted) == ref.digest
    assert digest_of(node.manifest(ref, {})) == ref.digest


_NUMBERS = itertools.count()


def test_the_signing_time_is_signed_too(world: World) -> None:
    timestamp = json.loads((world.repository.metadata / "timestamp.json").read_bytes())
    timestamp["signed"][SIGNED_AT] += 1

    with (
        attacked(world, replaced("metadata/timestamp.json", json.dumps(timestamp).encode())),
        pytest.raises(errors.BadSignature),
    ):
        world.node.refresh()
