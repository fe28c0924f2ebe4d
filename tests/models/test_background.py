"""Low priority while a version is loaded: given and taken back, also from threads that a library starts meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from hedgerow.models.background import NICE, low_priority

TRIED = """
import json, os, sys, threading
from hedgerow.models.background import low_priority, may_raise
if sys.argv[1] != "as-it-is":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
seen, go_on = {}, threading.Event()
def nice(thread=0): return os.getpriority(os.PRIO_PROCESS, thread)
def stay(): go_on.wait()
before = nice()
with low_priority():
    seen["within"] = nice() - before
    worker = threading.Thread(target=stay)  # as a backend's pool
    worker.start()
    seen["worker within"] = nice(worker.native_id) - before
seen["after"], seen["worker after"] = nice() - before, nice(worker.native_id) - before
go_on.set()
print(json.dumps([may_raise(), seen]))
"""


def tried(who: str) -> tuple[bool, dict[str, int]]:
    done = subprocess.run([sys.executable, "-c", TRIED, who], check=True, capture_output=True, text=True, cwd="/")
    may, seen = json.loads(done.stdout)
    return may, seen


def test_who_may_take_it_back_is_slower_within_and_as_before_afterwards() -> None:
    may, seen = tried("as-it-is")
    if not may:
        pytest.skip("this user may not raise priorities")

    assert seen == {"within": NICE, "worker within": NICE, "after": 0, "worker after": 0}


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
