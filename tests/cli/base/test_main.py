"""The command line as a whole: help, exit codes, errors, signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

import hedgerow as package
from hedgerow.cli.base.console import EXIT_CODES, exit_code, size
from hedgerow.cli.base.verbs import Group
from hedgerow.cli.main import _HEDGEROW
from hedgerow.errors import BusError, ConfigError, FrameError, ModelNotFound
from hedgerow.testing import Mosquitto, processes

HEAVY = ("numpy", "pydantic", "rich", "aiomqtt", "paho", "onnxruntime", "openvino", "ruamel")


def _verbs(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, verb in group.verbs.items():
        yield (*path, name)
        if isinstance(verb, Group):
            yield from _verbs(verb, (*path, name))


VERBS = list(_verbs(_HEDGEROW))


def test_the_overview_imports_nothing_heavy() -> None:
    """`hedgerow --help` is quick because it waits for nothing that only a verb needs."""
    shown = processes.run(
        [sys.executable, "-X", "importtime", "-m", "hedgerow", "--help"], capture_output=True, text=True, check=True
    )

    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & set(HEAVY)


def test_the_overview_names_every_verb_and_exit_code(hedgerow) -> None:
    said = hedgerow("--help")

    assert said.code == 0
    for name, verb in _HEDGEROW.verbs.items():
        assert f"{name} " in said.out
        assert verb.summary in said.out
    for code, meaning in EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in said.out


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_begins_with_examples(hedgerow, verb: tuple[str, ...]) -> None:
    """Each example stands on a line of its own and is a command that can be copied."""
    said = hedgerow(*verb, "--help")

    assert said.code == 0
    assert said.out.index("Examples:") < said.out.index("Options:")
    assert f"hedgerow {' '.join(verb)}" in said.out[said.out.index("Examples:") : said.out.index("Options:")]


def test_version(hedgerow) -> None:
    assert hedgerow("--version").out == f"hedgerow {package.__version__}\n"


def test_a_mistyped_verb_is_met_with_the_nearest_one(hedgerow) -> None:
    said = hedgerow("pubish", "x.jpg")

    assert said.code == 2
    assert "No such command 'pubish'. Did you mean 'publish'?" in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x", remedy="y"), 2),
        (BusError("x", remedy="y"), 3),
        (ModelNotFound("x", remedy="y"), 1),
        (FrameError("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error, code: int) -> None:
    assert exit_code(error) == code
    assert code in EXIT_CODES


def test_an_error_is_two_lines_on_stderr_and_no_traceback(start) -> None:
    """A person gets what is wrong and what to do; a script gets an exit code and a clean stdout."""
    process = start("publish", __file__, "--topic", "x", "--broker", "mqtt://127.0.0.1:1")
    out, err = process.communicate(timeout=60)

    assert process.returncode == 3
    assert out == ""
    assert err == (
        "error: The broker at mqtt://127.0.0.1:1 cannot be reached: [Errno 111] Connection refused\n"
        "  → Check that it is running, or name another with --broker mqtt://HOST:PORT. `hedgerow doctor` tells more.\n"
    )


@pytest.mark.parametrize("before", [(), ("sh", "-c", "trap '' INT; exec \"$@\"", "-")], ids=["terminal", "script"])
def test_ctrl_c_ends_with_130_and_no_traceback(
    start: Callable[..., subprocess.Popen[str]], broker: Mosquitto, topic_prefix: str, before: tuple[str, ...]
) -> None:
    """What had been sent until then is still told; in the background of a script as well, which has it ignore Ctrl-C."""
    arguments = ("-t", topic_prefix, "--loop", "forever", "--rate", "20", "--broker", broker.url)
    process = start("publish", __file__, *arguments, before=before)
    _wait_for(lambda: _sent(broker, topic_prefix))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert out.startswith("Sent ")
    assert "Traceback" not in err


# The installed command, interrupted when it imports the module named first.
INTERRUPTED = """
import os, signal, sys
from importlib.metadata import entry_points

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

(command,) = entry_points(group="console_scripts", name="hedgerow")
run, module = command.load(), sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
sys.exit(run())
"""


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("hedgerow.cli.main", -signal.SIGINT),
        ("typer", -signal.SIGINT),
        ("hedgerow.errors", -signal.SIGINT),
        ("hedgerow.cli.node.config", 130),
        ("hedgerow.configfile", 130),
    ],
)
def test_ctrl_c_while_the_command_loads_ends_it_without_a_traceback(module: str, code: int) -> None:
    """Killed by the signal, which a shell reports as 130, or with exit code 130 once verbs run."""
    done = processes.run(
        [sys.executable, "-c", INTERRUPTED, module, "config", "schema"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def _sent(broker: Mosquitto, topic: str) -> bool:
    """Whether anything comes on a topic, within a second."""
    command = ["mosquitto_sub", "-p", str(broker.port), "-t", topic, "-C", "1", "-W", "1"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f"{sys.executable} -m hedgerow config schema | head -1"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)

    assert shown.stdout == "{\n"
    assert "Traceback" not in shown.stderr


def test_completion_knows_the_verbs() -> None:
    """As bash asks for it, after `hedgerow pl<TAB>`."""
    environment = {"_HEDGEROW_COMPLETE": "complete_bash", "COMP_WORDS": "hedgerow pl", "COMP_CWORD": "1", "PATH": ""}
    shown = processes.run(
        [sys.executable, "-m", "hedgerow"], env=environment, capture_output=True, text=True, check=False
    )

    assert shown.stdout.split() == ["plugin"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (2_500_000, "2.5 MB"), (7e12, "7000 GB")],
)
def test_bytes_are_said_in_the_unit_that_fits(count: float, text: str) -> None:
    assert size(count) == text
