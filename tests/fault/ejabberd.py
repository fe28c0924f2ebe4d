"""Runs ejabberd (`mod_mqtt`), an MQTT 5 broker other than Mosquitto, which also supports clusters.

It is not a dependency: `apt-get install ejabberd` installs it, with 44 packages for Erlang. Users are `NAME@localhost`
with any password, since the tests are about the protocol.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hedgerow.testing import processes

_HOMES = sorted(Path("/usr/lib").glob("*/ejabberd-*/ebin/mod_mqtt.beam"))
TIMEOUT_S = 60

needs_ejabberd = pytest.mark.skipif(
    not _HOMES or shutil.which("erl") is None, reason="ejabberd is not installed: `apt-get install ejabberd`"
)


class Ejabberd:
    """An ejabberd process; runs inside `with`.

    Args:
        folder: folder for its files.
        port: port to listen on, on 127.0.0.1.
        tls: folder with tls.crt, tls.key and trust.crt; clients must then present a certificate.
    """

    def __init__(self, folder: Path, port: int, tls: Path | None = None) -> None:
        self._folder = folder
        self.port = port
        listener = f"port: {port}, ip: 127.0.0.1, module: mod_mqtt, backlog: 1000"
        lines = ["hosts: [localhost]", "auth_method: [anonymous]", "anonymous_protocol: login_anon"]
        if tls is not None:
            (folder / "tls.pem").write_bytes((tls / "tls.crt").read_bytes() + (tls / "tls.key").read_bytes())
            (folder / "tls.pem").chmod(0o600)
            listener += ", tls: true, tls_verify: true"
            lines += [f"certfiles: ['{folder / 'tls.pem'}']", f"ca_file: '{tls / 'trust.crt'}'"]
        lines += [f"listen: [{{{listener}}}]", "allow_multiple_connections: true"]
        lines += [
            "shaper_rules: {}",
            "access_rules: {}",
            "modules: {mod_mqtt: {max_queue: 100000, max_topic_depth: 32}}",
        ]
        (folder / "ejabberd.yml").write_text("\n".join([*lines, ""]))

    @property
    def log(self) -> str:
        return (self._folder / "out").read_text("utf-8", errors="replace")

    def __enter__(self) -> Ejabberd:
        environment = os.environ | {
            "EJABBERD_CONFIG_PATH": str(self._folder / "ejabberd.yml"),
            "EJABBERD_LOG_PATH": str(self._folder / "log"),
            "ERL_LIBS": str(_HOMES[-1].parents[2]),
            "HOME": str(self._folder),
        }
        with (self._folder / "out").open("wb") as out:
            self._process = processes.start(
                ["erl", "-noinput", "-mnesia", "dir", f'"{self._folder / "mnesia"}"', "-s", "ejabberd"],
                cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        deadline = time.monotonic() + TIMEOUT_S
        while f":{self.port} for mod_mqtt" not in self.log:
            assert self._process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
