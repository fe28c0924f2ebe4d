"""A repository with several writers that may be killed at any time: it stays valid for nodes throughout."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from hedgerow.labels import parse_selector
from hedgerow.models.bundle.manifest import read_manifest
from hedgerow.trust import chunks, errors, key_ceremony, repository, staged_metadata
from hedgerow.trust.repository import Repository, online_key_of
from hedgerow.trust.status import read_status

World = Any
DAY = 86_400.0


class Killed(BaseException):
    """Simulates a kill: no code runs after it."""


def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die before its next write."""
    remaining = itertools.count(writes, -1)
    for module in (repository, chunks, staged_metadata):
        write = module.write

        def dying(path: Path, data: bytes, *, private: bool = False, write: Any = write) -> None:
            if next(remaining) <= 0:
                raise Killed
            write(path, data, private=private)

        monkeypatch.setattr(module, "write", dying)


def at_every_write(
    world: World, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, then: Callable[[Any], Any]
) -> int:
    """Kill an action before each of its writes, let a node refresh, then repeat the action.

    Args:
        then: checks the node afterwards.
    Returns: the number of kills.
    """
    folder, before = world.repository.folder, world.folder / "before"
    shutil.copytree(folder, before)
    for writes in itertools.count():
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        node = world.client(f"node-{writes}")
        node.refresh()
        with monkeypatch.context() as patch:
            killed_after(writes, patch)
            try:
                action()
            except Killed:
                node.refresh()
                world.client(f"new-{writes}").refresh()
            else:
                return writes
        action()
        node.refresh()
        then(node)
    raise AssertionError


def test_a_publish_killed_midway_changes_nothing_and_can_be_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.publish("1.0.0")
    bundle = world.bundle(b"much better weights", version="1.1.0")
    new = old.model_copy(update={"version": "1.1.0", "digest": bundle.manifest.digest})

    def check(node: Any) -> None:
        assert node.manifest(old, {})
        assert read_manifest(node.manifest(new, {}), new.digest).version == "1.1.0"

    kills = at_every_write(world, lambda: world.repository.publish(bundle, world.owner_key), monkeypatch, check)

    assert kills == 7, "three new chunks, the manifest, the owner's metadata, the snapshot, the timestamp"


def test_adding_an_owner_killed_midway_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = CryptoSigner.generate_ed25519()

    kills = at_every_write(
        world,
        lambda: world.add_owner("gates", key, "turnstile"),
        monkeypatch,
        lambda _: None,
    )

    assert kills == 3, "the list of owners, the snapshot, the timestamp"
    assert world.client("late").manifest(world.publish(name="turnstile", key=key), {})


