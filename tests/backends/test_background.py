"""Low priority while a version is loaded: given and taken back, also from threads that a library starts meanwhile."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest
from tests.e2e.conftest import until

from hedgerow.backends import background
from hedgerow.backends.background import NICE, leftovers, low_priority
from hedgerow.testing import processes

TRIED = """
import json, os, sys, threading
from hedgerow.backends.background import leftovers, low_priority, may_raise
if sys.argv[1] != "as-it-is":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
seen, go_on = {}, threading.Event()
def nice(thread=0): return os.getpriority(os.PRIO_PROCESS, thread)
def idle(thread=0): return int(os.sched_getscheduler(thread) == os.SCHED_IDLE)
def start():  # as a backend's pool
    worker = threading.Thread(target=go_on.wait)
    worker.start()
    return worker.native_id
before = nice()
with low_priority():
    seen["within"] = nice() - before
    worker = start()
    seen["worker within"] = nice(worker) - before
    with leftovers():
        late = start()
        seen["idle within"], seen["worker idle within"] = idle(), idle(late)
    seen["idle after"], seen["worker idle after"] = idle(), idle(late)
seen["after"], seen["worker after"], seen["late worker after"] = nice() - before, nice(worker) - before, nice(late) - before
with leftovers():
    seen["idle by itself"] = idle()
go_on.set()
print(json.dumps([may_raise(), seen]))
"""


def tried(who: str) -> tuple[bool, dict[str, int]]:
    done = processes.run([sys.executable, "-c", TRIED, who], check=True, capture_output=True, text=True, cwd="/")
    may, seen = json.loads(done.stdout)
    return may, seen


def test_who_may_take_it_back_is_slower_within_and_as_before_afterwards() -> None:
    may, seen = tried("as-it-is")
    if not may:
        pytest.skip("this user may not raise priorities")

    within = {"within": NICE, "worker within": NICE, "idle within": 1, "worker idle within": 1}
    after = {"after": 0, "worker after": 0, "late worker after": 0, "idle after": 0, "worker idle after": 0}
    assert seen == within | after | {"idle by itself": 0}


def test_who_could_not_take_it_back_never_loses_it() -> None:
    """A model that was loaded slowly would serve slowly for ever."""
    if os.getuid() != 0:
        pytest.skip("only root may become somebody who may not")
    may, seen = tried("nobody")

    assert not may
    assert set(seen.values()) == {0}


def test_an_error_within_is_no_reason_to_stay_slow() -> None:
    def fail() -> None:
        with low_priority():
            raise ValueError("it failed")

    nices: list[int] = []

    def work() -> None:
        with pytest.raises(ValueError, match="it failed"):
            fail()
        nices.append(os.getpriority(os.PRIO_PROCESS, 0))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert nices == [before]


def test_who_is_left_nothing_for_long_goes_on_with_low_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    if not background.may_raise():
        pytest.skip("this user may not raise priorities")
    monkeypatch.setattr(background, "PATIENCE_S", 0.2)
    policies: list[int] = []

    def work() -> None:
        with low_priority():
            with leftovers():
                policies.append(os.sched_getscheduler(0))
                until(lambda: os.sched_getscheduler(0) == os.SCHED_OTHER)
            with leftovers():  # its patience is at an end
                policies.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert policies == [os.SCHED_IDLE, os.SCHED_OTHER]
