"""Crash journal: which frames were in a stage when the process died, so that a frame cannot end the node for ever.

A broker delivers unacknowledged frames again. So one that crashes the process, or makes it hang until its supervisor
kills it, would do so at each start. Each lane therefore keeps a record of its list in a memory-mapped file. Nothing is
synced: the kernel keeps the page however the process dies, and a power cut is no crash of a stage.

At the next start:
- Frames found in a lane are suspects. Each runs alone, and nothing else runs meanwhile, so a second crash has one cause.
- A frame that was in a lane at two crashes is not run a third time, and its pipeline is isolated: it runs in a worker.
- So is a pipeline that was in a lane at three crashes within an hour: QoS 0 frames do not come back, their like do.

A pipeline is in a lane while it is built, too. Records of an earlier boot of the machine are ignored.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import threading
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from hedgerow import disk
from hedgerow.bus.message import Message
from hedgerow.errors import FrameError
from hedgerow.pipeline.chain import progress
from hedgerow.pipeline.chain.progress import StageProgress

log = structlog.get_logger(__name__)

MOST_FRAMES: Final = 252
"""Most frames in one list: their keys fill one memory page."""

POISON_AFTER: Final = 2
"""Crashes after which a frame is not run again."""

_LOOPS_AFTER: Final = 3
_LOOP_S: Final = 3600.0
_SUSPECT_S: Final = 600.0
"""How long a pipeline waits for suspects that do not come back, from its first list."""

_MOST_SUSPECTS: Final = 4096
_MOST_PIPELINES: Final = 256

_PAGE: Final = 4096
_KEYS: Final = 64
_KEY: Final = 16
_FILE: Final = "crashes.json"


class SuspectFrame(BaseModel):
    """A frame that was in a lane when the process died."""

    model_config = ConfigDict(frozen=True)

    pipeline: str
    stage: str
    crashes: int = 1


class CrashedPipeline(BaseModel):
    """A pipeline that was in a lane when the process died.

    Attributes:
        digest: digest of its configuration; another configuration starts anew.
        stage: the stage it was in the last time; empty: not known.
        at: when the node started again each time, Unix seconds.
        frame_lost: whether one of its frames is not run again.
    """

    model_config = ConfigDict(frozen=True)

    digest: str
    stage: str = ""
    at: tuple[float, ...] = ()
    frame_lost: bool = False

    @property
    def isolated(self) -> bool:
        """Whether it must not run in the node's process."""
        return self.frame_lost or len(self.at) >= _LOOPS_AFTER

    def why_isolated(self) -> str:
        """Return the reason as a clause."""
        where = f"stage {self.stage}" if self.stage else "it"
        if self.frame_lost:
            return f"{where} ended the node twice with the same frame"
        # Whoever kills the node, such as the kernel for want of memory, does so while some stage runs.
        return f"the node ended {len(self.at)} times within an hour while {where} ran"


class _CrashState(BaseModel):
    frames: dict[str, SuspectFrame] = {}
    pipelines: dict[str, CrashedPipeline] = {}


class _LaneDescription(BaseModel):
    pipeline: str
    digest: str
    stages: tuple[str, ...]
    boot: str


class LaneRecord:
    """What one lane runs, in a file that outlives the process.

    Args:
        path: the file; None: in memory only.
    Attributes:
        progress: the stage the lane is in.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._page: bytearray | mmap.mmap = bytearray(_PAGE)
        self._digest = ""
        if path is not None:
            try:
                path.write_bytes(bytes(_PAGE))  # reserves the space: a full disk must not make a write to memory fail
                with path.open("r+b") as file:
                    self._page = mmap.mmap(file.fileno(), _PAGE)
            except OSError as error:
                self._path = None
                log.warning("crash-journal-off", file=str(path), error=str(error), remedy="Free space on its disk.")
        view = memoryview(self._page)
        self._counts = view[:8].cast("I")
        self.progress = StageProgress(view[16 : 16 + progress.SIZE])

    def begin(self, pipeline: str, digest: str, stages: Sequence[str], frames: int, keys: Sequence[bytes]) -> None:
        """Record a list before it runs.

        Args:
            pipeline: name of the pipeline.
            digest: digest of its configuration.
            stages: names of its stages.
            frames: number of frames in the list.
            keys: keys of those that the broker would deliver again.
        """
        if digest != self._digest:
            self._describe(_LaneDescription(pipeline=pipeline, digest=digest, stages=tuple(stages), boot=_boot()))
        if keys:
            self._page[_KEYS : _KEYS + _KEY * len(keys)] = b"".join(keys)
        self._counts[1] = len(keys)
        self._counts[0] = frames  # last: until then the record is empty

    def end(self) -> None:
        """Record that the list has left the stages."""
        self._counts[0] = 0

    def remove(self) -> None:
        """Remove the file, after the last list."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _describe(self, description: _LaneDescription) -> None:
        self._digest = description.digest
        if self._path is not None:
            try:
                with self._path.open("r+b") as file:
                    file.truncate(_PAGE)
                    file.seek(_PAGE)
                    file.write(description.model_dump_json().encode())
            except OSError as error:
                log.warning("crash-journal-off", file=str(self._path), error=str(error))


