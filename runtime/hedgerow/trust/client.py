"""A node's side of trust: what a model's manifest is, by signatures that lead back to the root it was given.

Rules:
- What was verified once serves on without asking anybody. Only a change needs trust that is fresh.
- Nothing is believed that is older than what this node has seen. Which version of a model it serves is another matter:
  going back to an older one that is signed is a choice like any other.
- Time is the later of two: the machine's clock, and when the newest statement that is believed was signed plus what has
  passed since it came. So a clock that is not set accepts nothing that was known to be expired, and one that was wrongly
  ahead refuses only as long as it is wrong: nothing of the machine's clock is kept.
- Where it asks has an order. A refresh is of one source as a whole; the next is asked only where one cannot be reached, never
  where one is refused: who is attacked shall hear of it.
- That second time is forgotten when the root lets another timestamp key count, as all that is judged by versions is. So a
  region whose clock was wrong for a while does not lock nodes out for good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
import structlog
from tuf.api.metadata import Root, TargetFile, Timestamp

from hedgerow.errors import BusError
from hedgerow.labels import Labels
from hedgerow.models.bundle.manifest import LARGEST_MANIFEST
from hedgerow.pki.names import PkiError
from hedgerow.trust import errors
from hedgerow.trust.documents import Documents, TufFetcher
from hedgerow.trust.rejected_updates import REFUSALS, explain
from hedgerow.trust.roles import selector_of, signed_at, target_path
from hedgerow.trust.updater import JudgedUpdater
from hedgerow.wire.fleet import ModelRef

log = structlog.get_logger(__name__)

_BEHIND_S: Final = 60.0
_KEPT_MANIFESTS: Final = 64
_SIGNED_LATER: Final = (errors.UnknownTarget, errors.WrongDigest, errors.NotForThisNode)
"""What may be refused for want of a signature that has just been given."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Freshness:
    """What is known of how new the metadata is.

    Attributes:
        root, timestamp: their versions.
        signed_at: Unix seconds; when the timestamp was signed; None: it does not say.
        expires_at: Unix seconds; until when it counts.
        clock_behind_s: by how much the machine's clock is surely wrong; None: nothing says that it is. Where it is,
            expiry was judged by when things were signed, so newer ones may be held back unnoticed until the clock is set.
    """

    root: int
    timestamp: int
    signed_at: float | None
    expires_at: float
    clock_behind_s: float | None


