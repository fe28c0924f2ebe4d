"""Whatever is fetched, installed, protected, evicted, torn and restarted in whatever order: the store keeps its word."""

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
which = st.sampled_from(VERSIONS)


class Store(RuleBasedStateMachine):
    """A store, and what has to be so."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="store-"))
        self.store = BlobStore(self.folder, QUOTA)
        self.installed: set[str] = set()
        self.protected: set[str] = set()
        self.kept: set[str] = set()

    @rule(version=which, most=st.integers(1, 6))
    def fetch_some(self, version: Version, most: int) -> None:
        try:
            version.fetch(self.store, most)
        except StoreFull:
            assert self.protected

    @rule(version=which)
    def install(self, version: Version) -> None:
        try:
            version.install(self.store)
        except StoreFull:
            assert self.protected
        else:
            self.installed.add(version.digest)
            self.kept |= {version.digest} & self.protected
            assert version.is_intact_in(self.store)

    @rule(version=which, other=which)
    def protect(self, version: Version, other: Version) -> None:
        self.protected = {version.digest, other.digest}
        self.store.protect(self.protected)
        self.kept = self.protected & {each.digest for each in self.store.installed()}

    @rule(version=which)
    def install_what_is_not_whole(self, version: Version) -> None:
        if self.store.check(version.files):
            try:
                self.store.install(version.manifest, version.files)
            except ContentDamaged:
                return
            raise AssertionError("what is not whole was installed")

    @rule(number=st.integers(0, 100), at=st.floats(0, 1))
    def tear(self, number: int, at: float) -> None:
        """Power fails while something is on its way."""
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
    def there_is_no_more_than_the_quota(self) -> None:
        assert self.store.used_bytes <= QUOTA

    @invariant()
    def what_is_installed_is_whole(self) -> None:
        there = {each.digest for each in self.store.installed()}
        assert there <= self.installed
        assert all(version.is_intact_in(self.store) for version in VERSIONS if version.digest in there)
        assert self.kept <= there

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=examples(15), stateful_step_count=25, deadline=None)
