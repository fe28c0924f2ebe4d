"""Rules against flaky tests and lost errors, checked in the source code; each rule has samples that it must refuse.

Exempt files are listed with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("tests", "plugins/*/tests", "benchmarks", "runtime/hedgerow/testing", "runtime/hedgerow/cli")
FILES = sorted(
    path for place in PLACES for folder in ROOT.glob(place) for path in folder.rglob("*.py") if path != Path(__file__)
)

RUNTIME = sorted((ROOT / "runtime" / "hedgerow").rglob("*.py"))

Rule = Callable[[ast.AST, str], bool]


@lru_cache(maxsize=1)  # each rule asks for it
def callee(node: ast.AST) -> str:
    """Return the qualified name of the called function; "" if the node is not a call."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def port_not_held(node: ast.AST, line: str) -> bool:
    """Binds a port to find a free one; use `hedgerow.testing.ports.held_port`."""
    if isinstance(node, ast.arg):
        return node.arg.startswith("unused_tcp_port")
    return callee(node).endswith(".bind") and re.search(r"\(\(.*, 0\)\)$", ast.unparse(node)) is not None


def port_by_number(node: ast.AST, line: str) -> bool:
    """Uses a fixed local port, which another run may use. Below 1024 it means that nothing listens."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.search(r"(127\.0\.0\.1|localhost|\[::1\]):\d{4,5}\b|\blistener \d{4,5}\b", node.value) is not None
    number = node.value if isinstance(node, ast.keyword) and (node.arg or "").endswith("port") else None
    return isinstance(number, ast.Constant) and isinstance(number.value, int) and number.value >= 1024


def sleep_without_condition(node: ast.AST, line: str) -> bool:
    """Sleeps for a guessed time. Use a `while` that waits for a condition, or give the reason in a comment."""
    if not callee(node).endswith("sleep") or "#" in line:
        return False
    assert isinstance(node, ast.Call)
    return isinstance(node.args[0], ast.Constant) and node.args[0].value != 0


def process_may_outlive_test(node: ast.AST, line: str) -> bool:
    """Starts a process that may outlive the test; use `hedgerow.testing.processes`."""
    name = callee(node)
    if re.fullmatch(r"subprocess\.(run|call|check_call|check_output)", name):
        return "sys.executable" in ast.unparse(node)
    return (
        re.search(
            r"(^|\.)(Popen|create_subprocess_\w+|fork|forkpty|spawn[lv]\w*|posix_spawnp?|multiprocessing\.\w+)$", name
        )
        is not None
    )


def may_end_unseen(node: ast.AST, line: str) -> bool:
    """Starts a task or a thread whose failure may be lost; use `hedgerow.tasks`."""
    if isinstance(node, ast.ClassDef):
        return any(re.search(r"(^|\.)Thread$", ast.unparse(base)) for base in node.bases)
    return (
        re.search(r"(^|\.)(create_task|ensure_future|TaskGroup|Thread|Timer|start_new_thread)$", callee(node))
        is not None
    )


RULES: tuple[Rule, ...] = (
    port_not_held,
    port_by_number,
    sleep_without_condition,
    process_may_outlive_test,
)
RUNTIME_RULES: tuple[Rule, ...] = (may_end_unseen,)
EXEMPT: dict[Rule, dict[str, str]] = {
    port_not_held: {
        "runtime/hedgerow/testing/ports.py": "implements the rule",
    },
    port_by_number: {
        "runtime/hedgerow/cli/main.py": "examples in help",
        "tests/bus/test_client.py": "addresses that are refused before connecting",
        "tests/cli/diagnose/test_doctor.py": "addresses that are parsed, not connected to",
        "tests/docs/test_broker.py": "text that is replaced in a file",
        "tests/topology/test_deploy.py": "files rendered for other machines",
        "tests/topology/test_files.py": "files rendered for other machines",
        "tests/topology/test_refusals.py": "lines of a broker's log",
    },
    process_may_outlive_test: {
        "runtime/hedgerow/testing/processes.py": "implements the rule",
        "benchmarks/peers/adapter.py": "runs without Hedgerow installed",
        "tests/pipeline/workers/hanging_stages.py": "children of workers, which the node kills with them: that is tested",
        "tests/region/kills/forks.py": "forks to reuse imports; the kernel kills the forks with their server",
        "tests/mutants/run.py": "forks to reuse imports; waits for each child or kills it",
    },
    may_end_unseen: {
        "runtime/hedgerow/tasks/tasks.py": "implements the rule",
        "runtime/hedgerow/tasks/threads.py": "implements the rule",
        "runtime/hedgerow/backends/background.py": "a timer, whose function suppresses every error it can meet",
        "runtime/hedgerow/bus/outbox/writer.py": "survives every exception of its work, and reports it",
        "runtime/hedgerow/region/collector/lease_keeper.py": "survives every exception of its work, and reports it",
        "runtime/hedgerow/region/store/writer.py": "survives every exception of its work, and reports it",
        "runtime/hedgerow/region/enrolment/service.py": "survives every exception of a request, and reports it",
        "runtime/hedgerow/region/rollouts/service.py": "survives every exception of a turn, and reports it",
        "runtime/hedgerow/pipeline/lanes/lane.py": "survives every exception of a list, and dead-letters its frames",
        "runtime/hedgerow/testing/faults.py": "a tool of tests; a task group loses no error",
        "runtime/hedgerow/cli/base/client.py": "awaits its task",
        "runtime/hedgerow/cli/frames/sender.py": "awaits its tasks: a refusal is shown to the user, not logged",
        "runtime/hedgerow/cli/demo/demo.py": "awaits its tasks",
        "runtime/hedgerow/cli/demo/feeds.py": "a task group loses no error",
        "runtime/hedgerow/cli/demo/region.py": "awaits its tasks",
        "runtime/hedgerow/cli/demo/rollout.py": "awaits its tasks",
    },
}
"""Files exempt from a rule, with the reason."""


def violations(source: str, rules: tuple[Rule, ...] = (*RULES, *RUNTIME_RULES)) -> Iterator[tuple[int, Rule]]:
    """Yield the line and rule of each violation in a source."""
    lines = source.splitlines()
    parsed = ast.parse(source)
    waiting = {inner for outer in ast.walk(parsed) if isinstance(outer, ast.While) for inner in ast.walk(outer)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call | ast.Constant | ast.keyword | ast.arg | ast.ClassDef):
            for rule in rules:
                if rule(node, lines[node.lineno - 1]) and not (rule is sleep_without_condition and node in waiting):
                    yield node.lineno, rule


def test_no_rule_is_broken() -> None:
    found = []
    for paths, rules in ((FILES, RULES), (RUNTIME, RUNTIME_RULES)):
        for path in paths:
            name = str(path.relative_to(ROOT))
            for line, rule in violations(path.read_text("utf-8"), rules):
                if name not in EXEMPT.get(rule, {}):
                    found.append(f"{name}:{line}: {rule.__name__}. {rule.__doc__}")

    assert not found, "\n".join(found)


def test_every_exemption_is_needed() -> None:
    for rule, names in EXEMPT.items():
        for name in names:
            assert rule in [which for _, which in violations((ROOT / name).read_text("utf-8"))], name


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('probe.bind(("127.0.0.1", 0))', port_not_held),
        ('sock.bind(("", 0)); port = sock.getsockname()[1]', port_not_held),
        ("def test(unused_tcp_port): pass", port_not_held),
        ('url = "mqtt://127.0.0.1:1883"', port_by_number),
        ('url = f"mqtts://localhost:8883/{x}"', port_by_number),
        ('config = ["listener 1884"]', port_by_number),
        ("Mosquitto(port=18830)", port_by_number),
        ("time.sleep(0.5)", sleep_without_condition),
        ("async def test():\n    await asyncio.sleep(1)", sleep_without_condition),
        ("for each in range(3):\n    time.sleep(0.1)", sleep_without_condition),
        ('subprocess.Popen(["mosquitto"])', process_may_outlive_test),
        (
            'async def test():\n    await asyncio.create_subprocess_exec("mosquitto")',
            process_may_outlive_test,
        ),
        ('subprocess.run([sys.executable, "-m", "hedgerow"])', process_may_outlive_test),
        ("os.fork()", process_may_outlive_test),
        ("asyncio.create_task(work())", may_end_unseen),
        ("self._loop.create_task(work(), name='x')", may_end_unseen),
        ("asyncio.ensure_future(work())", may_end_unseen),
        ("async def f():\n    async with asyncio.TaskGroup() as group:\n        pass", may_end_unseen),
        ("threading.Thread(target=work).start()", may_end_unseen),
        ("threading.Timer(1, work)", may_end_unseen),
        ("class Writer(threading.Thread):\n    pass", may_end_unseen),
    ],
)
def test_a_rule_refuses_its_samples(source: str, rule: Rule) -> None:
    assert [which for _, which in violations(source)] == [rule]


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
        'tasks.start(work(), "work")',
        "async def f():\n    await asyncio.gather(one(), other())",
        "class Writer:\n    thread: threading.Thread",
    ],
)
def test_valid_code_is_accepted(source: str) -> None:
    assert list(violations(source)) == []
