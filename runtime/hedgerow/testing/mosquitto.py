"""Runs a real Mosquitto on its own port, for tests, benchmarks and demos.

    with Mosquitto() as broker:
        ...  # broker.url

Rules:
- The broker listens on 127.0.0.1 only, has its own folder, and dies with its parent.
- Its limits are those of a properly configured broker: queues are not silently truncated at 1000 messages.
"""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hedgerow.errors import HedgerowError
from hedgerow.testing.ports import held_port
from hedgerow.testing.processes import end, start

_START_S: Final = 60.0
_STOP_S: Final = 60.0
_AGAIN_S: Final = 1.0
_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/local/opt/mosquitto/sbin")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """TLS files of the broker, PEM.

    Attributes:
        ca_file: CA of the clients' certificates.
        cert_file: the broker's certificate.
        key_file: the broker's private key.
        require_certificate: refuse clients without a certificate of the CA.
        crl_file: revocation lists, one for each CA.
        identity_as_username: use the common name of a client's certificate as its user name.
    """

    ca_file: Path
    cert_file: Path
    key_file: Path
    require_certificate: bool = False
    crl_file: Path | None = None
    identity_as_username: bool = False


class Mosquitto:
    """A broker process. `with` starts and stops it.

    Args:
        port: port to listen on; 0 reserves a free one until `close`, including restarts and while stopped.
        folder: folder for configuration, log and persistence; by default a temporary folder, removed by `close`.
        config: additional lines of mosquitto.conf; another listener may follow the first one.
        tls: certificates; the listener then accepts TLS only.
        unix_socket: path of a Unix socket to listen on in addition.
    Attributes:
        port: the port it listens on, once started.
        folder: folder with its files.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        folder: Path | None = None,
        config: Sequence[str] = (),
        tls: TlsFiles | None = None,
        unix_socket: Path | None = None,
    ) -> None:
        self.port = port
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mosquitto-"))
        self._stack = ExitStack()
        self._owns_folder = folder is None
        self._config = tuple(config)
        self._tls = tls
        self._unix_socket = unix_socket
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL for clients: mqtt://127.0.0.1:PORT, or mqtts://localhost:PORT."""
        return f"mqtts://localhost:{self.port}" if self._tls else f"mqtt://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def log(self) -> str:
        """The broker's log since the first start."""
        path = self.folder / "mosquitto.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the broker and wait until it listens.

        Raises: HedgerowError: Mosquitto is not installed, or does not start; the message ends with its log.
        """
        if self.running:
            return
        binary = find_mosquitto()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.port:
            self.port = self._stack.enter_context(held_port())
        if not self._start_once(binary):
            raise HedgerowError(
                f"Mosquitto did not start on port {self.port}:\n{self.log[-2000:]}",
                remedy=f"Check {self.folder / 'mosquitto.conf'}, or use another port.",
            )

    def stop(self) -> None:
        """Stop the broker (SIGTERM); it saves sessions and queued messages."""
        self._terminate(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the broker (SIGKILL); unsaved data is lost."""
        self._terminate(signal.SIGKILL)

    def reload(self) -> None:
        """Make it reload certificates and access lists (SIGHUP)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        """Stop the broker and start it again on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the broker and remove its temporary folder."""
        self.kill() if self._owns_folder else self.stop()
        atexit.unregister(self.close)
        self._stack.close()
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_once(self, binary: str) -> bool:
        conf = self.folder / "mosquitto.conf"
        conf.write_text("\n".join([*self._lines(), ""]))
        with (self.folder / "mosquitto.log").open("ab") as log:
            log_start = log.tell()
            self._process = start(
                [binary, "-c", str(conf)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal must not end it before its clients
            )
        atexit.register(self.close)
        return self._wait_until_running(self._process, log_start)

    def _wait_until_running(self, process: subprocess.Popen[bytes], log_start: int) -> bool:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            # Unlike a connection, the log shows that it is our broker and not another on the same port.
            if " running\n" in (self.folder / "mosquitto.log").read_text(errors="replace")[log_start:]:
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.005)
        self.kill()
        return False

    def _lines(self) -> list[str]:
        lines = [
            f"user {getpass.getuser()}",  # as root it would switch to a user without write access to the folder
            "persistence true",
            f"persistence_location {self.folder}/",
            "autosave_interval 0",
            "max_inflight_messages 1000",
            "max_queued_messages 1000000",  # 0, no limit, makes it disconnect clients that publish to forbidden topics
            "set_tcp_nodelay true",
            "log_dest stderr",
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
        ]
        if self._tls:
            lines += [f"cafile {self._tls.ca_file}", f"certfile {self._tls.cert_file}", f"keyfile {self._tls.key_file}"]
            lines += [f"require_certificate {str(self._tls.require_certificate).lower()}"]
            lines += [f"crlfile {self._tls.crl_file}"] if self._tls.crl_file else []
            lines += ["use_identity_as_username true"] if self._tls.identity_as_username else []
        if self._unix_socket:
            lines += [f"listener 0 {self._unix_socket}"]
        return [*lines, *self._config]

    def _terminate(self, sig: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if sig is signal.SIGTERM:
            end_in_order(process)
        else:
            end(process, _STOP_S, sig)


def end_in_order(process: subprocess.Popen[Any]) -> None:
    """Stop a Mosquitto process with SIGTERM; kill it after a time limit.

    Mosquitto forgets a SIGTERM that comes just after it has logged that it runs, before its loop begins. So it gets another.
    """
    deadline = time.monotonic() + _STOP_S
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_AGAIN_S)
    process.kill()
    process.wait()


def find_mosquitto() -> str:
    """Return the path of the mosquitto binary.

    Raises: HedgerowError: Mosquitto is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *_FOLDERS])
    if binary := shutil.which("mosquitto", path=path):
        return binary
    raise HedgerowError(
        "Mosquitto is not installed", remedy="Install it: `apt-get install mosquitto` or `brew install mosquitto`."
    )
