"""`hedgerow node rename|move|replace|forget`, killed with SIGKILL at any step; and the region's service, at any step while they wait."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tests.region.conftest import eventually
from tests.region.kills.fleet import SENT, KilledNode, KilledRegion
from tests.region.kills.forks import spread

from hedgerow.testing import Mosquitto

TOGETHER = 10
"""Nodes whose commands are killed at the same time."""
VERBS = ("rename", "move", "replace", "forget")
ALL = [*range(1, 2 * SENT + 1)]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def region(request: pytest.FixtureRequest) -> Iterator[KilledRegion]:
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    url = str(folder / "region.db") if request.param == "sqlite" else request.getfixturevalue("postgres").database()
    with Mosquitto() as broker:
        made = KilledRegion(folder, broker.url, url)
        try:
            yield made
        finally:
            made.forks.close()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _stopped(region: KilledRegion) -> Iterator[None]:
    yield
    region.stop_service()


class Trial:
    """A verb, and what an uninterrupted command leaves."""

    def __init__(self, region: KilledRegion, verb: str) -> None:
        self.region, self.verb = region, verb
        self.final: Any = None

    async def node(self) -> KilledNode:
        made = KilledNode(self.region, self.verb)
        await made.prepare()
        return made

    async def learn(self) -> None:
        """Run the command uninterrupted, and note the number of its steps, and of those when it is repeated after the node has come up."""
        await asyncio.to_thread(self.region.start_service)
        if self.final is not None:
            return
        node = await self.node()
        self.before = node.named(node.state())
        first = node.start()
        await asyncio.to_thread(first.finish)
        self.after = node.named(node.state())
        self.repeated = await self.finish(node)
        self.first = len(first.steps)

    def check(self, node: KilledNode) -> None:
        """Check that each part is in one of its two states, and that no later one was changed before an earlier one."""
        stored, topology, certificates = node.named(node.state())
        assert stored in (self.before[0], self.after[0]), stored
        assert topology in (self.before[1], self.after[1]), topology
        certificates = without_aside(certificates)
        if topology != self.before[1]:
            assert certificates == without_aside(self.after[2])
        if certificates != without_aside(self.before[2]):
            assert stored == self.after[0]

    async def finish(self, node: KilledNode, kill_at: int | None = None) -> int:
        """The next call finishes it; then the node comes up, and all that waited in its outbox is stored once.

        Args:
            kill_at: step at which the command is killed when it is repeated after the node has come up.
        """
        command = node.start()
        await asyncio.to_thread(command.finish)
        await eventually(lambda: node.settled)
        final: list[Any] = [node.state(), await node.retained()]
        steps = 0
        if self.verb == "forget":
            admitted = self.region.forks.start("node", "admit", str(node.old), *node._audited())
            await asyncio.to_thread(admitted.finish)
        await node.come_up()
        if node.new != node.old:
            again = node.start(kill_at)
            await (asyncio.to_thread(again.finish) if kill_at is None else asyncio.to_thread(again.die, kill_at))
            steps = len(again.steps)
            if kill_at is not None:
                assert node.named(node.stored()) == self.final[-1][0]
                node.certificates()
                again = node.start()
                await asyncio.to_thread(again.finish)
            final.append(node.state())
        final = node.named(final)
        assert node.results() == ALL
        if self.final is None:
            self.final = final
        assert not [*differences(final, self.final)]
        return steps

    async def kill_command(self, step: int) -> None:
        node = await self.node()
        killed = node.start(step)
        await asyncio.to_thread(killed.die, step)
        await eventually(lambda: not self.region.rows("SELECT 1 FROM intent WHERE answered_at IS NULL"))
        try:
            self.check(node)
            await self.finish(node)
        except BaseException as error:
            error.add_note(f"killed at step {step}: {killed.steps[-1]}")
            raise

    async def kill_repeated(self, step: int) -> None:
        node = await self.node()
        await asyncio.to_thread(node.start().finish)
        try:
            await self.finish(node, step)
        except BaseException as error:
            error.add_note(f"repeated, and killed at step {step}")
            raise

    async def learn_service(self) -> int:
        """Return how many steps the service takes from an operator's request until all of it is stored and published."""
        node = await self.node()
        await asyncio.to_thread(self.region.stop_service)
        service = await asyncio.to_thread(self.region.start_doomed, None)
        await asyncio.to_thread(node.start().finish)
        await eventually(lambda: node.settled)
        steps = len(service.steps)
        await self.finish(node)
        await asyncio.to_thread(self.region.stop_service)
        return steps

    async def kill_service(self, node: KilledNode, step: int) -> None:
        """Kill the service at a step while a command waits for it; the command itself goes on with the next service."""
        service = await asyncio.to_thread(self.region.start_doomed, step)
        command = node.start()
        try:
            assert await asyncio.to_thread(service.wait) == -signal.SIGKILL, service.err
            self.check(node)
            await asyncio.to_thread(self.region.start_service)
            ended = await asyncio.to_thread(command.wait)
            assert ended == 0 or "did not reply" in command.err, command.err  # a slow machine: the request has expired
            await self.finish(node)
            await asyncio.to_thread(self.region.stop_service)
        except BaseException as error:
            error.add_note(f"the service killed at step {step}: {service.steps[-1:]}")
            raise


@lru_cache
def trial_of(region: KilledRegion, verb: str) -> Trial:
    """Return the trial of a verb; both tests of it compare with one uninterrupted run."""
    return Trial(region, verb)


def without_aside(certificates: dict[str, Any]) -> dict[str, Any]:
    return certificates | {"aside": []}


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Yield where two states differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            yield from differences(found.get(key), expected.get(key), f"{where}/{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{where}/{number}")
    elif found != expected:
        yield f"{where}: {found!r} instead of {expected!r}"


async def together(kill: Callable[[int], Any], steps: list[int]) -> None:
    """Kill at each of these steps, some at the same time."""
    free = asyncio.Semaphore(TOGETHER)

    async def one(step: int) -> None:
        async with free:
            await kill(step)

    outcomes = await asyncio.gather(*map(one, steps), return_exceptions=True)
    if failed := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
        raise ExceptionGroup(f"{len(failed)} of {len(steps)} kills", failed)


@pytest.mark.parametrize(
    ("verb", "kills"),
    [
        *(pytest.param(verb, 4, marks=pytest.mark.long) for verb in ("rename", "forget")),
        *(pytest.param(verb, 60, marks=pytest.mark.slow) for verb in VERBS),
    ],
)
async def test_a_command_killed_at_any_step_is_finished_by_the_next(
    region: KilledRegion, verb: str, kills: int
) -> None:
    trial = trial_of(region, verb)
    await trial.learn()
    of_repeated = kills // 3 if trial.repeated else 0
    await together(trial.kill_command, spread(trial.first, kills - of_repeated))
    await together(trial.kill_repeated, spread(trial.repeated, of_repeated))


@pytest.mark.parametrize(
    ("verb", "kills"),
    [
        pytest.param("rename", 2, marks=pytest.mark.long),
        *(pytest.param(verb, 40, marks=pytest.mark.slow) for verb in VERBS),
    ],
)
async def test_a_service_killed_at_any_step_while_a_command_waits_leaves_one_of_two_states(
    region: KilledRegion, verb: str, kills: int
) -> None:
    trial = trial_of(region, verb)
    await trial.learn()
    nodes: list[KilledNode] = []

    async def prepare(_: int) -> None:
        nodes.append(await trial.node())

    await together(prepare, [*range(kills)])
    steps = await trial.learn_service()
    for node, step in zip(nodes, spread(steps, kills), strict=True):
        await trial.kill_service(node, step)
