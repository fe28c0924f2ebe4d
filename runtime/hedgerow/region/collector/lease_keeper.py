"""Thread that takes the store's lease, renews it, and notices when another service has it: rules in `store/lease.py`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from hedgerow.region.store.database.database import Database, RegionStoreError, StoreInUse, StoreTrouble
from hedgerow.region.store.lease import (
    LEADS_S,
    RENEW_EVERY_S,
    STANDBY_NOTE_S,
    TAKEOVER_AFTER_S,
    LeaseRow,
    ServiceRun,
    Term,
    claim_lease,
    end_standby,
    leave_lease,
    note_standby,
    read_lease,
    renew_lease,
)

log = structlog.get_logger(__name__)

_TURN_S: Final = 0.5


class LeaseKeeper(threading.Thread):
    """Takes and keeps the lease until it is closed.

    Args:
        open_store: opens the store's database to write.
        service: this run of the service.
        client_token: secret part of the client ids, if the store has none yet.
        changed: called in this thread when this service begins to lead, with the term, and when it has lost the lease, with None.
        failed: called in this thread with an error that trying again does not mend; the thread ends.
    Attributes:
        standing_by: what this service waits for, for people; "" while it leads or has not looked yet.
        failure: why the lease can neither be taken nor renewed; None: it can.
    """

    def __init__(
        self,
        open_store: Callable[[], Database],
        service: ServiceRun,
        client_token: str,
        changed: Callable[[Term | None], None],
        failed: Callable[[RegionStoreError], None],
    ) -> None:
        super().__init__(name="region-lease", daemon=True)
        self.standing_by = ""
        self.failure: RegionStoreError | None = None
        self._open_store = open_store
        self._service = service
        self._client_token = client_token
        self._changed = changed
        self._failed = failed
        self._closing = threading.Event()
        self._database: Database | None = None
        self._term: Term | None = None
        self._leads_until = 0.0
        self._renewed_at = 0.0
        self._seen: LeaseRow | None = None
        self._seen_at = 0.0
        self._noted_at = -STANDBY_NOTE_S
        self._was_opened = False

    @property
    def term(self) -> Term | None:
        """The term, while this service leads as far as it knows."""
        return self._term

    def leads(self) -> bool:
        """Whether this service leads for certain, so that it may publish and connect. Any thread may ask."""
        return self._term is not None and _now() < self._leads_until

    def close(self) -> None:
        """Give up the lease, and end. The leader's writing must have ended before."""
        self._closing.set()

    def run(self) -> None:
        """See `threading.Thread.run`."""
        while True:
            try:
                self._turn()
                if self.failure is not None:
                    log.info("lease-recovered")
                    self.failure = None
            except Exception as problem:  # noqa: BLE001 - a bug must not end the thread: nobody would lead
                if not self._go_on_after(problem):
                    return
            if self._closing.wait(_TURN_S):
                break
        self._leave()

    def _go_on_after(self, problem: Exception) -> bool:
        """Handle a failure. Returns: whether trying again may help."""
        self._leads_until = 0.0
        if isinstance(problem, RegionStoreError):
            error = problem
        else:
            log.error("lease-failed", exc_info=problem)
            error = RegionStoreError(
                f"{type(problem).__name__}: {problem}", remedy="Report this with the service's log."
            )
        self._abandon()
        if isinstance(error, StoreInUse):
            self._stand_by(str(error), error.remedy)
            return True
        if not self._was_opened and not isinstance(error, StoreTrouble):
            self._failed(error)
            return False
        if self.failure is None:
            log.error("lease-failing", code=error.code, error=str(error), remedy=error.remedy)
        self.failure = error
        return True

    def _turn(self) -> None:
        if self._database is None:
            self._database = self._open_store()
            self._was_opened = True
        if self._term is None:
            self._try_to_lead(self._database)
        elif _now() >= self._renewed_at + RENEW_EVERY_S or not self.leads():
            self._renew(self._database, self._term)

    def _try_to_lead(self, database: Database) -> None:
        lease, now = read_lease(database), _now()
        if self._seen is None or lease[:4] != self._seen[:4]:
            self._seen, self._seen_at = lease, now
        because, locked = self._why_free(database, lease, now - self._seen_at), False
        if because:
            database.end_term(lease.fence)
            locked = database.try_lock()
            term = claim_lease(database, lease, self._service, self._client_token, because, locked=locked)
            if term is not None:
                self._begin(term, now, because)
                return
            database.unlock()
        self._stand_by(f"{lease.host} leads", "It takes over when that one ends.")
        if now - self._noted_at >= STANDBY_NOTE_S:
            note_standby(database, self._service)
            self._noted_at = now

    def _why_free(self, database: Database, lease: LeaseRow, unrenewed_s: float) -> str:
        """Return why the lease may be taken; "" if it may not."""
        if not lease.instance:
            return "nobody led"
        if unrenewed_s >= TAKEOVER_AFTER_S:
            return f"not renewed for {unrenewed_s:.1f} s"
        ended = lease.locked and unrenewed_s >= database.lock_grace_s and database.try_lock()
        return "the leader ended" if ended else ""

    def _begin(self, term: Term, now: float, because: str) -> None:
        self._term, self._renewed_at, self._leads_until = term, now, now + LEADS_S
        self._seen = None
        self.standing_by = ""
        log.info("lease-taken", term=term.fence, instance=self._service.instance, because=because)
        self._changed(term)

    def _renew(self, database: Database, term: Term) -> None:
        began = _now()
        if not renew_lease(database, term, self._service, locked=database.try_lock()):
            self._term, self._leads_until = None, 0.0
            database.unlock()
            lease = read_lease(database)
            log.warning("lease-lost", term=term.fence, leader=lease.host, now_term=lease.fence)
            self._changed(None)
            return
        self._renewed_at, self._leads_until = began, began + LEADS_S

    def _stand_by(self, why: str, remedy: str) -> None:
        if why != self.standing_by:
            log.info("region-standby", instance=self._service.instance, why=why, remedy=remedy)
            self.standing_by = why

    def _leave(self) -> None:
        term, self._term, self._leads_until = self._term, None, 0.0
        try:
            if self._database is not None and term is not None:
                leave_lease(self._database, term, self._service)
            elif self._database is not None:
                end_standby(self._database, self._service)
        except RegionStoreError as error:  # the next leader waits until it sees that nobody renews it
            log.warning("lease-not-left", error=str(error))
        self._abandon()

    def _abandon(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _now() -> float:
    """Return a clock that never jumps, and goes on while the process is stopped or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
