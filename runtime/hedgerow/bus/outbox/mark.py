"""What stands beside the database: how far numbers were given, how time is told, and room for a full disk.

**Mark.** A database that loses the end of its log looks sound afterwards: its last transactions are simply not there, and
it would give their numbers a second time. So the numbers are noted in a file of their own after every commit. Not with
an fsync: it need only survive what befalls the database alone. If both are lost, the region knows better
(`OutboxStore._overtaken`).

**Age.** Records expire by an age that only grows while a machine is known to be up, so that no clock that is set, by an
hour or by fifty years, expires anything. Within one boot the kernel's boot time tells how long the node was down. After
a new boot, the time since then has surely passed; how long the machine was off cannot be known without trusting the
clock, and does not count. A record may live too long by that much; never too short.

**Reserve.** On a full disk SQLite cannot even delete: that, too, is written to its log first. So some room is kept in a
file, given back when the disk is full, and taken again when there is plenty.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hedgerow.bus.outbox.records import PRIORITIES

_MARK: Final = struct.Struct(f"<16s{PRIORITIES}QI")
RESERVE_BYTES: Final = 8 << 20
"""As much as the write-ahead log may hold: 4 MB, and a group that came on top."""


class Mark:
    """The file that notes how far numbers were given.

    Attributes:
        epoch, numbers: what it said when it was opened: the next number of each priority; epoch "" if it said nothing.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.epoch = ""
        self.numbers: tuple[int, ...] = ()
        raw = os.pread(self._file, _MARK.size, 0)
        if len(raw) == _MARK.size and zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little"):
            epoch, *numbers, _ = _MARK.unpack(raw)
            self.epoch, self.numbers = epoch.decode("ascii", "replace"), tuple(numbers)

    def note(self, epoch: str, numbers: Sequence[int]) -> None:
        """Note the next numbers of an epoch."""
        raw = _MARK.pack(epoch.encode(), *numbers, 0)[:-4]
        os.pwrite(self._file, raw + zlib.crc32(raw).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Reserve:
    """Room on the disk, kept for when there is none.

    Args:
        path: of the file that takes it.
        size: bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._filled = False

    def fill(self) -> bool:
        """Take the room, if it is not taken and there is plenty. Returns: whether there is plenty."""
        if self._filled:
            return True
        try:
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < 2 * self._size:
                return False
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, self._size)
            finally:
                os.close(file)
        except OSError:
            return True  # some file systems cannot
        self._filled = True
        return True

    def release(self) -> None:
        """Give the room back."""
        self._filled = False
        with contextlib.suppress(OSError):
            self._path.unlink()


class Boot(NamedTuple):
    """A moment, told without a clock that anyone sets: which boot, and seconds since."""

    id: str
    seconds: float

    @classmethod
    def now(cls) -> Boot:
        """The present moment; time that the machine sleeps counts."""
        return cls(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))

    def since(self, then: Boot) -> float:
        """Seconds that have surely passed since another moment."""
        return max(0.0, self.seconds - then.seconds) if self.id == then.id else self.seconds


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
