"""Asks until somebody has decided, over the listener for machines that enrol."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from hedgerow.bus.client import Client
from hedgerow.bus.connect import ClientOptions
from hedgerow.bus.message import Message
from hedgerow.enrolment.answer import MAX_ANSWER_BYTES, Answer, read_answer
from hedgerow.enrolment.folder import Enrolment
from hedgerow.errors import BusError
from hedgerow.topics import EVERY_NODE, Address, Channel

_CONNECT_S: Final = 15.0
_ANSWER_S: Final = 10.0
_RETRY_S: Final = (1.0, 60.0)

Told = Callable[[str], None]


async def ask(enrolment: Enrolment, root_file: Path, payload: bytes) -> Answer | None:
    """Ask once, on a connection of its own. Returns: the answer; None if none came in time.

    Raises:
        BusError: the broker cannot be reached, or is not the region's.
        BadGrant: the answer cannot be read.
    """
    answers: asyncio.Queue[Message] = asyncio.Queue(4)
    address = Address(enrolment.region, enrolment.site, EVERY_NODE)
    expected = address.topic(Channel.ENROLLED, enrolment.client)

    def take(messages: list[Message]) -> None:
        for message in messages:
            if message.topic == expected and not answers.full():
                answers.put_nowait(message)

    options = ClientOptions(
        url=enrolment.broker,
        client_id=enrolment.client,
        ca_file=root_file,
        session_expiry_s=0,
        clean_start=True,
        max_payload_bytes=MAX_ANSWER_BYTES,
        qos_0_is_enough=True,
    )
    async with Client(options, take) as client:
        await client.subscribe({expected: 0})
        await client.wait_connected(_CONNECT_S)
        client.publish(address.topic(Channel.ENROL, enrolment.client), payload)
        try:
            async with asyncio.timeout(_ANSWER_S):
                message = await answers.get()
        except TimeoutError:
            return None
    return read_answer(message.payload)


async def ask_until_decided(
    enrolment: Enrolment, root_file: Path, payload: bytes, told: Told = lambda _: None, *, once: bool = False
) -> AsyncIterator[Answer]:
    """Ask again and again, until an answer says that nothing follows; yield each answer. Without an answer, ask again too.

    Args:
        told: called with what prevents an answer, once for each reason.
        once: ask only once.
    """
    pause_s, last = _RETRY_S[0], ""
    while True:
        why = "No answer: the region's service may not be running, or cannot be reached from the site"
        answer = None
        try:
            answer = await ask(enrolment, root_file, payload)
        except BusError as error:
            why = f"{error} ({error.remedy})"
        if answer is not None:
            yield answer
            if answer.again_s is None:
                return
            pause_s, last = _RETRY_S[0], ""
            wait_s = answer.again_s
        else:
            if why != last:
                told(why)
            last = why
            wait_s = pause_s
            pause_s = min(_RETRY_S[1], 2 * pause_s)
        if once:
            return
        await asyncio.sleep(wait_s * random.uniform(0.75, 1.25))
