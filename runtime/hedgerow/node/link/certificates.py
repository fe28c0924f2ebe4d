"""A node's certificate files: checked every few seconds, and used by all its links once they have been renewed.

Rules:
- New files are used once two checks in a row find the same and they load: renewal replaces one file after the other.
- The node's own link reconnects first; the others follow when the broker has accepted it. No frame is lost: see
  `Client.renew`.
- Files that cannot be used leave the links as they are. A link that breaks meanwhile waits for better files, as it does
  for a broker that is away.
- Nothing here ends the node: a wrong clock or an expired certificate is reported, with a remedy.
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
from hedgerow.pki.inspect import Life
from hedgerow.pki.names import PkiError

log = structlog.get_logger(__name__)

CHECK_EVERY_S: Final = 2.0
REPORT_EVERY_S: Final = 86_400.0
_ACCEPTED_S: Final = 30.0


class CertificateWatch:
    """Watches the files that links are made with.

    Args:
        client: the node's own link; the others use the same files.
        renew_others: reconnects the other links.
        on_event: told what operators should know.
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
        self._in_force = self._seen = self._contents()
        self._life = self._read_life()
        self._reported_contents = ""
        self._others_wait = False
        self._reported_at: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Check the files for ever."""
        while True:
            try:
                await self.look(datetime.now(UTC))
            except Exception:
                log.exception("certificate-watch-failed")  # the next check may succeed; without any, links would end
            await asyncio.sleep(CHECK_EVERY_S)

    async def look(self, now: datetime) -> None:
        """Use new files, and report what is wrong."""
        contents = await asyncio.to_thread(self._contents)
        if contents == self._seen and contents != self._in_force:
            await self._use(contents, now)
        self._seen = contents
        if self._others_wait and self._client.connected:
            self._others_wait = False
            await self._renew_others()
            self._on_event("certificate-renewed", self._facts())
        self._report_trouble(now)

    def reasons(self) -> list[str]:
        """Reasons for a health report."""
        trouble = self._life.trouble(datetime.now(UTC)) if self._life is not None else None
        return [] if trouble is None else [trouble.detail]

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Its metrics: name, help, labels, value."""
        if self._life is not None:
            ends = self._life.ends.timestamp()
            yield "hedgerow_certificate_ends_seconds", "When the node's certificate ends, in Unix time.", {}, ends

    async def _use(self, contents: str, now: datetime) -> None:
        try:
            life = await asyncio.to_thread(self._load, now)
        except HedgerowError as error:
            if contents != self._reported_contents:
                self._reported_contents = contents
                self._on_event("certificate-unusable", {"error": str(error), "remedy": error.remedy})
            return
        self._in_force, self._life, self._others_wait = contents, life, True
        was_connected = self._client.connected
        await self._client.renew()
        if not was_connected:
            return  # each link takes the new files when it comes up
        try:
            await self._client.wait_connected(_ACCEPTED_S)
        except BusError as error:
            self._on_event("certificate-refused", {**self._facts(), "error": str(error), "remedy": error.remedy})

    def _load(self, now: datetime) -> Life | None:
        """Check that a link can be made with the files. Raises: HedgerowError: it cannot."""
        tls_context(self._options)
        if self._options.cert_file is None:
            return None
        life, old = Life.of(self._options.cert_file), self._life
        if old is not None and life.name != old.name:
            raise PkiError(
                f"{self._options.cert_file} is now the certificate of {life.name!r}, and this node is {old.name!r}",
                remedy=f"Put the files of {old.name} back; to give the node another name, restart it.",
            )
        if life.state(now) in ("early", "ended") and (trouble := life.trouble(now)) is not None:
            raise PkiError(trouble.detail, remedy=trouble.remedy)
        return life

    def _read_life(self) -> Life | None:
        if self._options.cert_file is None:
            return None
        try:
            return Life.of(self._options.cert_file)
        except PkiError as error:  # the links report it too, and retry
            log.error("certificate-unreadable", error=str(error), remedy=error.remedy)
            return None

    def _contents(self) -> str:
        """A digest of what the files hold; reading them follows links, so a link that points elsewhere counts as well."""
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
        """Report it once a day: a thousand events would not say more than one."""
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
