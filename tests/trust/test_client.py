"""The trust client of a node, without attacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hedgerow.blobs.errors import RegionUnavailable
from hedgerow.models.bundle.manifest import digest_of, read_manifest
from hedgerow.testing.repository import make_repository
from hedgerow.trust import errors
from hedgerow.trust.client import TrustClient
from hedgerow.trust.documents import FolderDocuments
from hedgerow.wire.fleet import ModelRef


def test_a_node_gets_the_manifest_of_a_version_that_its_owner_signed(world: Any) -> None:
    ref = world.publish("1.0.0")

    fresh = world.node.refresh()
    manifest = read_manifest(world.node.manifest(ref, {}), ref.digest)

    assert (manifest.name, manifest.version) == ("door", "1.0.0")
    assert (fresh.root, fresh.clock_behind_s) == (1, None)
    assert fresh.signed_at == world.time.wall


def test_an_older_version_may_serve_again(world: Any) -> None:
    """Rolling back a model is a choice among signed versions; rolling back metadata is an attack."""
    old, new = world.publish("1.0.0"), world.publish("1.1.0", b"better weights")
    world.node.refresh()

    assert read_manifest(world.node.manifest(new, {})).version == "1.1.0"
    assert read_manifest(world.node.manifest(old, {})).version == "1.0.0"


def test_a_version_for_other_nodes_is_refused_with_the_reason(world: Any) -> None:
    ref = world.publish("1.0.0", selector="site=hall-2, !spare")

    with pytest.raises(errors.NotForThisNode, match="site=hall-2, but the node has 'hall-3'"):
        world.node.manifest(ref, {"site": "hall-3"})
    assert world.node.manifest(ref, {"site": "hall-2"})


def test_the_repository_of_tests_and_demos_is_a_real_one(tmp_path: Path, bundle: Any) -> None:
    source = make_repository(tmp_path / "models")
    published = source.repository.publish(bundle(name="any", version="2.0.0"), source.owner)

    node = TrustClient(tmp_path / "node", source.root, FolderDocuments(tmp_path / "models"))

    assert node.manifest(ModelRef(name="any", version="2.0.0", digest=published.digest), {"site": "s"})


class Unreliable:
    """A source that is unreachable unless `source` is set."""

    def __init__(self) -> None:
        self.requests = 0
        self.source: Any = None

    def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
        self.requests += 1
        if self.source is None:
            raise RegionUnavailable("no reply", remedy="wait")
        yield from self.source.get(path, max_bytes)

    def forget(self) -> None:
        """Nothing is cached."""


def client_of(world: Any, *sources: Any) -> TrustClient:
    return TrustClient(world.folder / "client", world.root, *sources, clock=lambda: world.time.wall)


def test_the_next_source_is_used_if_the_first_is_unreachable(world: Any) -> None:
    """The next refresh starts with the first source again, because a refresh uses a single source."""
    ref, first, copy = world.publish(), Unreliable(), FolderDocuments(world.repository.folder)
    node = client_of(world, first, copy)

    assert digest_of(node.manifest(ref, {})) == ref.digest
    assert first.requests == 1
    first.source = copy
    node.refresh()
    assert first.requests > 2


def test_if_all_sources_are_unreachable_the_first_error_is_raised(world: Any) -> None:
    with pytest.raises(RegionUnavailable):
        client_of(world, Unreliable(), Unreliable()).refresh()


def test_a_source_lost_midway_is_replaced_by_the_next(world: Any) -> None:
    """The next source is asked for everything: two sources are never mixed."""
    ref, copy = world.publish(), FolderDocuments(world.repository.folder)
    first = Unreliable()
    first.source = copy
    node = client_of(world, first, copy)
    node.refresh()
    first.source = None

    assert digest_of(node.manifest(ref, {})) == ref.digest
    assert node.failures


def test_a_source_that_has_metadata_and_never_a_manifest_holds_nobody_up(world: Any) -> None:
    """Else it would be asked first again at each attempt, for ever."""

    class WithoutManifests(FolderDocuments):
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            if path.startswith("targets/"):
                raise RegionUnavailable("503", remedy="Wait.")
            return super().get(path, max_bytes)

    ref, folder = world.publish(), world.repository.folder

    with pytest.raises(RegionUnavailable):
        client_of(world, WithoutManifests(folder)).manifest(ref, {})
    assert (
        digest_of(client_of(world, WithoutManifests(folder), FolderDocuments(folder)).manifest(ref, {})) == ref.digest
    )


@pytest.mark.parametrize("fault", [RegionUnavailable("503", remedy="Wait."), errors.SlowData("slow")])
@pytest.mark.parametrize("others", [0, 1])
def test_a_source_that_fails_at_the_second_look_is_replaced_too(world: Any, fault: Exception, others: int) -> None:
    """A version signed since the last refresh is looked for again. Without another source, the first refusal stands."""

    class WithoutManifests(FolderDocuments):
        def get(self, path: str, max_bytes: int) -> Iterator[bytes]:
            if path.startswith("targets/"):
                raise fault
            return super().get(path, max_bytes)

    folder = world.repository.folder
    world.publish("1.0.0")
    node = client_of(world, WithoutManifests(folder), *[FolderDocuments(folder)] * others)
    node.refresh()
    ref = world.publish("1.1.0", b"better weights")

    if others:
        assert digest_of(node.manifest(ref, {})) == ref.digest
    else:
        with pytest.raises(errors.UnknownTarget):
            node.manifest(ref, {})
    assert sum(node.failures.values()) == 1


def test_a_refusal_is_final_and_no_other_source_is_tried(world: Any) -> None:
    """Otherwise an attack would go unnoticed."""
    world.publish()
    world.between.tamper = lambda path, data: data[:-9] if "timestamp" in path else data
    attacked = Unreliable()
    attacked.source = world.between

    with pytest.raises(errors.TruncatedData):
        client_of(world, attacked, FolderDocuments(world.repository.folder)).refresh()
