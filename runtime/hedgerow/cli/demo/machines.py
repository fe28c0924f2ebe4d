"""Machines of a demo: each has a folder as its disk, asks to be a node, runs, and can be copied or destroyed."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hedgerow.cli.demo.commands import run_command
from hedgerow.cli.demo.processes import DemoProcesses, Log, SiteProcesses, silent
from hedgerow.cli.demo.waiting import Waiting, all_of
from hedgerow.errors import HedgerowError

NODE = "gateway"
"""Name of each site's node."""


class Machines:
    """The machines, by name.

    Args:
        log: called with each command and its story.
    """

    def __init__(self, processes: DemoProcesses, waiting: Waiting, log: Log) -> None:
        self._processes = processes
        self._waiting = waiting
        self._log = log

    def disk(self, machine: str) -> Path:
        """Return a machine's folder."""
        return self._processes.folder / "machines" / machine

    async def operator(self, *arguments: str, quiet: bool = False) -> Any:
        """Run a command of the region's operator, and return what it prints."""
        log = silent if quiet else self._log
        return await self._waiting.in_thread(partial(run_command, self._processes.folder, log, *arguments))

    async def enrol(self, machines: Mapping[str, SiteProcesses]) -> None:
        """Let machines ask to be nodes, each of its site, and approve them by their fingerprints."""
        await all_of(*(self._enrol(machine, site) for machine, site in machines.items()))

    async def _enrol(self, machine: str, site: SiteProcesses) -> None:
        claim = f"claims/{machine}.txt"
        await self.operator("claim", "create", site.name, "--place", NODE, "--out", claim, "--why", "new machine")
        command = ("enrol", claim, "--state", f"machines/{machine}")
        self._log(f"{machine}$ hedgerow {' '.join(command)}")
        process = self._processes.begin(f"enrol-{machine}", *command)
        shown = await self._waiting.until(lambda: self._fingerprint(machine, process), bool)
        self._log(f"{machine}: fingerprint {shown}")
        await self._waiting.until(
            lambda: self.operator("node", "pending", quiet=True),
            lambda pending: any(one["fingerprint"].startswith(shown) for one in pending),
        )
        await self.operator("node", "approve", shown, "--folder", "pki", "--why", "fingerprint compared")

        async def code() -> int | None:
            return process.poll()

        if await self._waiting.until(code, lambda code: code is not None):
            raise self._failure(machine)

    async def _fingerprint(self, machine: str, process: subprocess.Popen[bytes]) -> str:
        """Return the fingerprint that a machine shows; "" as long as it does not."""
        if process.poll():
            raise self._failure(machine)
        shown = self._enrolment_log(machine).partition("; fingerprint ")[2]
        return shown.partition(".")[0] if "." in shown else ""

    def _enrolment_log(self, machine: str) -> str:
        return self._processes.log_file(f"enrol-{machine}").read_text("utf-8", errors="replace")

    def _failure(self, machine: str) -> HedgerowError:
        return HedgerowError(
            f"{machine} could not enrol:\n{self._enrolment_log(machine)[-600:]}",
            remedy=f"See {self._processes.folder / 'logs'}.",
        )

    async def start(self, *machines: str) -> None:
        """Start the nodes on these machines, and wait until they take frames."""
        await all_of(*map(self._start, machines))

    async def _start(self, machine: str) -> None:
        command = ("node", "run", f"machines/{machine}/node.yaml")
        self._log(f"{machine}$ hedgerow {' '.join(command)}")
        await self._waiting.in_thread(
            partial(self._processes.run, f"machine-{machine}", *command, until="node-started")
        )

    async def stop(self, machine: str, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the node on a machine with a signal."""
        await self._waiting.in_thread(partial(self._processes.stop, f"machine-{machine}", sig))

    def clone(self, machine: str, copy: str) -> None:
        """Copy a machine's whole disk."""
        shutil.copytree(self.disk(machine), self.disk(copy))

    def move_state(self, machine: str, target: str) -> None:
        """Move a node's state folder from one machine's disk to another's."""
        shutil.rmtree(self.disk(target) / "state")
        shutil.move(self.disk(machine) / "state", self.disk(target))

    async def refusal(self, machine: str) -> str:
        """Return why a machine's broker refuses its certificate; "" if it does not."""
        from hedgerow.bus.diagnosis import diagnose
        from hedgerow.configfile import load
        from hedgerow.node.link.options import link_options

        error = await diagnose(link_options(load(self.disk(machine) / "node.yaml").broker, ""))
        return "" if error is None else str(error)
