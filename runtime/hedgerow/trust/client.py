"""Trust on the node: fetches a model's manifest and verifies its signatures, up to the root the node was given.

Rules:
- A verified version keeps serving without further checks. Only a change needs fresh metadata.
- Metadata older than what this node has seen is refused. Model versions are another matter: the node may go back to
  any older one that is signed.
- Time is the later of two: the machine's clock, and the signing time of the newest accepted statement plus the time
  since it arrived. So an unset clock accepts nothing that was known to be expired, and a clock that is ahead causes
  refusals only while it is ahead: no reading of the machine's clock is stored.
- Sources are asked in order. A refresh uses a single source; the next is asked only if one is unreachable, never after a
  refusal, so that an attack is noticed.
- That signing time is forgotten when the root names another timestamp key, like all version numbers. So a region whose
  clock was wrong for a while does not lock nodes out permanently.
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
from hedgerow.models.bundle.manifest import LARGEST_MANIFEST, MANIFEST
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
"""Refusals that a signature made a moment ago may resolve."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the metadata is.

    Attributes:
        root, timestamp: their versions.
        signed_at: when the timestamp was signed, Unix seconds; None: not stated.
        expires_at: when it expires, Unix seconds.
        clock_behind_s: seconds by which the machine's clock is certainly behind; None: no evidence that it is. If it is,
            expiry was judged by signing times, so updates may be held back unnoticed until the clock is set.
    """

    root: int
    timestamp: int
    signed_at: float | None
    expires_at: float
    clock_behind_s: float | None


class TrustClient:
    """Verifies the versions a node is asked to run. Its methods block: call them in a thread.

    Args:
        folder: stores the metadata seen so far; only this client writes there.
        root: the root this node was given; newer ones are followed from there.
        documents: sources of all other metadata, asked in this order.
        clock: Unix seconds.
        monotonic: a monotonic clock in seconds.
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
        self._seen: tuple[int, float] | None = None  # the timestamp accepted last, and when it arrived
        self._behind: float | None = None
        self._lock = threading.Lock()

    def refresh(self) -> Freshness:
        """Get the newest metadata.

        Raises:
            TrustError: it is refused; nothing has changed.
            BusError: no source can be reached; the error of the first one.
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

    def manifest(self, ref: ModelRef, labels: Labels, file: str = MANIFEST) -> bytes:
        """Return the manifest of a version that this node may serve, refreshing metadata only if it has expired.

        Args:
            ref: the version to serve, and its expected digest.
            labels: this node's.
            file: what to return in its place; owners of one may not sign the other.
        Raises:
            TrustError: this node may not serve it.
            BusError: no source can be reached.
        """
        with self._lock:
            updater = self._updater
            if updater is None or updater.timestamp.expires.timestamp() <= self._judge(updater.root, updater.timestamp):
                updater = self._refresh()
            try:
                return self._manifest(updater, ref, labels, file)
            except _SIGNED_LATER as refusal:
                # Documents are cached for seconds. The version may have been signed since they were fetched for a peer.
                updater.fetcher.documents.forget()
                try:
                    return self._manifest(self._refresh(), ref, labels, file)
                except BusError:
                    raise refusal from None
            except BusError:
                self._updater = None  # the next attempt starts with the first source again
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
        raise away or RuntimeError("no source of metadata is configured")

    def _refresh_from(self, documents: Documents) -> JudgedUpdater:
        fetcher = TufFetcher(documents, self._monotonic)
        try:
            updater = JudgedUpdater(self._folder, self._root, fetcher, self._judge)
        except REFUSALS as error:
            raise errors.BadMetadata(
                f"This node's root cannot be used: {error}",
                remedy="Set `fleet: root_file` to the `1.root.json` that `hedgerow trust init` created.",
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

    def _manifest(self, updater: JudgedUpdater, ref: ModelRef, labels: Labels, file: str) -> bytes:
        path = target_path(ref.name, ref.version, file)
        target = _guarded(updater, lambda: updater.get_targetinfo(path))
        if target is None:
            raise errors.UnknownTarget(
                f"Refused {ref}: no authorised owner has signed it; the old version keeps serving"
            )
        signed = target.hashes.get("sha256")
        if f"sha256:{signed}" != ref.digest:
            raise errors.WrongDigest(
                f"Refused {ref}: {ref.digest} was requested, but sha256:{signed} is signed; the old version keeps serving"
            )
        if why := selector_of(target).why_not(labels):
            raise errors.NotForThisNode(f"Refused {ref}: it is for nodes with {why}; the old version keeps serving")
        if target.length > LARGEST_MANIFEST:
            raise errors.EndlessData(
                f"Refused {ref}: its manifest of {target.length:,} bytes is larger than {LARGEST_MANIFEST:,}; the old version keeps serving"
            )
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
        """Keep the newest manifests; the others can be fetched again."""
        files = sorted(just_used.parent.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[_KEPT_MANIFESTS:]:
            if file != just_used:
                file.unlink(missing_ok=True)


def _guarded(updater: JudgedUpdater, action: Callable[[], Result]) -> Result:
    """Run an action and translate tuf's refusals into `TrustError`."""
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
    return errors.StateUnwritable(
        f"The metadata this node has seen cannot be stored: {error}; the old version keeps serving"
    )


def _check_says(content: bytes, ref: ModelRef) -> None:
    """Check that a manifest's name and version match its path in the repository."""
    try:
        manifest: Any = orjson.loads(content)
        name, version = manifest["name"], manifest["version"]
    except (orjson.JSONDecodeError, TypeError, KeyError) as error:
        raise errors.WrongVersion(f"Refused {ref}: the file signed under that name is not a manifest") from error
    if (name, version) != (ref.name, ref.version):
        raise errors.WrongVersion(f"Refused {ref}: its manifest is for {name} {version}; the old version keeps serving")
