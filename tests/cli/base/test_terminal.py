"""Nothing that a sensor sends controls the terminal of an operator: all output leaves by one way, which shows controls."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import structlog
from rich.console import Console
from tests.cli.conftest import Hedgerow
from tests.cli.frames.test_explain import DEAD_LETTER, RESULT

import hedgerow as package
from hedgerow.cli.base.console import echo, print_error, print_json, print_json_line, rendered, style
from hedgerow.cli.base.tables import ansi_text, facts, table
from hedgerow.cli.frames import command, watch
from hedgerow.cli.frames.message_board import Board, parse_message
from hedgerow.cli.region import rollout_progress
from hedgerow.errors import FrameError
from hedgerow.telemetry import logs
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import JSON, Health, PipelineHealth, Reply, encode_json

ATTACKS = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "fills the clipboard": "\x1b]52;c;ZXZpbA==\x1b\\",
    "hides by color": "\x1b[8mhidden\x1b[0m",
    "C1 introducer": "\x9b2J",
    "overwrites the line": "ok\rfine",
    "erases by backspace": "bad\b\b\bgood",
    "forges a line": "x\n2026-11-25 21:31:30  refused nothing",
    "turns the text": "\u202egnp.exe\u202c",
    "isolates": "\u2066a\u2069",
    "line separator": "a\u2028b",
    "a mark of ours, guessed": "\ufdd0deadbeef31mred",
}
OUTPUT = Path("cli/base/console.py"), Path("telemetry/logs.py")
EXEMPT = {
    "region/config.py": "a warning about the operator's own file",
    "testing": "tools for tests",
    "backends/memory.py": "a process of its own, read by its parent",
}
NODE = Address("plant", "hall", "press")


def assert_harmless(shown: str, *, lines: int | None = None) -> None:
    """Assert that a terminal acts upon nothing but line feeds."""
    assert all(line.isprintable() for line in shown.split("\n")), ascii(shown)
    if lines is not None:
        assert shown.count("\n") == lines, ascii(shown)


def hostile(body: object, attack: str) -> object:
    """Return a document with the attack at the end of each text, and in a key."""
    if isinstance(body, dict):
        return {key: hostile(value, attack) for key, value in body.items()} | {f"key{attack}": attack}
    if isinstance(body, list):
        return [hostile(each, attack) for each in body]
    return body + attack if isinstance(body, str) and not body.startswith("hedgerow.") else body


@pytest.fixture(params=ATTACKS.values(), ids=ATTACKS)
def attack(request: pytest.FixtureRequest) -> str:
    text = request.param
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("body", [RESULT, orjson.loads(DEAD_LETTER)], ids=["result", "dead letter"])
def test_explain(hedgerow: Hedgerow, tmp_path: Path, body: object, attack: str) -> None:
    file = tmp_path / "payload"
    file.write_bytes(encode_json(hostile(body, attack)))

    shown = hedgerow("explain", file)
    as_json = hedgerow("explain", file, "--json")

    assert_harmless(shown.out)
    assert "2026-11-25" not in [line.split(" ")[0] for line in shown.out.splitlines()]
    assert_harmless(as_json.out)
    assert as_json.json == orjson.loads(file.read_bytes()), "JSON stays exact"


def test_watch(capsys: pytest.CaptureFixture[str], attack: str) -> None:
    board = Board()
    for topic in (NODE.topic(Channel.RESULT, "p"), NODE.topic(Channel.DEAD, "p"), NODE.topic(Channel.EVENT, "e"), "x"):
        body = encode_json(hostile({**RESULT, "reason": "r", "message": "m", "detail": {"a": "b"}}, attack))
        message = parse_message(f"{topic}{attack if topic == 'x' else ''}", body, JSON, [("subject", attack)], 1.0)
        assert message is not None
        board.add(message)
        watch._print_line(message)
        watch._print_json(message)
    watch.print_outage(attack)
    health = PipelineHealth(state="running", dropped={attack: 1})
    board.nodes[str(NODE)] = Health(
        node="n", session="s", at=1.0, uptime_s=1.0, state="failing", reasons=[attack], pipelines={attack: health}
    )
    screen = io.StringIO()
    lines = watch.board_lines(board, 200, 50, 2.0, outage=attack)
    Console(file=screen, width=200, color_system=None).print(ansi_text(lines))

    printed = capsys.readouterr()
    assert_harmless(printed.out, lines=8)
    assert_harmless(printed.err, lines=1)
    assert_harmless(screen.getvalue(), lines=len(lines))


def test_broker_refusals(hedgerow: Hedgerow, attack: str) -> None:
    first = "".join(attack.split("\r")).split("\n")[0]  # Mosquitto takes neither in a client id
    log = (
        f"1795642290: New client connected from 127.0.0.1:1 as cam{first} (p5, c1, k60, u'hall/a{first}').\n"
        f"1795642290: Denied PUBLISH from cam{first} (d0, q1, r0, m1, 'plant/{first}', ... (2 bytes))\n"
    )
    shown = hedgerow("broker", "refusals", "-", input=log)

    assert "1 refusal" in shown.out
    assert_harmless(shown.out)


def test_replies_of_nodes(capsys: pytest.CaptureFixture[str], attack: str) -> None:
    error = {"code": attack, "message": attack, "remedy": attack}
    for reply in (
        {"ok": False, "error": error},
        {"ok": True, "value": attack},
        {"ok": True, "value": {attack: attack}},
    ):
        command._print(Reply.model_validate({"command": "c", "node": attack, **reply}), many=True)

    printed = capsys.readouterr()
    assert_harmless(printed.out, lines=3)
    assert_harmless(printed.err, lines=2)


def test_tables_errors_and_rollouts(capsys: pytest.CaptureFixture[str], attack: str) -> None:
    """All of `nodes`, `region status`, `results`, `audit`, `doctor` and `pki show` are tables and facts."""
    for line in (*table(("A", ">B"), [(attack, attack)], None), *facts([(attack, attack)], None)):
        echo(line)
    print_error(FrameError(attack, remedy=attack))
    progress = {"rollout": attack, "phase": attack, "waves": [], "states": {attack: 1}, "waits_for": attack}
    echo(rollout_progress._outage(attack))
    echo(rollout_progress.visible(rollout_progress.summary(progress)))

    printed = capsys.readouterr()
    assert_harmless(printed.out, lines=5)
    assert_harmless(printed.err)


def test_a_log_for_people(capsys: pytest.CaptureFixture[str], attack: str) -> None:
    try:
        logs.configure("debug", "console")
        log = structlog.get_logger("test")
        log.warning(attack, topic=attack, detail={attack: [attack]}, **{f"k{attack}": 1})
        try:
            raise ValueError(attack)
        except ValueError:
            log.exception("failed", error=attack)
    finally:
        structlog.reset_defaults()

    assert_harmless(capsys.readouterr().err)


def test_json_is_exact_and_harmless(capsys: pytest.CaptureFixture[str], attack: str) -> None:
    print_json({"a": attack, f"k{attack}": [attack]})
    print_json_line([attack])

    first, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert_harmless(f"{first}{line}")
    assert orjson.loads(first) == {"a": attack, f"k{attack}": [attack]}
    assert orjson.loads(line) == [attack]


def test_only_style_colors_a_text() -> None:
    assert rendered(f"a {style('b', fg='red', bold=True)} c") == "a \x1b[31m\x1b[1mb\x1b[0m c"
    assert rendered(style("\x1b[2J", dim=True)) == "\x1b[2m\\x1b[2J\x1b[0m"
    assert rendered(style(style("x", fg="green"))) == "\x1b[32mx\x1b[0m\x1b[0m"
    assert rendered("a\tb\n") == "a\tb\n"


WRITERS = {"typer.echo", "typer.secho", "click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"}
WRITERS |= {
    "sys.stdout.buffer.write",
    "sys.stderr.buffer.write",
    "os.write",
    "rich.print",
    "typer.style",
    "click.style",
}


def calls(source: str) -> Iterator[tuple[str, int]]:
    """Yield dotted names that are used, and their lines; also of writers that are passed on, not called."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            yield ast.unparse(node.func if isinstance(node, ast.Call) else node), node.lineno


def test_nothing_else_writes_to_a_terminal() -> None:
    root = Path(package.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if inside in OUTPUT or any(str(inside).startswith(exempt) for exempt in EXEMPT):
            continue
        found += [f"{inside}:{line}: {name}" for name, line in calls(path.read_text()) if name in WRITERS]

    assert not found, "Use `echo`, `style` and `print_json` of hedgerow.cli.base.console, or a logger"
    assert {name for name, _ in calls("print(1); log = typer.echo; sys.stdout.write(2)")} & WRITERS == {
        "print", "typer.echo", "sys.stdout.write",
    }  # fmt: skip
