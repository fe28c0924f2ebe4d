"""What a node believes when nobody interferes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hedgerow.models.manifest import read_manifest
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
    """A rollback of a model is a choice among what is signed; that of metadata is an attack."""
    old, new = world.publish("1.0.0"), world.publish("1.1.0", b"better weights")
    world.node.refresh()

    assert read_manifest(world.node.manifest(new, {})).version == "1.1.0"
    assert read_manifest(world.node.manifest(old, {})).version == "1.0.0"


def test_what_is_for_others_is_refused_with_the_reason(world: Any) -> None:
    ref = world.publish("1.0.0", selector="site=hall-2, !spare")

    with pytest.raises(errors.NotForThisNode, match="site=hall-2, and the node has 'hall-3'"):
        world.node.manifest(ref, {"site": "hall-3"})
    assert world.node.manifest(ref, {"site": "hall-2"})


def test_tests_and_demos_get_a_repository_that_is_a_real_one(tmp_path: Path, bundle: Any) -> None:
    made = make_repository(tmp_path / "models")
    done = made.repository.publish(bundle(name="any", version="2.0.0"), made.owner)

    node = TrustClient(tmp_path / "node", made.root, FolderDocuments(tmp_path / "models"))

    assert node.manifest(ModelRef(name="any", version="2.0.0", digest=done.digest), {"site": "s"})
