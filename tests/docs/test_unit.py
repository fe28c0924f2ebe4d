"""The systemd unit in the documentation runs a node, as the user and with the folders that it names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hedgerow.testing import Mosquitto, processes

DOCUMENT = Path(__file__).parents[2] / "docs" / "operator" / "getting-started.md"
TIMEOUT_S = 60


class Unit:
    """The unit as systemd would run it, with its folders below a temporary one.

    Root passes all permission checks, so it runs without that right: a folder of root is then only what its mode says.
    """

    def __init__(self, text: str, folder: Path, broker: Mosquitto, node_yaml: str) -> None:
        self._values = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        environment = re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE)
        self._folder = folder
        self.state = self._here("/var/lib") / self._values["StateDirectory"]
        self.state.mkdir(parents=True)
        config = self._here("/etc/hedgerow/node.yaml")
        config.parent.mkdir(parents=True)
        config.write_text(node_yaml)
        config.parent.chmod(0o555)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(TIMEOUT_S)
        self.environment = {
            "NOTIFY_SOCKET": str(folder / "notify"),
            "HEDGEROW_BROKER__URL": broker.url,
            "HEDGEROW_METRICS__PORT": "0",
            **{name: str(self._here(value)) for name, value in environment},
        }
        self.log = (folder / "log").open("w+")

    def _here(self, path: str) -> Path:
        return self._folder / path.lstrip("/")

    def start(self) -> subprocess.Popen[str]:
        program, *words = shlex.split(self._values["ExecStart"])
        assert program == "/opt/hedgerow/bin/hedgerow"
        rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
        here = [str(self._here(word)) if word.startswith("/") else word for word in words]
        return processes.start(
            [*rights, sys.executable, "-m", "hedgerow", *here],
            cwd="/",  # systemd's default
            env=os.environ | self.environment,
            stderr=self.log,
            text=True,
        )

    def reload(self, pid: int) -> None:
        command = [word.replace("$MAINPID", str(pid)) for word in shlex.split(self._values["ExecReload"])]
        processes.run(command, check=True)

    def wait_for(self, message: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while message not in self._socket.recv(4096):
            assert time.monotonic() < deadline

    def close(self) -> None:
        self._here("/etc/hedgerow").chmod(0o755)
        self._socket.close()
        self.log.close()


@pytest.fixture
def unit(tmp_path: Path, broker: Mosquitto, blocks: Callable[[Path], list[Any]]) -> Iterator[Unit]:
    texts = {block.language: block.text for block in blocks(DOCUMENT) if block.language == "ini" or block.file}
    unit = Unit(texts["ini"], tmp_path, broker, texts["yaml"])
    yield unit
    unit.close()


def test_the_documented_unit_starts_reloads_and_stops_a_node(unit: Unit) -> None:
    node = unit.start()
    try:
        unit.wait_for(b"READY=1")
        unit.reload(node.pid)
        unit.wait_for(b"RELOADING=1")
        unit.wait_for(b"READY=1")
        node.send_signal(signal.SIGTERM)
        assert node.wait(TIMEOUT_S) == 0
    finally:
        processes.end(node)
    unit.log.seek(0)
    log = unit.log.read()
    assert '"event": "node-stopped"' in log
    assert "Traceback" not in log
    assert list(unit.state.iterdir())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line_of_the_documented_unit(
    tmp_path: Path, blocks: Callable[[Path], list[Any]]
) -> None:
    (text,) = [block.text for block in blocks(DOCUMENT) if block.language == "ini"]
    file = tmp_path / "hedgerow-node.service"
    file.write_text(text.replace("/opt/hedgerow/bin/hedgerow", "/bin/true"))

    checked = processes.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True)

    assert [line for line in checked.stderr.splitlines() if file.name in line] == []