class TrustClient:
    """Verifies what a node is told to run. Its methods block: call them in a thread.

    Args:
        folder: where it keeps what it has seen; only this client writes there.
        root: the root that this node was given, whichever: it goes on from there.
        documents: where the rest comes from; several are asked in this order.
        clock: Unix seconds.
        monotonic: seconds that pass.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        *documents: Documents,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._root = root
        self._sources = documents
        self._clock = clock
        self._monotonic = monotonic
        self._updater: JudgedUpdater | None = None
        self._seen: tuple[int, float] | None = None  # the timestamp believed last, and when it came
        self._behind: float | None = None
        self._lock = threading.Lock()

    def refresh(self) -> Freshness:
        """Get the newest metadata.

        Raises:
            TrustError: it is refused; all is as it was.
            BusError: none of the sources can be reached; what the first of them said.
        """
        with self._lock:
            updater = self._refresh()
        return Freshness(
            root=updater.root.version,
            timestamp=updater.timestamp.version,
            signed_at=signed_at(updater.timestamp),
            expires_at=updater.timestamp.expires.timestamp(),
            clock_behind_s=self._behind,
        )

    def manifest(self, ref: ModelRef, labels: Labels) -> bytes:
        """The bytes of a version's manifest, if this node may serve it; by the metadata of the last refresh if that still counts.

        Args:
            ref: the version that is to be served, and the digest it is to have.
            labels: this node's.
        Raises:
            TrustError: it may not.
            BusError: none of the sources can be reached.
        """
        with self._lock:
            updater = self._updater
            if updater is None or updater.timestamp.expires.timestamp() <= self._judge(updater.root, updater.timestamp):
                updater = self._refresh()
            try:
                return self._manifest(updater, ref, labels)
            except _SIGNED_LATER as refusal:
                # Documents are remembered for seconds. This one may have been signed since a neighbour was given them.
                updater.fetcher.documents.forget()
                try:
                    return self._manifest(self._refresh(), ref, labels)
                except BusError:
                    raise refusal from None
            except BusError:
                self._updater = None  # the next attempt begins with whichever source can be reached
                raise

    def _refresh(self) -> JudgedUpdater:
        self._updater = None
        away: BusError | None = None
        for documents in self._sources:
            try:
                self._updater = self._refresh_from(documents)
            except BusError as error:
                log.info("metadata-source-away", error=str(error))
                away = away or error
            else:
                return self._updater
        raise away or RuntimeError("no source of metadata is named")

    def _refresh_from(self, documents: Documents) -> JudgedUpdater:
        fetcher = TufFetcher(documents, self._monotonic)
        try:
            updater = JudgedUpdater(self._folder, self._root, fetcher, self._judge)
        except REFUSALS as error:
            raise errors.BadMetadata(
                f"The root that this node was given is none: {error}",
                remedy="Give it the `1.root.json` that `hedgerow trust init` made, as `fleet: root_file`.",
            ) from error
        except (OSError, PkiError) as error:
            raise _unwritable(error) from error
        _guarded(updater, updater.refresh)
        if self._seen is None or self._seen[0] != updater.timestamp.version:
            self._seen = (updater.timestamp.version, self._monotonic())
        return updater

    def _judge(self, root: Root, timestamp: Timestamp | None) -> float:
        wall, floor = self._clock(), signed_at(root) or 0.0
        if timestamp is not None and (signed := signed_at(timestamp)) is not None:
            since = self._monotonic() - self._seen[1] if self._seen and self._seen[0] == timestamp.version else 0.0
            floor = max(floor, signed + since)
        self._behind = floor - wall if floor - wall > _BEHIND_S else None
        return max(wall, floor)

    def _manifest(self, updater: JudgedUpdater, ref: ModelRef, labels: Labels) -> bytes:
        path = target_path(ref.name, ref.version)
        target = _guarded(updater, lambda: updater.get_targetinfo(path))
        if target is None:
            raise errors.UnknownTarget(f"Refused {ref}: nobody who may has signed it; what serves goes on")
        signed = target.hashes.get("sha256")
        if f"sha256:{signed}" != ref.digest:
            raise errors.WrongDigest(
                f"Refused {ref}: {ref.digest} is asked for, and sha256:{signed} is signed; what serves goes on"
            )
        if why := selector_of(target).why_not(labels):
            raise errors.NotForThisNode(f"Refused {ref}: it is for nodes with {why}; what serves goes on")
        if target.length > LARGEST_MANIFEST:
            raise errors.EndlessData(f"Refused {ref}: a manifest of {target.length:,} bytes; what serves goes on")
        content = _guarded(updater, lambda: self._content(updater, target))
        _check_says(content, ref)
        return content

    def _content(self, updater: JudgedUpdater, target: TargetFile) -> bytes:
        file = updater.find_cached_target(target) or updater.download_target(target)
        content = Path(file).read_bytes()
        target.verify_length_and_hashes(content)
        self._forget_old(Path(file))
        return content

    def _forget_old(self, just_used: Path) -> None:
        """Keep the manifests that came last; the others can be fetched again."""
        files = sorted(just_used.parent.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[_KEPT_MANIFESTS:]:
            if file != just_used:
                file.unlink(missing_ok=True)


def _guarded(updater: JudgedUpdater, action: Callable[[], Result]) -> Result:
    """Do it, and say in our words why it was refused."""
    try:
        return action()
    except REFUSALS as error:
        updater.fetcher.documents.forget()
        raise explain(error, updater) from error
    except (ConnectionError, TimeoutError):
        raise
    except (OSError, PkiError) as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError | PkiError) -> errors.StateUnwritable:
    return errors.StateUnwritable(f"What this node has seen cannot be kept: {error}; what serves goes on")


def _check_says(content: bytes, ref: ModelRef) -> None:
    """A manifest says itself what it is; its place in the repository must not say otherwise."""
    try:
        manifest: Any = orjson.loads(content)
        name, version = manifest["name"], manifest["version"]
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise errors.WrongVersion(f"Refused {ref}: what is signed by that name is no manifest") from error
    if (name, version) != (ref.name, ref.version):
        raise errors.WrongVersion(f"Refused {ref}: its manifest says that it is {name} {version}; what serves goes on")
