"""Stages that hang in many ways; each frame names the way."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import fcntl
import functools
import os
import queue
import re
import select
import selectors
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from hedgerow import Frame, Outcome, Stage, StageConfig, StageContext

LONG_S = 1e6
WAYS: dict[str, Callable[[Frame], Any]] = {}


def way(function: Callable[[Frame], Any]) -> Callable[[Frame], Any]:
    WAYS[function.__name__.replace("_", "-")] = function
    return function


class Hanging(Stage[StageConfig]):
    """Does what the payload names; anything else is counted."""

    def setup(self, context: StageContext) -> None:
        self.seen = context.per_stream(list)

    def process(self, frame: Frame) -> Any:
        name = bytes(frame.payload).decode()
        found = WAYS.get(name)
        outcome = None if found is None else found(frame)
        self.seen[frame.stream].append(name)
        return frame.with_result({"did": name}) if outcome is None else outcome


class HangingLists(Stage[StageConfig]):
    """The same, in lists."""

    def process_many(self, frames: Sequence[Frame]) -> Sequence[Outcome | Exception]:
        for frame in frames:
            if (found := WAYS.get(bytes(frame.payload).decode())) is not None:
                found(frame)
        return [frame.with_result({"did": bytes(frame.payload).decode()}) for frame in frames]


class Forwards(Stage[StageConfig]):
    """Lets frames pass."""

    def process(self, frame: Frame) -> Frame:
        return frame


class HangsInSetup(Stage[StageConfig]):
    def setup(self, context: StageContext) -> None:
        time.sleep(LONG_S)  # that is the point


class HangsInClose(Stage[StageConfig]):
    def process(self, frame: Frame) -> Frame:
        return frame.with_result({"pid": os.getpid()})

    def close(self) -> None:
        time.sleep(LONG_S)  # that is the point


class HangsAtExit(HangsInClose):
    def close(self) -> None:
        atexit.register(time.sleep, LONG_S)
        threading.Thread(target=time.sleep, args=[LONG_S]).start()


# Pure Python


@way
def sleep(frame: Frame) -> None:
    time.sleep(LONG_S)  # that is the point


@way
def busy_loop(frame: Frame) -> None:
    while True:
        pass


@way
def loop_that_catches_everything(frame: Frame) -> None:
    while True:
        try:
            time.sleep(LONG_S)
        except BaseException:  # noqa: BLE001 - that is the point
            continue


@way
def infinite_generator(frame: Frame) -> Iterator[Frame]:
    while True:
        time.sleep(0)
        yield frame


@way
def generator_that_stalls(frame: Frame) -> Iterator[Frame]:
    yield frame
    time.sleep(LONG_S)  # that is the point


@way
def deep_recursion_by_generators(frame: Frame) -> None:
    @functools.cache
    def never(n: int) -> int:
        return n if time.sleep(0) else never((n + 1) % 7) if n < 6 else never.__wrapped__(0)

    while True:
        try:
            never(0)
        except RecursionError:
            continue


# Threads


@way
def event_never_set(frame: Frame) -> None:
    threading.Event().wait()


@way
def lock_never_released(frame: Frame) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@way
def lock_of_a_dead_thread(frame: Frame) -> None:
    lock = threading.RLock()
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    lock.acquire()


@way
def condition_without_notify(frame: Frame) -> None:
    with (condition := threading.Condition()):
        condition.wait()


@way
def empty_queue(frame: Frame) -> None:
    queue.Queue[int]().get()


@way
def barrier_for_two(frame: Frame) -> None:
    threading.Barrier(2).wait()


@way
def future_never_done(frame: Frame) -> None:
    ThreadPoolExecutor(1).submit(time.sleep, LONG_S).result()


@way
def thread_that_is_joined(frame: Frame) -> None:
    thread = threading.Thread(target=time.sleep, args=[LONG_S])
    thread.start()
    thread.join()


@way
def event_loop_of_its_own(frame: Frame) -> None:
    asyncio.run(asyncio.sleep(LONG_S))


# Native code


@way
def native_with_the_interpreter_lock(frame: Frame) -> None:
    ctypes.PyDLL(None).sleep(1000)  # that is the point


@way
def native_without_the_interpreter_lock(frame: Frame) -> None:
    ctypes.CDLL(None).sleep(1000)  # that is the point


@way
def catastrophic_expression(frame: Frame) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


@way
def endless_sum(frame: Frame) -> None:
    sum(iter(int, 1))


@way
def huge_number(frame: Frame) -> None:
    pow(7, 10**9 + 7)


@way
def huge_text(frame: Frame) -> None:
    ("a" * 200_000 + "b").count("a" * 100_000) and re.search(r"(x+x+)+y", "x" * 60)


# The operating system


@way
def socket_that_stays_silent(frame: Frame) -> None:
    one, _other = socket.socketpair()
    one.recv(1)


@way
def peer_that_does_not_read(frame: Frame) -> None:
    one, _other = socket.socketpair()
    one.sendall(bytes(2**26))


@way
def server_without_clients(frame: Frame) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.accept()


@way
def pipe_without_a_writer(frame: Frame) -> None:
    reading, _writing = os.pipe()
    os.read(reading, 1)


@way
def fifo_without_a_writer(frame: Frame) -> None:
    path = Path(tempfile.mkdtemp()) / "fifo"
    os.mkfifo(path)
    path.read_bytes()


@way
def select_on_nothing(frame: Frame) -> None:
    select.select([os.pipe()[0]], [], [])


@way
def selector_without_timeout(frame: Frame) -> None:
    selector = selectors.DefaultSelector()
    selector.register(os.pipe()[0], selectors.EVENT_READ)
    selector.select()


@way
def locked_file(frame: Frame) -> None:
    with tempfile.NamedTemporaryFile() as one, Path(one.name).open() as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)


@way
def wait_for_a_signal(frame: Frame) -> None:
    while True:
        signal.pause()


@way
def all_signals_blocked(frame: Frame) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(LONG_S)  # that is the point


@way
def frozen_by_a_signal(frame: Frame) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@way
def own_handler_of_the_stack_signal(frame: Frame) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    time.sleep(LONG_S)  # that is the point


@way
def default_action_of_the_stack_signal(frame: Frame) -> None:
    """It ends the process, which is not a crash of its own."""
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    time.sleep(LONG_S)  # that is the point


# Children


@way
def child_process(frame: Frame) -> None:
    subprocess.run(["sleep", "1000"], check=False)


@way
def child_that_ignores_signals(frame: Frame) -> None:
    subprocess.run(["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1000; done"], check=False)


@way
def child_whose_output_is_not_read(frame: Frame) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as child:
        child.wait()


@way
def forked_child_that_is_awaited(frame: Frame) -> None:
    if (child := os.fork()) == 0:
        time.sleep(LONG_S)  # that is the point
    os.waitpid(child, 0)


@way
def hang_beside_a_child_with_the_pipe(frame: Frame) -> None:
    child_with_the_pipe(frame)
    time.sleep(LONG_S)  # that is the point


# Results


class Incomparable:
    def __lt__(self, other: Self) -> bool:
        time.sleep(LONG_S)
        return False


@way
def result_that_cannot_be_sorted(frame: Frame) -> Frame:
    return frame.with_result({"set": {Incomparable(), Incomparable()}})


# These do not hang


@way
def slow(frame: Frame) -> None:
    time.sleep(0.4)  # less than the limit for one frame


@way
def slow_with_the_interpreter_lock(frame: Frame) -> None:
    ctypes.PyDLL(None).usleep(400_000)  # less than the limit for one frame


@way
def child_with_the_pipe(frame: Frame) -> None:
    if os.fork() == 0:
        time.sleep(LONG_S)  # that is the point


@way
def crash_beside_a_child_with_the_pipe(frame: Frame) -> None:
    child_with_the_pipe(frame)
    os._exit(3)


@way
def hang_once(frame: Frame) -> None:
    mark = Path(os.environ["HANGING_ONCE"])
    if not mark.exists():
        mark.touch()
        time.sleep(LONG_S)  # that is the point
