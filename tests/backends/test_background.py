"""Low priority while a version is loaded: lowered and restored, also for threads that a library starts."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest
from tests.e2e.conftest import until

from hedgerow.backends import background
from hedgerow.backends.background import NICE, idle_priority, low_priority
from hedgerow.testing import processes

PROBE = """
import json, os, sys, threading
from hedgerow.backends.background import idle_priority, low_priority, can_raise_priority
if sys.argv[1] == "unprivileged":
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
    with idle_priority():
        late = start()
        seen["idle within"], seen["worker idle within"] = idle(), idle(late)
    seen["idle after"], seen["worker idle after"] = idle(), idle(late)
seen["after"], seen["worker after"], seen["late worker after"] = nice() - before, nice(worker) - before, nice(late) - before
with idle_priority():
    seen["idle outside low_priority"] = idle()
go_on.set()
print(json.dumps([can_raise_priority(), seen]))
"""


def run_probe(user: str) -> tuple[bool, dict[str, int]]:
    done = processes.run([sys.executable, "-c", PROBE, user], check=True, capture_output=True, text=True, cwd="/")
    can_raise, seen = json.loads(done.stdout)
    return can_raise, seen


def test_priority_is_lowered_within_the_block_and_restored_afterwards() -> None:
    can_raise, seen = run_probe("current-user")
    if not can_raise:
        pytest.skip("this user may not raise priorities")

    slower = min(NICE, 19 - os.getpriority(os.PRIO_PROCESS, 0))  # 19 is the lowest; the tests may run niced themselves
    within = {"within": slower, "worker within": slower, "idle within": 1, "worker idle within": 1}
    after = {"after": 0, "worker after": 0, "late worker after": 0, "idle after": 0, "worker idle after": 0}
    assert seen == within | after | {"idle outside low_priority": 0}


def test_priority_is_not_lowered_if_it_cannot_be_restored() -> None:
    """A model's threads, started while it is loaded, would serve slowly for ever."""
    if os.getuid() != 0:
        pytest.skip("only root can become an unprivileged user")
    can_raise, seen = run_probe("unprivileged")

    assert not can_raise
    assert set(seen.values()) == {0}


def test_priority_is_restored_after_an_exception() -> None:
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


def test_idle_priority_falls_back_to_low_priority_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    if not background.can_raise_priority():
        pytest.skip("this user may not raise priorities")
    monkeypatch.setattr(background, "MAX_IDLE_PRIORITY_S", 0.2)
    policies: list[int] = []

    def work() -> None:
        with low_priority():
            with idle_priority():
                policies.append(os.sched_getscheduler(0))
                until(lambda: os.sched_getscheduler(0) == os.SCHED_OTHER)
            with idle_priority():  # the time for idle priority is used up
                policies.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert policies == [os.SCHED_IDLE, os.SCHED_OTHER]
