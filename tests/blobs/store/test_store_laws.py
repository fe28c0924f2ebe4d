"""Invariants of the store under any order of fetches, installs, protection, evictions, torn writes and restarts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.blobs.conftest import noise
from tests.blobs.store.test_store import Version, files_below
from tests.examples import examples

from hedgerow.blobs.errors import ContentDamaged, StoreFull
from hedgerow.blobs.store.store import MANIFEST_BYTES, BlobStore

K = 1024
SHARED = noise(3 * K, 100)
VERSIONS = [
    Version("1.0.0", noise(4 * K, 1)),
    Version("1.1.0", noise(2 * K, 1) + noise(2 * K, 2), SHARED),
    Version("2.0.0", SHARED, noise(5 * K, 3)),
    Version("3.0.0", noise(9 * K, 4)),
]
QUOTA = 22 * K + MANIFEST_BYTES
versions = st.sampled_from(VERSIONS)


class Store(RuleBasedStateMachine):
    """A store and its invariants."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="store-"))
        self.store = BlobStore(self.folder, QUOTA)
        self.installed: set[str] = set()
        self.protected: set[str] = set()
        self.protected_and_installed: set[str] = set()

    @rule(version=versions, limit=st.integers(1, 6))
    def fetch_some(self, version: Version, limit: int) -> None:
        try:
            version.fetch(self.store, limit)
        except StoreFull:
            assert self.protected

    @rule(version=versions)
    def install(self, version: Version) -> None:
        try:
            version.install(self.store)
        except StoreFull:
            assert self.protected
        else:
            self.installed.add(version.digest)
            self.protected_and_installed |= {version.digest} & self.protected
            assert version.is_intact_in(self.store)

    @rule(version=versions, other=versions)
    def protect(self, version: Version, other: Version) -> None:
        self.protected = {version.digest, other.digest}
        self.store.protect(self.protected)
        self.protected_and_installed = self.protected & {each.digest for each in self.store.installed()}

    @rule(version=versions)
    def install_an_incomplete_version(self, version: Version) -> None:
        if self.store.check(version.files):
            try:
                self.store.install(version.manifest, version.files)
            except ContentDamaged:
                return
            raise AssertionError("an incomplete version was installed")

    @rule(number=st.integers(0, 100), at=st.floats(0, 1))
    def tear(self, number: int, at: float) -> None:
        """Lose power during a fetch."""
        parts = files_below(self.folder / "parts")
        if parts:
            path = parts[number % len(parts)]
            with path.open("r+b") as file:
                file.truncate(int(at * path.stat().st_size))
        self.restart()

    @rule()
    def restart(self) -> None:
        self.store = BlobStore(self.folder, QUOTA)

    @invariant()
    def the_quota_holds(self) -> None:
        assert self.store.used_bytes <= QUOTA

    @invariant()
    def installed_versions_are_intact(self) -> None:
        installed = {each.digest for each in self.store.installed()}
        assert installed <= self.installed
        assert all(version.is_intact_in(self.store) for version in VERSIONS if version.digest in installed)
        assert self.protected_and_installed <= installed

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=examples(15), stateful_step_count=25, deadline=None)
