"""Watches the node's certificate files, and reconnects its links when they are renewed.

Rules:
- New files are used once two checks in a row find the same content and it loads, because renewal replaces one file after
  the other.
- The node's own link reconnects first; the others follow once the broker has accepted it. No frame is lost: see
  `Client.renew`.
- Unusable files leave the links as they are. A link that breaks meanwhile retries until the files are usable, as if the
  broker were unreachable.
- A wrong clock or an expired certificate does not stop the node; it is reported, with a remedy.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from hedgerow.bus.client import Client
from hedgerow.bus.connect import tls_context
from hedgerow.errors import BusError, HedgerowError
from hedgerow.pki.inspect import Life, lists_beside
from hedgerow.pki.names import PkiError

log = structlog.get_logger(__name__)

CHECK_EVERY_S: Final = 2.0
REPORT_EVERY_S: Final = 86_400.0
_ACCEPTED_S: Final = 30.0


class CertificateWatch:
    """Watches CA, certificate, key and revocation list.

    Args:
        client: the node's own link; the others use the same files.
        renew_others: reconnects the other links.
        on_event: called with each event's kind and detail.
    """

    def __init__(
        self,
        client: Client,
        renew_others: Callable[[], Awaitable[None]],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        options = self._options = client.options
        self._files = [
            path for path in (options.ca_file, options.cert_file, options.key_file, options.crl_file) if path
        ]
        self._client = client
        self._renew_others = renew_others
        self._on_event = on_event
        self._used_digest = self._seen_digest = self._digest()
        self._life = self._initial_life()
        self._reported_digest = ""
        self._others_pending = False
        self._reported_at: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Check the files until cancelled."""
        while True:
            try:
                await self.check(datetime.now(UTC))
            except Exception:
                # The next check may succeed; without checks, renewed files would never be used.
                log.exception("certificate-watch-failed")
            await asyncio.sleep(CHECK_EVERY_S)

    async def check(self, now: datetime) -> None:
        """Use new files, and report problems."""
        digest = await asyncio.to_thread(self._digest)
        if digest == self._seen_digest and digest != self._used_digest:
            await self._use(digest, now)
        self._seen_digest = digest
        if self._others_pending and self._client.connected:
            await self._renew_others()
            self._others_pending = False  # not before: the next check tries again what failed
            self._on_event("certificate-renewed", self._facts())
        self._report_trouble(now)
        await self._report_lists(now)

    def reasons(self) -> list[str]:
        """Return reasons for a health report."""
        trouble = self._life.trouble(datetime.now(UTC)) if self._life is not None else None
        return [] if trouble is None else [trouble.detail]

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield metrics: name, help, labels, value."""
        if self._life is not None:
            expires_at = self._life.ends.timestamp()
            yield (
                "hedgerow_certificate_ends_seconds",
                "When the node's certificate expires, in Unix time.",
                {},
                expires_at,
            )

    async def _use(self, digest: str, now: datetime) -> None:
        try:
            life = await asyncio.to_thread(self._load, now)
        except HedgerowError as error:
            if digest != self._reported_digest:
                self._reported_digest = digest
                self._on_event("certificate-unusable", {"error": error, "remedy": error.remedy})
            return
        self._used_digest, self._life, self._others_pending = digest, life, True
        was_connected = self._client.connected
        await self._client.renew()
        if not was_connected:
            return  # each link uses the new files when it reconnects
        try:
            await self._client.wait_connected(_ACCEPTED_S)
        except BusError as error:
            self._on_event("certificate-refused", {**self._facts(), "error": error, "remedy": error.remedy})

    def _load(self, now: datetime) -> Life | None:
        """Load the files. Raises: HedgerowError: no link can use them."""
        tls_context(self._options)
        if self._options.cert_file is None:
            return None
        life, old = Life.of(self._options.cert_file), self._life
        if old is not None and life.name != old.name:
            raise PkiError(
                f"{self._options.cert_file} is the certificate of {life.name!r}, but this node is {old.name!r}",
                remedy=f"Restore the files of {old.name}; to rename the node, restart it.",
            )
        if life.state(now) in ("early", "ended") and (trouble := life.trouble(now)) is not None:
            raise PkiError(trouble.detail, remedy=trouble.remedy)
        return life

    def _initial_life(self) -> Life | None:
        if self._options.cert_file is None:
            return None
        try:
            return Life.of(self._options.cert_file)
        except PkiError as error:  # the links report it too, and retry
            log.error("certificate-unreadable", error=str(error), remedy=error.remedy)
            return None

    def _digest(self) -> str:
        """Return a digest of the files' content. Symbolic links are followed, so a new target counts as a change."""
        digest = hashlib.sha256()
        for path in self._files:
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                digest.update(f"{error.errno}".encode())
        return digest.hexdigest()

    def _facts(self) -> dict[str, Any]:
        life = self._life
        return {} if life is None else {"name": life.name, "serial": life.serial, "ends": life.ends.isoformat()}

    def _report_trouble(self, now: datetime) -> None:
        """Report a certificate that is not valid yet, expires soon or has expired; once a day for each."""
        if self._life is None or (trouble := self._life.trouble(now)) is None:
            return
        state = self._life.state(now)
        key, at = (self._life.serial, state), time.monotonic()
        if at - self._reported_at.get(key, -REPORT_EVERY_S) < REPORT_EVERY_S:
            return
        self._reported_at[key] = at
        detail = {**self._facts(), "detail": trouble.detail, "remedy": trouble.remedy}
        if state == "early":
            self._on_event("clock-doubtful", detail)
        else:
            self._on_event("certificate-ending", detail)

    async def _report_lists(self, now: datetime) -> None:
        """Report revocation lists that have expired, or will soon; once a day. The broker most likely has the same ones."""
        at = time.monotonic()
        if at - self._reported_at.get(("", "lists"), -REPORT_EVERY_S) < REPORT_EVERY_S:
            return
        troubles = await asyncio.to_thread(lists_beside, now, self._options.cert_file, self._options.crl_file)
        if troubles:
            self._reported_at["", "lists"] = at
            self._on_event("revocation-list-ending", {"detail": troubles[0].detail, "remedy": troubles[0].remedy})
