"""Trust on the node: fetches a model's manifest and verifies its signatures, up to the root the node was given.

Rules:
- A verified version keeps serving without further checks. Only a change needs fresh metadata.
- Metadata older than what this node has seen is refused. Model versions are another matter: the node may go back to
  any older one that is signed.
- Time is the later of two: the machine's clock, and the signing time of the newest accepted statement plus the time
  since it arrived. So an unset clock accepts nothing that was known to be expired, and a clock that is ahead causes
  refusals only while it is ahead: no reading of the machine's clock is stored.
- Sources are asked in order. A refresh uses a single source, and so does a manifest with its metadata; the next is asked only if
  one is unreachable, or sends too slowly or without end, never after a refusal of what it sent, so that an attack is noticed.
- That signing time is forgotten when the root names another timestamp key, like all version numbers. So a region whose
  clock was wrong for a while does not lock nodes out permanently.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
import structlog
from tuf.api.metadata import Root, Timestamp

from hedgerow.errors import BusError, HedgerowError
from hedgerow.labels import Labels
from hedgerow.models.bundle.manifest import LARGEST_MANIFEST, MANIFEST
from hedgerow.pki.names import PkiError
from hedgerow.trust import errors
from hedgerow.trust.documents import Documents, TufFetcher, source_name
from hedgerow.trust.errors import TrustError
from hedgerow.trust.rejected_updates import REFUSALS, explain
from hedgerow.trust.roles import selector_of, signed_at, target_path
from hedgerow.trust.updater import JudgedUpdater
from hedgerow.web.errors import CredentialsWithheld, OriginEndless, OriginSlow, RedirectRefused
from hedgerow.wire.fleet import ModelRef

log = structlog.get_logger(__name__)

_BEHIND_S: Final = 60.0
_RACES: Final = 5
"""How often a refresh starts over because another one stored newer metadata meanwhile."""
_SIGNED_LATER: Final = (errors.UnknownTarget, errors.WrongDigest, errors.NotForThisNode)
"""Refusals that a signature made a moment ago may resolve."""
MISBEHAVES: Final = (
    errors.SlowData,
    errors.EndlessData,
    OriginSlow,
    OriginEndless,
    RedirectRefused,
    CredentialsWithheld,
)
"""What a source does to hold a node up: the next one is asked, because nothing was learned about the metadata itself."""

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
    """Verifies the versions a node is asked to run. Its methods block, and may run at once: call them in threads.

    No lock is held while documents arrive: each refresh works in memory, and stores what it accepted if nothing newer was
    stored meanwhile. So a source that sends slowly delays nobody but those who ask it.

    Args:
        folder: stores the metadata seen so far; only this client writes there.
        root: the root this node was given; newer ones are followed from there.
        documents: sources of all other metadata, asked in this order.
        clock: Unix seconds.
        monotonic: a monotonic clock in seconds.
        on_event: called with events for operators, from the thread that asks a source.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        *documents: Documents,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _detail: None,
    ) -> None:
        self._folder = folder
        self._root = root
        self._sources = documents
        self._clock = clock
        self._monotonic = monotonic
        self._event = on_event
        self._updater: JudgedUpdater | None = None
        self._seen: tuple[int, float] | None = None  # the timestamp accepted last, and when it arrived
        self._behind: float | None = None
        self._stored = 0  # number of times that metadata was stored
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()
        self._counting = threading.Lock()  # its own: the other is held while metadata is written to disk

    @property
    def failures(self) -> dict[str, int]:
        """How often each source failed, and the next one was asked."""
        with self._counting:
            return dict(self._failures)

    def refresh(self) -> Freshness:
        """Get the newest metadata.

        Raises:
            TrustError: it is refused; nothing has changed.
            BusError: no source can be reached; the error of the first one.
        """
        with self._lock:
            self._updater = None
        updater, _ = self._refresh()
        self._give_back(updater)
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
        updater = self._borrow()
        sources: Sequence[Documents] = self._sources
        refusal: TrustError | None = None  # the first one that newer metadata may resolve
        while True:
            try:
                if updater is None or updater.timestamp.expires.timestamp() <= self._judge(
                    updater.root, updater.timestamp
                ):
                    updater, sources = self._refresh(sources)
            except (BusError, *MISBEHAVES):
                if refusal is None:
                    raise
                raise refusal from None
            try:
                content = self._manifest(updater, ref, labels, file)
            except (BusError, *MISBEHAVES) as error:
                documents = updater.fetcher.documents
                sources = tuple(each for each in sources if each is not documents)
                self._left_alone(documents, error, sources)
                if not sources:
                    if refusal is None:
                        raise
                    raise refusal from None
                updater = None
            except _SIGNED_LATER as late:
                if refusal is not None:
                    self._give_back(updater)
                    raise
                # Documents are cached for seconds. The version may have been signed since they were fetched for a peer.
                updater.fetcher.documents.forget()
                refusal, updater, sources = late, None, self._sources
            except TrustError:
                self._give_back(updater)
                raise
            else:
                self._give_back(updater)
                return content

    def _borrow(self) -> JudgedUpdater | None:
        """Take the newest metadata for this thread alone; None: another thread has it, or there is none."""
        with self._lock:
            updater, self._updater = self._updater, None
        return updater

    def _give_back(self, updater: JudgedUpdater) -> None:
        with self._lock:
            if self._updater is None or self._updater.timestamp.version <= updater.timestamp.version:
                self._updater = updater

    def _refresh(self, sources: Sequence[Documents] | None = None) -> tuple[JudgedUpdater, Sequence[Documents]]:
        """Return the newest metadata of the first source that delivers, and the sources not known to misbehave."""
        sources = self._sources if sources is None else sources
        failure: HedgerowError | None = None
        for position, documents in enumerate(sources):
            try:
                return self._refresh_from(documents), sources[position:]
            except (BusError, *MISBEHAVES) as error:
                self._left_alone(documents, error, sources[position + 1 :])
                failure = failure or error
        raise failure or RuntimeError("no source of metadata is configured")

    def _left_alone(self, documents: Documents, error: HedgerowError, following: Sequence[Documents]) -> None:
        source = source_name(documents)
        with self._counting:
            self._failures[source] += 1
        detail = {
            "source": source,
            "next": source_name(following[0]) if following else "",
            "of": "metadata",
            "bytes": getattr(error, "received", 0),
            "seconds": round(getattr(error, "seconds", 0.0), 1),
            "code": error.code,
            "error": str(error),
            "remedy": error.remedy,
        }
        log.info("metadata-source-away", **detail)
        if following or isinstance(error, MISBEHAVES):
            self._event("source-left-alone", detail)

    def _refresh_from(self, documents: Documents) -> JudgedUpdater:
        for _ in range(_RACES):
            with self._lock:
                stored = self._stored
            updater = self._begin(documents)
            try:
                _guarded(updater, updater.refresh)
            finally:
                newest = self._store(updater, stored)
            if newest:
                return updater
        raise errors.StateUnwritable(
            f"Refused: other refreshes stored newer metadata {_RACES} times while this one was under way",
            remedy="The node tries again. If it keeps failing, please report it.",
        )

    def _begin(self, documents: Documents) -> JudgedUpdater:
        try:
            return JudgedUpdater(self._folder, self._root, TufFetcher(documents, self._monotonic), self._judge)
        except REFUSALS as error:
            raise errors.BadMetadata(
                f"This node's root cannot be used: {error}",
                remedy="Set `fleet: root_file` to the `1.root.json` that `hedgerow trust init` created.",
            ) from error
        except (OSError, PkiError) as error:
            raise _unwritable(error) from error

    def _store(self, updater: JudgedUpdater, stored: int) -> bool:
        """Store what a refresh has accepted so far, unless another has stored something since.

        Returns: whether it was stored. If not, it was checked against metadata that is not the newest any more.
        """
        with self._lock:
            if self._stored != stored:
                return False
            try:
                updater.store()
            except (OSError, PkiError) as error:
                raise _unwritable(error) from error
            self._stored += 1
            timestamp = updater.trusted(Timestamp.type)
            if timestamp is not None and (self._seen is None or self._seen[0] != timestamp.version):
                self._seen = (timestamp.version, self._monotonic())
        return True

    def _judge(self, root: Root, timestamp: Timestamp | None) -> float:
        wall, floor = self._clock(), signed_at(root) or 0.0
        if timestamp is not None and (signed := signed_at(timestamp)) is not None:
            since = self._monotonic() - self._seen[1] if self._seen and self._seen[0] == timestamp.version else 0.0
            floor = max(floor, signed + since)
        self._behind = floor - wall if floor - wall > _BEHIND_S else None
        return max(wall, floor)

    def _manifest(self, updater: JudgedUpdater, ref: ModelRef, labels: Labels, file: str) -> bytes:
        path = target_path(ref.name, ref.version, file)
        with self._lock:
            stored = self._stored
        try:
            target = _guarded(updater, lambda: updater.get_targetinfo(path))
        finally:
            self._store(updater, stored)  # the owner's metadata; if newer metadata is stored already, it is not needed
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
        content = _guarded(updater, lambda: updater.content(target))
        _check_says(content, ref)
        with self._lock:
            _guarded(updater, updater.forget_old_manifests)
        return content


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
