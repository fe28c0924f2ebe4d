"""Threads that do not end unnoticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hedgerow.tasks.failures import RestartPause, expect, report


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread that ends by itself. Its failure is logged and counted."""

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - nobody waits for a thread
            report(name, error)

    expect(name)
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def supervise_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread that runs until it returns. If it fails, it starts again."""

    def run() -> None:
        pause = RestartPause()
        while True:
            pause.began()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - nobody waits for a thread
                report(name, error)
            else:
                return
            time.sleep(pause.next_s())

    return start_thread(run, name)
