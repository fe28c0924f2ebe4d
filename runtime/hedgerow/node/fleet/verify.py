"""Verifies that a model version may serve on this node: its signatures, then a variant that can run here.

Rules:
- A new version is verified against the newest metadata, or refused.
- An installed version has been verified before. Before it serves again, it is checked against the newest metadata, so
  that a withdrawn version no longer serves. If the metadata is unavailable or expired, the earlier verification stands: a
  rollback must not depend on the WAN.
- Blocking work takes one thread hop per version; events follow on the event loop. It has threads of its own, so that a source
  that does not answer delays nothing else. A verification that is cancelled gives up what it waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import structlog

from hedgerow import backends, tasks
from hedgerow.errors import BusError, HedgerowError
from hedgerow.models.bundle.manifest import MANIFEST, PIPELINES, File, Manifest, read_manifest
from hedgerow.models.bundle.version import choose_variant
from hedgerow.trust.client import Freshness, TrustClient
from hedgerow.trust.errors import ExpiredMetadata, TrustError
from hedgerow.wire.fleet import ModelRef

log = structlog.get_logger(__name__)

_THREADS: Final = 4
"""A verification of one version does not wait for that of another."""


class VerifiedVersion(NamedTuple):
    """A version that may serve here.

    Attributes:
        manifest: its manifest's bytes, as signed.
        files: files of the variant for this node.
    """

    manifest: bytes
    files: Sequence[File]


class Verifier:
    """Verifies versions for a node.

    Args:
        trust: verifies signatures.
        on_event: called with each event's kind and detail.
    """

    def __init__(self, trust: TrustClient, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._trust = trust
        self._on_event = on_event
        self._threads = ThreadPoolExecutor(_THREADS, "verification")
        self._fresh: Freshness | None = None
        self._refused: Counter[str] = Counter()

    async def verify(self, ref: ModelRef, labels: Mapping[str, str]) -> VerifiedVersion:
        """Verify a new version, and choose its variant.

        Args:
            labels: this node's labels.
        Raises:
            TrustError: it may not serve here; also published as an event.
            BusError: no source of metadata is reachable.
            ModelError: its manifest is invalid, or none of its variants can run here.
        """
        try:
            fresh, version = await tasks.in_executor(self._threads, self._verify, ref, labels)
        except TrustError as error:
            self._report_refusal(ref, error)
            raise
        self._update_freshness(fresh)
        if isinstance(version, HedgerowError):
            raise version
        return version

    async def verify_again(self, ref: ModelRef, labels: Mapping[str, str]) -> None:
        """Verify an installed version against the newest metadata, if that is available.

        Raises: TrustError: it may no longer serve; also published as an event.
        """
        try:
            fresh, _ = await tasks.in_executor(self._threads, self._refresh, ref, labels)
        except (BusError, ExpiredMetadata) as error:
            log.warning("model-not-verified-again", version=str(ref), code=error.code, error=str(error))
        except TrustError as error:
            self._report_refusal(ref, error)
            raise
        else:
            self._update_freshness(fresh)

    async def verify_pipelines(self, ref: ModelRef, labels: Mapping[str, str]) -> bytes:
        """Verify signed pipelines against the newest metadata, and return them.

        Raises:
            TrustError: they may not run here; also published as an event.
            BusError: no source of metadata is reachable.
        """
        refresh = partial(self._refresh, ref, labels, PIPELINES)
        try:
            fresh, content = await tasks.in_executor(self._threads, refresh)
        except TrustError as error:
            self._report_refusal(ref, error, "pipelines-not-trusted")
            raise
        self._update_freshness(fresh)
        return content

    def close(self) -> None:
        """End its threads once the verifications in progress have ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield metrics: name, help, labels, value."""
        for code, count in self._refused.items():
            yield "hedgerow_trust_refused", "Model versions refused as untrusted, by code.", {"code": code}, count
        for source, count in self._trust.failures.items():
            text = "Times that a source of metadata failed, and the next one was asked."
            yield "hedgerow_metadata_source_failures", text, {"source": source}, count
        if self._fresh is not None:
            text = "Unix time when the newest model metadata expires."
            yield "hedgerow_trust_expires_seconds", text, {}, self._fresh.expires_at
            yield "hedgerow_trust_root", "Version of the trusted root.", {}, self._fresh.root

    def _refresh(self, ref: ModelRef, labels: Mapping[str, str], file: str = MANIFEST) -> tuple[Freshness, bytes]:
        """(in a thread) Return the newest metadata's freshness, and the verified manifest or pipelines."""
        return self._trust.refresh(), self._trust.manifest(ref, labels, file)

    def _verify(self, ref: ModelRef, labels: Mapping[str, str]) -> tuple[Freshness, VerifiedVersion | HedgerowError]:
        """(in a thread) Return the metadata's freshness, and the version, or why the trusted version cannot run here."""
        fresh, content = self._refresh(ref, labels)
        try:
            return fresh, VerifiedVersion(content, _files_for_here(read_manifest(content, ref.digest)))
        except HedgerowError as error:
            return fresh, error

    def _report_refusal(self, ref: ModelRef, error: TrustError, kind: str = "model-not-trusted") -> None:
        self._refused[error.code] += 1
        detail = {"version": str(ref), "digest": ref.digest, "code": error.code, "remedy": error.remedy}
        log.warning(kind, **detail, error=str(error))
        self._on_event(kind, {**detail, "error": error})

    def _update_freshness(self, fresh: Freshness) -> None:
        was_behind = self._fresh is not None and self._fresh.clock_behind_s is not None
        self._fresh = fresh
        if fresh.clock_behind_s is not None and not was_behind:
            detail = {"behind_s": round(fresh.clock_behind_s)}
            remedy = "Set this machine's clock: until then the node cannot tell whether newer models are held back."
            log.warning("trust-clock-behind", **detail, remedy=remedy)
            self._on_event("trust-clock-behind", {**detail, "remedy": remedy})


def _files_for_here(manifest: Manifest) -> list[File]:
    """Return the files of the first variant that can run here; queries drivers. Raises: DeviceMissing: none can."""
    return manifest.files_for(choose_variant(manifest, backends.LocalDevices(), None))