def test_a_kill_before_the_first_signature_of_a_new_online_key_is_repaired_by_a_refresh(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only moment at which nodes refuse updates; the old version keeps serving."""
    ref, new = world.publish(), CryptoSigner.generate_ed25519()
    world.put_online_key(new)
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            key_ceremony.rotate(
                world.repository,
                ("snapshot", "timestamp"),
                new=[new.public_key],
                old=[world.online_key.public_key.keyid],
                signers=world.root_keys,
            )
    with pytest.raises(errors.UnknownSigningKey, match="timestamp"):
        world.node.refresh()

    assert world.repository.refresh_timestamp()
    assert world.node.manifest(ref, {})


def test_publishing_twice_changes_nothing(world: World) -> None:
    world.publish("1.0.0")
    before = {path: path.read_bytes() for path in world.repository.folder.rglob("*.json")}

    again = world.repository.publish(world.bundle(version="1.0.0"), world.owner_key)

    assert (again.changed, again.chunks, again.bytes) == (False, 0, 0)
    assert {path: path.read_bytes() for path in world.repository.folder.rglob("*.json")} == before


def test_the_selector_of_a_version_may_change_and_its_content_may_not(world: World) -> None:
    ref = world.publish("1.0.0", selector="site=hall-2")
    with pytest.raises(errors.NotForThisNode):
        world.node.manifest(ref, {"site": "hall-3"})

    published = world.repository.publish(world.bundle(version="1.0.0"), world.owner_key, parse_selector(""))
    world.node.refresh()
    with pytest.raises(errors.VersionPublished, match="is published as sha256:"):
        world.publish("1.0.0", b"other weights")

    assert published.changed
    assert world.node.manifest(ref, {"site": "hall-3"})


def test_a_bundle_that_differs_from_its_manifest_is_not_published(world: World) -> None:
    bundle = world.bundle(b"weights")
    (bundle.folder / "variants/onnx/model.onnx").write_bytes(b"weighty")

    with pytest.raises(errors.BadRepository, match="does not match the manifest"):
        world.repository.publish(bundle, world.owner_key)
    (bundle.folder / "variants/onnx/model.onnx").unlink()
    with pytest.raises(errors.BadRepository, match="cannot be read"):
        world.repository.publish(bundle, world.owner_key)


def test_a_damaged_chunk_is_written_again(world: World) -> None:
    world.publish("1.0.0")
    damaged = next(path for path in (world.repository.folder / "blobs").rglob("*") if path.is_file())
    good = damaged.read_bytes()
    damaged.write_bytes(b"?")

    assert world.repository.publish(world.bundle(version="1.0.0"), world.owner_key).chunks == 1
    assert damaged.read_bytes() == good


# Two owners


def test_an_owner_can_publish_only_their_own_models(world: World) -> None:
    gates = CryptoSigner.generate_ed25519()
    world.add_owner("gates", gates, "turnstile")

    assert world.node.manifest(world.publish(name="turnstile", key=gates), {})
    with pytest.raises(errors.NotAllowed, match="door belongs to doors, and only 0 of the 1 keys") as refused:
        world.publish(key=gates)
    assert "doors's key" in refused.value.remedy
    with pytest.raises(errors.NotAllowed, match="meter has no owner yet") as refused:
        world.publish(name="meter")
    assert "hedgerow trust add" in refused.value.remedy


def test_two_owners_can_publish_at_the_same_time(world: World) -> None:
    gates = CryptoSigner.generate_ed25519()
    world.add_owner("gates", gates, "turnstile")
    refs: list[Any] = []
    threads = [
        threading.Thread(target=lambda name=name, key=key: refs.append(world.publish(name=name, key=key)))  # type: ignore[misc]
        for name, key in (("door", world.owner_key), ("turnstile", gates))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    world.node.refresh()
    assert {ref.name for ref in refs if world.node.manifest(ref, {})} == {"door", "turnstile"}


def test_an_owner_publishes_without_the_online_key_and_becomes_visible_once_it_is_back(world: World) -> None:
    """A laptop signs; only the region has the online key, and includes the version."""
    online_key = online_key_of(world.repository.folder).rename(world.folder / "elsewhere.pem")
    first, second = world.publish("1.0.0"), world.publish("1.1.0", b"better")
    with pytest.raises(errors.UnknownTarget):
        world.node.manifest(first, {})
    assert read_status(world.repository, world.time.wall).unseen == ("doors",)
    with pytest.raises(errors.NotAllowed, match=r"online key .* does not exist here"):
        world.repository.refresh_timestamp()

    region = Repository(world.repository.folder, online_key, clock=lambda: world.time.wall)
    assert region.refresh_timestamp()
    world.node.refresh()
    assert world.node.manifest(first, {})
    assert world.node.manifest(second, {})
    assert not region.refresh_timestamp(), "nothing is due"


def test_a_half_written_file_of_one_owner_does_not_block_others(world: World) -> None:
    """The repository may be read while files are being copied into it."""
    gates = CryptoSigner.generate_ed25519()
    world.add_owner("gates", gates, "turnstile")
    world.publish()
    (world.repository.metadata / "2.doors.json").write_text('{"signatures": [')

    assert world.node.manifest(world.publish(name="turnstile", key=gates), {})
    assert any(
        "2.doors.json is invalid" in problem for problem in read_status(world.repository, world.time.wall).problems
    )
    assert world.client("late").manifest(world.publish("1.1.0", b"better"), {})
    assert read_status(world.repository, world.time.wall).problems == []


# Time


def test_fresh_metadata_is_not_signed_again_within_a_day(world: World) -> None:
    world.publish()
    first = world.read("timestamp").signed.version

    assert not world.repository.refresh_timestamp()
    world.time.advance(1.01 * DAY)
    assert world.repository.refresh_timestamp()
    assert world.read("timestamp").signed.version == first + 1
    world.time.advance(6.5 * DAY)
    assert world.repository.refresh_timestamp()
    assert world.node.refresh().timestamp == first + 2


def test_a_clock_set_back_signs_nothing_that_nodes_would_refuse(world: World) -> None:
    world.publish()
    world.time.wall -= 2 * DAY

    with pytest.raises(errors.BadRepository, match="behind the time at which the last timestamp was signed") as refused:
        world.repository.refresh_timestamp()
    assert "clock" in refused.value.remedy


def test_a_folder_that_is_not_a_repository_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(errors.BadRepository, match="is not a repository") as refused:
        Repository.open(tmp_path)
    assert "hedgerow trust init" in refused.value.remedy


def test_a_broken_chain_of_roots_is_reported_as_such(world: World) -> None:
    key_ceremony.rotate(world.repository, (), signers=world.root_keys)
    second = world.repository.metadata / "2.root.json"
    changed = json.loads(second.read_bytes())
    changed["signed"]["roles"]["root"]["threshold"] = 1
    second.write_text(json.dumps(changed))

    with pytest.raises(errors.BadRepository, match=r"2\.root\.json does not follow"):
        world.repository.root()
