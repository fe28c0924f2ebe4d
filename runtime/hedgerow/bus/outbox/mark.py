"""Files and clocks beside the outbox's database: high-water mark, reserve for a full disk, boot time.

**Mark.** A database that loses the end of its log looks intact: the last transactions are just missing, and it would assign
their numbers a second time. So the next numbers are also written to a separate file after every commit. Without an fsync: it
need only survive damage to the database alone. No number is used twice even if both are lost, since each run has an epoch of
its own; then the region just is not told which ones will never come.

**Age.** Records expire by an age that grows only while the machine is known to be up, so setting the clock, by an hour or by
fifty years, expires nothing. Within one boot, the kernel's boot time shows how long the node was down. After a reboot, only
the time since then counts: how long the machine was off cannot be known without trusting the clock. A record may live
longer by that time, never shorter.

**Reserve.** On a full disk SQLite cannot even delete: deletions, too, are first written to its log. So a file reserves some
space; it is removed when the disk is full and created again once there is space.
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
"""Size of a full write-ahead log: 4 MB, and one more group."""


class Mark:
    """File with the next number of each priority, as sent, in the epoch that a run began last.

    Attributes:
        epoch, numbers: its content when it was opened; epoch "" if it was empty or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.epoch = ""
        self.numbers: tuple[int, ...] = ()
        raw = os.pread(self._file, _MARK.size, 0)
        if len(raw) == _MARK.size and zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little"):
            epoch, *numbers, _ = _MARK.unpack(raw)
            self.epoch, self.numbers = epoch.decode("ascii", "replace"), tuple(numbers)

    def write(self, epoch: str, numbers: Sequence[int]) -> None:
        """Write the next numbers of an epoch."""
        raw = _MARK.pack(epoch.encode(), *numbers, 0)[:-4]
        os.pwrite(self._file, raw + zlib.crc32(raw).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Reserve:
    """Disk space reserved for a full disk.

    Args:
        path: file that occupies it.
        size: bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._filled = False

    def fill(self) -> bool:
        """Reserve the space if twice as much is free. Returns: False if the disk has too little."""
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
            return True  # not supported by every file system
        self._filled = True
        return True

    def release(self) -> None:
        """Free the reserved space."""
        self._filled = False
        with contextlib.suppress(OSError):
            self._path.unlink()


class Boot(NamedTuple):
    """A point in time independent of the wall clock: boot id, and seconds since that boot."""

    id: str
    seconds: float

    @classmethod
    def now(cls) -> Boot:
        """Return the current time; suspended time counts."""
        return cls(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))

    def since(self, then: Boot) -> float:
        """Return the seconds that have certainly passed since an earlier point."""
        return max(0.0, self.seconds - then.seconds) if self.id == then.id else self.seconds


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
