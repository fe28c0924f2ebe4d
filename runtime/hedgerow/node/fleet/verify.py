"""Whether a version may serve here, by the word of trust; and what operators are told when it may not.

Rules:
- A version that comes here is verified by what is newest, or not taken.
- One that lies here was verified when it came. Before it serves again the newest word is asked: what that takes back serves no
  more. Where it cannot be had, or is too old to count, the earlier word stands: going back must not depend on the WAN.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

from hedgerow.errors import BusError
from hedgerow.trust.client import Freshness, TrustClient
from hedgerow.trust.errors import ExpiredMetadata, TrustError
from hedgerow.wire.fleet import ModelRef

log = structlog.get_logger(__name__)


class Verifier:
    """Asks trust on behalf of a node.

    Args:
        trust: says which bundles are what they are called.
        on_event: takes what operators should know.
    """

    def __init__(self, trust: TrustClient, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._trust = trust
        self._on_event = on_event
        self._fresh: Freshness | None = None
        self._refused: Counter[str] = Counter()

    async def manifest(self, ref: ModelRef, labels: Mapping[str, str]) -> bytes:
        """The manifest of a version that is to come here.

        Raises:
            TrustError: it may not serve here; an event has told so.
            BusError: nobody who knows can be reached.
        """
        try:
            return await self._ask(ref, labels)
        except TrustError as error:
            self._tell(ref, error)
            raise

    async def again(self, ref: ModelRef, labels: Mapping[str, str]) -> None:
        """Ask once more of a version that lies here. Raises: TrustError: the newest word is against it; an event has told so."""
        try:
            await self._ask(ref, labels)
        except (BusError, ExpiredMetadata) as error:
            log.warning("model-not-verified-again", version=str(ref), code=error.code, error=str(error))
        except TrustError as error:
            self._tell(ref, error)
            raise

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """What /metrics shows: name, help, labels, value."""
        for code, count in self._refused.items():
            yield "hedgerow_trust_refused", "Versions of models that were not trusted.", {"code": code}, count
        if self._fresh is not None:
            text = "Unix time until which the newest metadata of models counts."
            yield "hedgerow_trust_expires_seconds", text, {}, self._fresh.expires_at
            yield "hedgerow_trust_root", "Version of the root that is believed.", {}, self._fresh.root

    async def _ask(self, ref: ModelRef, labels: Mapping[str, str]) -> bytes:
        def ask() -> tuple[Freshness, bytes]:
            return self._trust.refresh(), self._trust.manifest(ref, labels)

        fresh, content = await asyncio.to_thread(ask)
        self._note(fresh)
        return content

    def _tell(self, ref: ModelRef, error: TrustError) -> None:
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
