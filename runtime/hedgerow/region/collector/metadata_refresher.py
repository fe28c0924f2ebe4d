"""Keeps the region's repository fresh: takes in what owners have signed, and says every day that this is the newest.

Nodes refuse a word that is older than its role's lifetime (`trust.roles`), so where nobody does this no model changes any more
after a week. It takes the online key. Where that is not here, `hedgerow trust refresh` has to be run elsewhere; what is here
then only says how long things count.
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
"""A role is warned of when a tenth of its lifetime is left."""


class MetadataRefresher:
    """Keeps a repository fresh. `look` blocks; `run` calls it in a thread.

    Args:
        folder: the repository.
        online_key: file of the key for snapshot and timestamp; None: beside the folder, if it is there.
        clock: Unix seconds.
    """

    def __init__(self, folder: Path, online_key: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._online_key = online_key
        self._clock = clock
        self._problem: HedgerowError | None = None
        self._roles: tuple[RoleStatus, ...] = ()
        self._warned_at: dict[str, float] = {}

    async def run(self) -> None:
        """Look every half a minute, until cancelled."""
        while True:
            await asyncio.to_thread(self.check)
            await asyncio.sleep(CHECK_EVERY_S)

    def check(self) -> None:
        """Do what is due. Never raises: what stands in the way is said in the log, in `problems`, and tried again."""
        problem: HedgerowError | None = None
        try:
            self._refresh()
        except HedgerowError as error:
            problem = error
        except Exception as error:  # whatever it is, the region's other work goes on
            log.exception("repository-not-refreshed")
            problem = internal(error)
        if problem is not None and str(problem) != str(self._problem):
            log.error("repository-not-refreshed", code=problem.code, error=str(problem), remedy=problem.remedy)
        elif problem is None and self._problem is not None:
            log.info("repository-recovered")
        self._problem = problem

    def problems(self) -> list[str]:
        """What an operator should see to."""
        found = [] if self._problem is None else [f"the repository cannot be refreshed: {self._problem}"]
        return found + [
            f"{role.role} of the repository: {role.problem}"
            for role in self._roles
            if role.problem and role.role in TOP
        ]

    def gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        """What /metrics shows: name, help, labels, value."""
        text = "Unix time until which nodes believe what a role of the repository has signed."
        for role in self._roles:
            if role.expires_at is not None:
                yield "hedgerow_region_trust_expires_seconds", text, {"role": role.role}, role.expires_at
        yield "hedgerow_region_trust_fresh", "Whether the repository is kept fresh.", {}, self._problem is None

    def _refresh(self) -> None:
        repository = Repository.open(self._folder, self._online_key)
        now = self._clock()
        if repository.has_online_key and repository.refresh_timestamp(now):
            timestamp = repository.timestamp()
            log.info("repository-refreshed", timestamp=timestamp.signed.version if timestamp else None)
        self._roles = read_status(repository, now).roles
        for role in self._roles:
            self._warn(role, now)

    def _warn(self, role: RoleStatus, now: float) -> None:
        """Once a day, of a role whose word soon counts no longer."""
        if role.expires_at is None or role.expires_at - now > lifetime(role.role).total_seconds() / _SHORT:
            return
        if now - self._warned_at.get(role.role, float("-inf")) >= REFRESH_EVERY.total_seconds():
            self._warned_at[role.role] = now
            online = role.role in ONLINE
            log.warning(
                "signature-ending",
                role=role.role,
                days_left=round((role.expires_at - now) / 86_400, 1),
                remedy="`hedgerow trust refresh`, where the online key is."
                if online
                else f"`hedgerow trust renew {role.role} --key KEY`.",
            )
