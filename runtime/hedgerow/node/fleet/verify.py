"""Whether a version may serve on this node: signatures first, then which of its variants can run here.

Rules:
- A version that comes here is verified against the newest metadata, or refused.
- One that is on the disk was verified when it came. Before it serves again the newest metadata is consulted: a version that
  was withdrawn serves no more. Where the metadata cannot be had, or has expired, the earlier verification stands: rolling
  back must not depend on the WAN.
- All that blocks is done in one thread hop for each version; events are raised afterwards, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from hedgerow import backends
from hedgerow.errors import BusError, HedgerowError
from hedgerow.models.bundle.manifest import File, Manifest, read_manifest
from hedgerow.models.bundle.version import choose_variant
from hedgerow.trust.client import Freshness, TrustClient
from hedgerow.trust.errors import ExpiredMetadata, TrustError
from hedgerow.wire.fleet import ModelRef

log = structlog.get_logger(__name__)


class VerifiedVersion(NamedTuple):
    """A version that may serve here.

    Attributes:
        manifest: its manifest's bytes, as signed.
        files: what the variant for this node consists of.
    """

    manifest: bytes
    files: Sequence[File]


class Verifier:
    """Verifies versions on behalf of a node.

    Args:
        trust: checks signatures.
        on_event: told what operators should know.
    """

    def __init__(self, trust: TrustClient, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._trust = trust
        self._on_event = on_event
        self._fresh: Freshness | None = None
        self._refused: Counter[str] = Counter()

    async def verify(self, ref: ModelRef, labels: Mapping[str, str]) -> VerifiedVersion:
        """Verify a version that is to come here, and choose its variant.

        Args:
            labels: this node's.
        Raises:
            TrustError: it may not serve here; an event says so.
            BusError: no source of metadata can be reached.
            ModelError: its manifest is broken, or none of its variants can run here.
        """
        try:
            fresh, version = await asyncio.to_thread(self._verify, ref, labels)
        except TrustError as error:
            self._report_refusal(ref, error)
            raise
        self._note(fresh)
        if isinstance(version, HedgerowError):
            raise version
        return version

    async def verify_again(self, ref: ModelRef, labels: Mapping[str, str]) -> None:
        """Verify a version that is on the disk, if the newest metadata is to be had.

        Raises: TrustError: that refuses it; an event says so.
        """
        try:
            fresh, _ = await asyncio.to_thread(self._consult, ref, labels)
        except (BusError, ExpiredMetadata) as error:
            log.warning("model-not-verified-again", version=str(ref), code=error.code, error=str(error))
        except TrustError as error:
            self._report_refusal(ref, error)
            raise
        else:
            self._note(fresh)

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Its metrics: name, help, labels, value."""
        for code, count in self._refused.items():
            yield "hedgerow_trust_refused", "Versions of models that were not trusted.", {"code": code}, count
        if self._fresh is not None:
            text = "Unix time until which the newest metadata of models counts."
            yield "hedgerow_trust_expires_seconds", text, {}, self._fresh.expires_at
            yield "hedgerow_trust_root", "Version of the root that is believed.", {}, self._fresh.root

    def _consult(self, ref: ModelRef, labels: Mapping[str, str]) -> tuple[Freshness, bytes]:
        """(a thread) The newest metadata, and the manifest that it vouches for."""
        return self._trust.refresh(), self._trust.manifest(ref, labels)

    def _verify(self, ref: ModelRef, labels: Mapping[str, str]) -> tuple[Freshness, VerifiedVersion | HedgerowError]:
        """(a thread) The newest metadata, and the version; or why it cannot run here though it is trusted."""
        fresh, content = self._consult(ref, labels)
        try:
            return fresh, VerifiedVersion(content, _files_for_here(read_manifest(content, ref.digest)))
        except HedgerowError as error:
            return fresh, error

    def _report_refusal(self, ref: ModelRef, error: TrustError) -> None:
        self._refused[error.code] += 1
        detail = {"version": str(ref), "digest": ref.digest, "code": error.code, "error": str(error)}
        log.warning("model-not-trusted", **detail, remedy=error.remedy)
        self._on_event("model-not-trusted", {**detail, "remedy": error.remedy})

    def _note(self, fresh: Freshness) -> None:
        was_behind = self._fresh is not None and self._fresh.clock_behind_s is not None
        self._fresh = fresh
        if fresh.clock_behind_s is not None and not was_behind:
            detail = {"behind_s": round(fresh.clock_behind_s)}
            remedy = "Set this machine's clock: until then nobody can tell whether newer models are held back."
            log.warning("trust-clock-behind", **detail, remedy=remedy)
            self._on_event("trust-clock-behind", {**detail, "remedy": remedy})


def _files_for_here(manifest: Manifest) -> list[File]:
    """The files of the first variant that can run here; drivers are asked. Raises: DeviceMissing: none can."""
    return manifest.files_for(choose_variant(manifest, backends.LocalDevices(), None))
