"""Keeps the region's repository fresh: adds what owners have signed, and signs a new timestamp every day.

Nodes refuse metadata older than its role's lifetime (`trust.roles`). Without refreshes, models cannot be changed after a week.
Refreshing needs the online key. If the key is elsewhere, run `hedgerow trust refresh` there; this module then only watches
expiry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from hedgerow.errors import HedgerowError, internal
from hedgerow.trust.repository import Repository
from hedgerow.trust.roles import ONLINE, REFRESH_EVERY, TOP, lifetime
from hedgerow.trust.status import RoleStatus, read_status

log = structlog.get_logger(__name__)

CHECK_EVERY_S: Final = 30.0
_SHORT: Final = 10
"""Warn when a tenth of a role's lifetime is left."""


class MetadataRefresher:
    """Keeps a repository fresh. `check` blocks; `run` calls it in a thread.

    Args:
        folder: the repository.
        online_key: file with the key for snapshot and timestamp; None: the one beside the folder, if it exists.
        clock: Unix seconds.
        leads: whether this service may sign; of several on one store, one does.
    """

    def __init__(
        self,
        folder: Path,
        online_key: Path | None,
        clock: Callable[[], float] = time.time,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder = folder
        self._online_key = online_key
        self._clock = clock
        self._leads = leads
        self._problem: HedgerowError | None = None
        self._roles: tuple[RoleStatus, ...] = ()
        self._warned_at: dict[str, float] = {}

    async def run(self) -> None:
        """Check every 30 s until cancelled."""
        while True:
            await asyncio.to_thread(self.check)
            await asyncio.sleep(CHECK_EVERY_S)

    def check(self) -> None:
        """Do what is due. Never raises: errors go to the log and to `problems`, and the next check tries again."""
        problem: HedgerowError | None = None
        try:
            self._refresh()
        except HedgerowError as error:
            problem = error
        except Exception as error:  # must not stop the rest of the service
            log.exception("repository-not-refreshed")
            problem = internal(error)
        if problem is not None and str(problem) != str(self._problem):
            log.error("repository-not-refreshed", code=problem.code, error=str(problem), remedy=problem.remedy)
        elif problem is None and self._problem is not None:
            log.info("repository-recovered")
        self._problem = problem

    def problems(self) -> list[str]:
        """Return what needs an operator's attention."""
        found = [] if self._problem is None else [f"cannot refresh the repository: {self._problem}"]
        return found + [
            f"{role.role} of the repository: {role.problem}"
            for role in self._roles
            if role.problem and role.role in TOP
        ]

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """Yield gauges for /metrics: name, help, labels, value."""
        text = "Unix time at which the metadata of a role of the repository expires."
        for role in self._roles:
            if role.expires_at is not None:
                yield "hedgerow_region_trust_expires_seconds", text, {"role": role.role}, role.expires_at
        yield "hedgerow_region_trust_fresh", "1 while the repository can be refreshed.", {}, self._problem is None

    def _refresh(self) -> None:
        repository = Repository.open(self._folder, self._online_key)
        now = self._clock()
        if repository.has_online_key and self._leads() and repository.refresh_timestamp(now):
            timestamp = repository.timestamp()
            log.info("repository-refreshed", timestamp=timestamp.signed.version if timestamp else None)
        self._roles = read_status(repository, now).roles
        for role in self._roles:
            self._warn(role, now)

    def _warn(self, role: RoleStatus, now: float) -> None:
        """Warn of metadata that expires soon, once a day."""
        if role.expires_at is None or role.expires_at - now > lifetime(role.role).total_seconds() / _SHORT:
            return
        if now - self._warned_at.get(role.role, float("-inf")) >= REFRESH_EVERY.total_seconds():
            self._warned_at[role.role] = now
            online = role.role in ONLINE
            log.warning(
                "signature-ending",
                role=role.role,
                days_left=round((role.expires_at - now) / 86_400, 1),
                remedy="Run `hedgerow trust refresh` where the online key is."
                if online
                else f"Run `hedgerow trust renew {role.role} --key KEY`.",
            )
