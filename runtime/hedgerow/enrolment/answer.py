"""Answers to machines that enrol. Only a grant is signed: the other answers change nothing on the machine."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import orjson
from pydantic import AfterValidator, Field, ValidationError

from hedgerow.enrolment.grant import MAX_GRANT_BYTES, BadGrant
from hedgerow.errors import first_problem
from hedgerow.text import visible
from hedgerow.wire.messages import WireMessage

MAX_ANSWER_BYTES: Final = 2 * MAX_GRANT_BYTES + 4096
"""JSON may escape each character."""
LONGEST_PAUSE_S: Final = 600

Shown = Annotated[str, AfterValidator(lambda text: visible(text[:500]))]


class Answer(WireMessage):
    """The answer to a request.

    Attributes:
        state: `pending`: somebody must approve; `refused`: the request is not valid, and another may be; `rejected`: by a person.
        code, detail: why, unless approved.
        again_s: seconds after which to ask again; None: don't.
        fingerprint: of the key, by which people recognise the machine.
        grant, signature: what it is granted, if approved.
        release: signature of the authority of the site where it was, if it is granted a place at another.
    """

    schema_: Literal["hedgerow.enrolled/1"] = Field("hedgerow.enrolled/1", alias="schema")
    state: Literal["pending", "approved", "rejected", "refused"]
    code: Annotated[str, Field(max_length=64), AfterValidator(visible)] = ""
    detail: Shown = ""
    again_s: float | None = Field(None, ge=0, le=LONGEST_PAUSE_S)
    grant: str = ""
    signature: str = Field("", max_length=200)
    release: str = Field("", max_length=200)


def read_answer(payload: bytes | memoryview) -> Answer:
    """Read an answer.

    Raises: BadGrant: it cannot be read.
    """
    remedy = "Check that the broker is the region's or the site's, then try again."
    if len(payload) > MAX_ANSWER_BYTES:
        raise BadGrant(f"The answer is too large: {len(payload)} bytes", remedy=remedy)
    try:
        return Answer.model_validate(orjson.loads(payload))
    except ValidationError as error:
        raise BadGrant(f"The answer cannot be read: {first_problem(error, 'answer')}", remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise BadGrant(f"The answer cannot be read: {error}", remedy=remedy) from error