class CrashJournal:
    """The lanes' records, and what those of earlier processes tell.

    Args:
        folder: folder of the journal, created if it does not exist; None: nothing outlives the process.
    Attributes:
        found: what ran when the previous process died: its pipelines, stages, and numbers of frames.
        turn: held while a list runs, as long as there are suspects.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.found: list[dict[str, Any]] = []
        self.turn = threading.Lock()
        self._folder = folder
        self._count = itertools.count()
        self._state = _CrashState()
        self._started_at = time.monotonic()
        self._waits_until: dict[str, float] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = (folder / "lock").open("w")
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no forked child inherits it
                self._state = self._read(folder)
                self._evaluate(folder)
            except OSError as error:
                self._folder = None
                remedy = "Give each node a `state_dir` of its own, which it can write to."
                log.warning("crash-journal-off", folder=str(folder), error=str(error), remedy=remedy)

    def open_lane(self, pipeline: str) -> LaneRecord:
        """Return a record for a lane of a pipeline."""
        return LaneRecord(self._folder and self._folder / f"{pipeline}.{next(self._count)}.lane")

    # Suspects

    @property
    def has_suspects(self) -> bool:
        """Whether frames are expected that may crash the process."""
        return bool(self._state.frames)

    def suspect(self, key: bytes) -> SuspectFrame | None:
        """Return what is known of a frame; None: it was in no crash."""
        return self._state.frames.get(key.hex())

    def cleared(self, key: bytes) -> None:
        """Record that a suspect has left the stages, or was dead-lettered. The caller holds `turn`."""
        if self._state.frames.pop(key.hex(), None) is not None:
            self._write()

    def forget_absent(self, pipeline: str) -> None:
        """Forget a pipeline's suspects that have not come back in time since its first list. The caller holds `turn`."""
        now = time.monotonic()
        all_absent = now > self._started_at + _LOOP_S  # those of pipelines that run no list, too
        if now <= self._waits_until.setdefault(pipeline, now + _SUSPECT_S) and not all_absent:
            return
        absent = [key for key, each in self._state.frames.items() if all_absent or each.pipeline == pipeline]
        if absent:
            for key in absent:
                del self._state.frames[key]
            self._write()

    def isolated(self, pipeline: str, digest: str) -> CrashedPipeline | None:
        """Return why a pipeline must run in a worker; None: it need not, or its configuration has changed."""
        crashed = self._state.pipelines.get(pipeline)
        return crashed if crashed is not None and crashed.isolated and crashed.digest == digest else None

    # Earlier processes

    def _evaluate(self, folder: Path) -> None:
        records = sorted(folder.glob("*.lane"))
        at, counted = time.time(), set[bytes]()
        for path in records:
            content = path.read_bytes()
            try:
                description = _LaneDescription.model_validate_json(content[_PAGE:])
            except ValidationError:
                continue  # its lane has run nothing
            frames, keys = memoryview(content)[:8].cast("I")
            if frames and description.boot == _boot():
                stage = memoryview(content)[16:20].cast("I")[0]
                name = description.stages[stage - 1] if 0 < stage <= len(description.stages) else ""
                ends = range(_KEYS + _KEY, _KEYS + _KEY * min(keys, MOST_FRAMES) + 1, _KEY)
                fresh = {content[end - _KEY : end] for end in ends} - counted
                counted |= fresh
                self._crashed(description, name, frames, fresh, at)
        if self.found:
            suspects, pipelines = list(self._state.frames.items()), list(self._state.pipelines.items())
            self._state = _CrashState(
                frames=dict(suspects[-_MOST_SUSPECTS:]), pipelines=dict(pipelines[-_MOST_PIPELINES:])
            )
            self._write()
        for path in records:
            path.unlink()

    def _crashed(self, lane: _LaneDescription, stage: str, frames: int, keys: Set[bytes], at: float) -> None:
        name = lane.pipeline
        before = self._state.pipelines.get(name)
        if before is None or before.digest != lane.digest:
            before = CrashedPipeline(digest=lane.digest)
        recent = {earlier for earlier in before.at if at - _LOOP_S < earlier <= at} | {at}
        lost = before.frame_lost
        for key in keys:
            known = self._state.frames.get(key.hex())
            crashes = 1 if known is None else known.crashes + 1
            self._state.frames[key.hex()] = SuspectFrame(pipeline=name, stage=stage, crashes=crashes)
            lost = lost or crashes >= POISON_AFTER
        self._state.pipelines.pop(name, None)  # the last one is the newest
        self._state.pipelines[name] = CrashedPipeline(
            digest=lane.digest, stage=stage or before.stage, at=tuple(sorted(recent)[-_LOOPS_AFTER:]), frame_lost=lost
        )
        for each in self.found:
            if (each["pipeline"], each["stage"]) == (name, stage):
                each["frames"] += frames
                return
        self.found.append({"pipeline": name, "stage": stage, "frames": frames})

    def _read(self, folder: Path) -> _CrashState:
        path = folder / _FILE
        try:
            return _CrashState.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _CrashState()
        except ValidationError:  # writes are atomic, so something else has changed the file
            path.rename(folder / f"{_FILE}.unreadable")
            return _CrashState()

    def _write(self) -> None:
        if self._folder is None:
            return
        try:
            disk.replace(self._folder / _FILE, orjson.dumps(self._state.model_dump(), option=orjson.OPT_INDENT_2))
        except OSError as error:  # the suspects are known until the next start
            log.warning("crash-journal-not-written", folder=str(self._folder), error=str(error))


def frame_key(message: Message) -> bytes:
    """Return a key that is the same for each delivery of a message, even with another packet identifier."""
    identity = message.topic.encode()
    if message.raw_properties:
        with suppress(FrameError):  # malformed, which the stages' errors say
            for name, value in message.properties.user_properties:
                if name == "id":
                    identity += b"\0" + value.encode()
    return xxhash.xxh3_128_digest(message.payload, xxhash.xxh3_64_intdigest(identity))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
