"""Our overrides of tuf's client: tuf's internals, stored state and recovery."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.ngclient.updater import Updater

from hedgerow.trust import errors, key_ceremony, updater
from hedgerow.trust.updater import JudgedUpdater

World = Any
DAY = 86_400.0
STORED = ("root.json", "timestamp.json", "snapshot.json", "targets.json", "doors.json")


def stored_folder(world: World, node: str = "node") -> Path:
    folder: Path = world.folder / node / "metadata"
    return folder


def test_overridden_methods_exist_in_tuf() -> None:
    """If tuf renamed one of these, its override would silently have no effect."""
    for name in ("_load_timestamp", "_persist_file", "_load_local_metadata"):
        assert name in vars(Updater), name
    assert list(inspect.signature(Updater._persist_file).parameters) == ["self", "filename", "data"]
    assert "self._persist_file" in inspect.getsource(Updater._persist_metadata)
    assert "self._persist_file" in inspect.getsource(Updater._persist_root)
    assert "self._load_timestamp()" in inspect.getsource(Updater.refresh)


def test_expiry_is_judged_by_the_given_time_only(world: World) -> None:
    """For every role; the machine's own clock is never read."""
    ref = world.publish()
    world.node.manifest(ref, {})

    inner = world.node._updater._trusted_set
    assert inner.reference_time == datetime.fromtimestamp(world.time.wall, UTC)
    assert abs(datetime.now(UTC) - inner.reference_time) > timedelta(days=0.1), "the clocks must differ"


def test_all_stored_files_survive_a_power_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """These files are needed to detect rollbacks."""
    written: list[str] = []
    write = updater.write

    def recording(path: Path, data: bytes) -> None:
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr(updater, "write", recording)
    world.node.manifest(world.publish(), {})

    assert {"1.root.json", *STORED[1:]} == set(written)
    assert {path.name for path in stored_folder(world).iterdir()} == {"root_history", *STORED}


def test_local_documents_are_not_fetched_again(world: World) -> None:
    ref = world.publish()
    world.node.manifest(ref, {})
    world.between.requested.clear()

    world.node.refresh()
    world.node.manifest(ref, {})

    assert world.between.requested == ["metadata/2.root.json", "metadata/timestamp.json"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"signatures": [], "signed": {}}', b"[]"])
def test_a_node_recovers_from_damaged_local_files(world: World, content: bytes) -> None:
    """They are fetched again, and their state is lost: see docs/operator/trust.md."""
    ref = world.publish()
    world.node.manifest(ref, {})
    for name in STORED:
        (stored_folder(world) / name).unlink()
        (stored_folder(world) / name).write_bytes(content)

    node = world.client("node")
    node.refresh()
    assert node.manifest(ref, {})
    assert not [name for name in STORED if (stored_folder(world) / name).read_bytes() == content]


def test_a_tampered_local_root_is_fetched_again(world: World) -> None:
    for _ in range(2):
        key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    world.node.refresh()
    second = stored_folder(world) / "root_history" / "2.root.json"
    good = second.read_bytes()
    second.write_bytes(good.replace(b'"threshold"', b'"Threshold"'))
    world.between.requested.clear()

    assert world.client("node").refresh().root == 3
    assert second.read_bytes() == good
    assert "metadata/2.root.json" in world.between.requested
    assert "metadata/3.root.json" not in world.between.requested


def test_a_node_can_start_from_any_root(world: World) -> None:
    key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    world.root = (world.repository.metadata / "2.root.json").read_bytes()

    assert world.client("late").refresh().root == 2


@pytest.mark.parametrize("root", [b"", b"{}", b"no json", b'{"signatures": [], "signed": {"_type": "root"}}'])
def test_an_invalid_root_is_reported_as_such(world: World, root: bytes) -> None:
    world.root = root

    with pytest.raises(errors.BadMetadata, match="This node's root cannot be used") as refused:
        world.client("lost").refresh()
    assert "root_file" in refused.value.remedy


def test_an_unsigned_root_is_invalid(world: World) -> None:
    root = world.read("1.root")
    root.signatures.clear()
    world.root = root.to_bytes()

    with pytest.raises(errors.BadMetadata, match="This node's root cannot be used"):
        world.client("lost").refresh()


def test_nothing_is_accepted_if_state_cannot_be_stored(world: World) -> None:
    ref = world.publish()
    (world.folder / "full").mkdir()
    (world.folder / "full" / "metadata").write_bytes(b"a file where a folder should be")

    with pytest.raises(errors.StateUnwritable, match="cannot be stored") as refused:
        world.client("full").manifest(ref, {})
    assert "state_dir" in refused.value.remedy


def test_the_number_of_roots_followed_at_once_is_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attacker with the root's keys could otherwise keep a node busy forever."""
    for _ in range(5):
        key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    refresh = JudgedUpdater.refresh

    def limited(self: JudgedUpdater) -> None:
        self.config.max_root_rotations = 3
        refresh(self)

    monkeypatch.setattr(JudgedUpdater, "refresh", limited)

    assert world.node.refresh().root == 4


@pytest.mark.parametrize(
    ("role", "most"), [("root", 512_000), ("timestamp", 16_384), ("snapshot", 2_000_000), ("targets", 16_000_000)]
)
def test_document_sizes_are_limited_per_kind(world: World, role: str, most: int) -> None:
    """Also where no size is signed."""
    world.node.refresh()
    limits = world.node._updater.config

    assert getattr(limits, f"{role}_max_length") == most
    assert limits.max_delegations == 32


def test_many_versions_still_fit(world: World) -> None:
    """An owner who publishes every day for ten years."""
    signed = world.read("1.doors").signed if (world.repository.metadata / "1.doors.json").exists() else None
    assert signed is None
    ref = world.publish("1.0.0")
    metadata = world.read("1.doors")
    target = metadata.signed.targets["door/1.0.0/manifest.json"]
    for number in range(1, 3650):
        path = f"door/1.{number}.0/manifest.json"
        metadata.signed.targets[path] = type(target)(target.length, target.hashes, path, target.unrecognized_fields)
    metadata.signed.version = 2
    metadata.signatures.clear()
    metadata.sign(world.owner_key)
    (world.repository.metadata / "2.doors.json").write_bytes(metadata.to_bytes())
    world.repository.refresh_timestamp()

    assert world.node.manifest(ref, {})


def test_a_role_name_with_a_path_cannot_escape_the_folder(world: World) -> None:
    """Our tools never create such owners; a stolen targets key could."""
    targets, key = world.repository.targets(), CryptoSigner.generate_ed25519()
    role = next(iter(targets.signed.delegations.roles.values()))
    wicked = type(role)("../../wicked", [], 1, True, paths=["wicked/*/manifest.json"])
    targets.signed.delegations.roles["../../wicked"] = wicked
    targets.signed.add_key(key.public_key, "../../wicked")
    targets.signed.version += 1
    targets.signatures.clear()
    targets.sign(world.targets_key)
    (world.repository.metadata / f"{targets.signed.version}.targets.json").write_bytes(targets.to_bytes())
    world.repository.refresh_timestamp()

    ref = world.publish().model_copy(update={"name": "wicked"})
    with pytest.raises(errors.UnknownTarget):
        world.node.manifest(ref, {})
    assert not list(world.folder.glob("wicked*"))
    assert {path.name for path in (world.folder / "node").iterdir()} == {"metadata", "manifests"}
