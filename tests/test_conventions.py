"""What makes tests fail by luck is not written: each rule reads the source, and is tried on a sample that it refuses.

Files that are exempt are listed with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("tests", "plugins/*/tests", "benchmarks", "runtime/hedgerow/testing", "runtime/hedgerow/cli")
FILES = sorted(
    path for place in PLACES for folder in ROOT.glob(place) for path in folder.rglob("*.py") if path != Path(__file__)
)

Rule = Callable[[ast.AST, str], bool]


def called(node: ast.AST) -> str:
    """The name of what is called, with its module; empty for what is no call."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def a_port_that_is_not_held(node: ast.AST, line: str) -> bool:
    """Bound to learn a free port: `hedgerow.testing.ports` holds one."""
    if isinstance(node, ast.arg):
        return node.arg.startswith("unused_tcp_port")
    return called(node).endswith(".bind") and re.search(r"\(\(.*, 0\)\)$", ast.unparse(node)) is not None


def a_port_by_number(node: ast.AST, line: str) -> bool:
    """An address of this machine with a port that another run may have. One below 1024 stands for nobody."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.search(r"(127\.0\.0\.1|localhost|\[::1\]):\d{4,5}\b|\blistener \d{4,5}\b", node.value) is not None
    number = node.value if isinstance(node, ast.keyword) and (node.arg or "").endswith("port") else None
    return isinstance(number, ast.Constant) and isinstance(number.value, int) and number.value >= 1024


def a_sleep_for_luck(node: ast.AST, line: str) -> bool:
    """A guessed time. A `while` that waits for something may sleep; what else may says why in a comment on its line."""
    if not called(node).endswith("sleep") or "#" in line:
        return False
    assert isinstance(node, ast.Call)
    return isinstance(node.args[0], ast.Constant) and node.args[0].value != 0


def a_process_that_may_outlive_its_test(node: ast.AST, line: str) -> bool:
    """`hedgerow.testing.processes` starts those that end with whoever started them."""
    name = called(node)
    if re.fullmatch(r"subprocess\.(run|call|check_call|check_output)", name):
        return "sys.executable" in ast.unparse(node)
    return (
        re.search(
            r"(^|\.)(Popen|create_subprocess_\w+|fork|forkpty|spawn[lv]\w*|posix_spawnp?|multiprocessing\.\w+)$", name
        )
        is not None
    )


RULES: tuple[Rule, ...] = (
    a_port_that_is_not_held,
    a_port_by_number,
    a_sleep_for_luck,
    a_process_that_may_outlive_its_test,
)
EXEMPT: dict[Rule, dict[str, str]] = {
    a_port_that_is_not_held: {
        "runtime/hedgerow/testing/ports.py": "does it for all others",
    },
    a_port_by_number: {
        "runtime/hedgerow/cli/main.py": "examples in help",
        "tests/bus/test_client.py": "addresses that are refused before anything connects",
        "tests/cli/diagnose/test_doctor.py": "addresses that are read, and not connected to",
        "tests/docs/test_broker.py": "what is replaced in a file",
        "tests/topology/test_deploy.py": "what is rendered for other machines",
        "tests/topology/test_files.py": "what is rendered for other machines",
        "tests/topology/test_refusals.py": "lines of a broker's log",
    },
    a_process_that_may_outlive_its_test: {
        "runtime/hedgerow/testing/processes.py": "does it for all others",
        "benchmarks/peers/adapter.py": "runs where Hedgerow is not installed",
    },
}
"""Files where a rule does not hold, and why."""


def broken(source: str) -> Iterator[tuple[int, Rule]]:
    """Where a source breaks a rule: line, and which."""
    lines = source.splitlines()
    parsed = ast.parse(source)
    waiting = {inner for outer in ast.walk(parsed) if isinstance(outer, ast.While) for inner in ast.walk(outer)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call | ast.Constant | ast.keyword | ast.arg):
            for rule in RULES:
                if rule(node, lines[node.lineno - 1]) and not (rule is a_sleep_for_luck and node in waiting):
                    yield node.lineno, rule


def test_no_rule_is_broken() -> None:
    found = []
    for path in FILES:
        name = str(path.relative_to(ROOT))
        for line, rule in broken(path.read_text("utf-8")):
            if name not in EXEMPT.get(rule, {}):
                found.append(f"{name}:{line}: {rule.__name__}. {rule.__doc__}")

    assert not found, "\n".join(found)


def test_what_is_exempt_has_to_be() -> None:
    for rule, names in EXEMPT.items():
        for name in names:
            assert rule in [which for _, which in broken((ROOT / name).read_text("utf-8"))], name


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('probe.bind(("127.0.0.1", 0))', a_port_that_is_not_held),
        ('sock.bind(("", 0)); port = sock.getsockname()[1]', a_port_that_is_not_held),
        ("def test(unused_tcp_port): pass", a_port_that_is_not_held),
        ('url = "mqtt://127.0.0.1:1883"', a_port_by_number),
        ('url = f"mqtts://localhost:8883/{x}"', a_port_by_number),
        ('config = ["listener 1884"]', a_port_by_number),
        ("Mosquitto(port=18830)", a_port_by_number),
        ("time.sleep(0.5)", a_sleep_for_luck),
        ("async def test():\n    await asyncio.sleep(1)", a_sleep_for_luck),
        ("for each in range(3):\n    time.sleep(0.1)", a_sleep_for_luck),
        ('subprocess.Popen(["mosquitto"])', a_process_that_may_outlive_its_test),
        (
            'async def test():\n    await asyncio.create_subprocess_exec("mosquitto")',
            a_process_that_may_outlive_its_test,
        ),
        ('subprocess.run([sys.executable, "-m", "hedgerow"])', a_process_that_may_outlive_its_test),
        ("os.fork()", a_process_that_may_outlive_its_test),
    ],
)
def test_a_sample_is_refused(source: str, rule: Rule) -> None:
    assert [which for _, which in broken(source)] == [rule]


@pytest.mark.parametrize(
    "source",
    [
        'server = socket.create_server(("127.0.0.1", 0))',
        'url = f"mqtt://127.0.0.1:{port}"',
        'url = "mqtt://127.0.0.1:1"',
        "while not there():\n    time.sleep(0.01)",
        "async def test():\n    await asyncio.sleep(0)",
        "time.sleep(2.5)  # a broker gives up after 1.5 times the keep-alive",
        "time.sleep(seconds)",
        'processes.start(["mosquitto"])',
        'subprocess.run(["mosquitto_passwd"])',
    ],
)
def test_and_what_is_right_is_not(source: str) -> None:
    assert list(broken(source)) == []
