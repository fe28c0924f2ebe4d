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


def test_the_list_of_commands_imports_nothing_heavy() -> None:
    """`hedgerow --help` is quick: it imports nothing that only a verb needs."""
    done = processes.run(
        [sys.executable, "-X", "importtime", "-m", "hedgerow", "--help"], capture_output=True, text=True, check=True
    )

    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & set(HEAVY)


def test_help_lists_every_verb_and_exit_code(hedgerow) -> None:
    result = hedgerow("--help")

    assert result.code == 0
    for name, verb in _HEDGEROW.verbs.items():
        assert f"{name} " in result.out
        assert verb.summary in result.out
    for code, meaning in EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in result.out


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_begins_with_examples(hedgerow, verb: tuple[str, ...]) -> None:
    """Each example is a command on a line of its own, ready to be copied."""
    result = hedgerow(*verb, "--help")

    assert result.code == 0
    assert result.out.index("Examples:") < result.out.index("Options:")
    assert f"hedgerow {' '.join(verb)}" in result.out[result.out.index("Examples:") : result.out.index("Options:")]


def test_version(hedgerow) -> None:
    assert hedgerow("--version").out == f"hedgerow {package.__version__}\n"


def test_the_nearest_verb_is_suggested_for_a_mistyped_one(hedgerow) -> None:
    result = hedgerow("pubish", "x.jpg")

    assert result.code == 2
    assert "No such command 'pubish'. Did you mean 'publish'?" in result.err


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


def test_an_error_is_two_lines_on_stderr_without_a_traceback(start) -> None:
    """What is wrong, and the remedy. A script gets an exit code and an empty stdout."""
    process = start("publish", __file__, "--topic", "x", "--broker", "mqtt://127.0.0.1:1")
    out, err = process.communicate(timeout=60)

    assert process.returncode == 3
    assert out == ""
    assert err == (
        "error: mqtt://127.0.0.1:1 refused the connection: nothing listens there\n"
        "  → Start the broker there, or check the port. Name another with --broker mqtt://HOST:PORT.\n"
    )


@pytest.mark.parametrize("before", [(), ("sh", "-c", "trap '' INT; exec \"$@\"", "-")], ids=["terminal", "script"])
def test_ctrl_c_exits_with_130_without_a_traceback(
    start: Callable[..., subprocess.Popen[str]], broker: Mosquitto, topic_prefix: str, before: tuple[str, ...]
) -> None:
    """The summary is still printed. The same for a script's background job, which starts with SIGINT ignored."""
    arguments = ("-t", topic_prefix, "--loop", "forever", "--rate", "20", "--broker", broker.url)
    process = start("publish", __file__, *arguments, before=before)
    _wait_for(lambda: _receives(broker, topic_prefix))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert out.startswith("Sent ")
    assert "Traceback" not in err


# Runs the installed command, and interrupts it when it imports the module in the first argument.
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
    """At first it is killed by the signal, which a shell reports as 130; once typer runs, it exits with 130."""
    done = processes.run(
        [sys.executable, "-c", INTERRUPTED, module, "config", "schema"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def _receives(broker: Mosquitto, topic: str) -> bool:
    """Return whether a message arrives on a topic within a second."""
    command = ["mosquitto_sub", "-p", str(broker.port), "-t", topic, "-C", "1", "-W", "1"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m hedgerow config schema | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)

    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def test_completion_suggests_verbs() -> None:
    """As bash requests it after `hedgerow pl<TAB>`."""
    environment = {"_HEDGEROW_COMPLETE": "complete_bash", "COMP_WORDS": "hedgerow pl", "COMP_CWORD": "1", "PATH": ""}
    done = processes.run(
        [sys.executable, "-m", "hedgerow"], env=environment, capture_output=True, text=True, check=False
    )

    assert done.stdout.split() == ["plugin"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (2_500_000, "2.5 MB"), (7e12, "7000 GB")],
)
def test_sizes_are_printed_in_the_unit_that_fits(count: float, text: str) -> None:
    assert size(count) == text
