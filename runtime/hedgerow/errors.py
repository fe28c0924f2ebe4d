"""Base classes of the errors that Hedgerow raises.

The tree is ordered by *what to do next*, not by origin: fix the configuration, the plugin or the
model; check the sensor or the broker; change the request.

Rules:
- Every class has a `code`: short, stable, kebab-case. Counters, dead letters and replies contain it.
- Every error has a `remedy`: what to do next, as a sentence.
- Exceptions of vendors and of the operating system are translated where they occur, not here.
- An error leaves the node only through `published`: in replies, events, reports. Where its text quotes what is in files, folders
  or the environment, `outside` says what is published instead; the node's own log has the full text.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST_TEXT: Final = 10_000
"""Most characters of an error that are reported."""
_TOKEN: Final = re.compile(r"\b[0-9a-f]{32}\b")

LONGEST_PUBLISHED: Final = 2_000
"""Most characters of an error's message, and of its remedy, that are published."""

SHORTEST_SECRET: Final = 4
"""Fewest characters of a password or token: a shorter one is part of ordinary words, so errors could not withhold it."""
_WITHHELD: Final = "The node's own log has the details, which are not published."


class HedgerowError(Exception):
    """Base of all errors that Hedgerow raises on purpose.

    Attributes:
        code: short, stable name of the kind of error.
        remedy: what to do next, as a sentence.
        traceback: the calls that led to it, if it stands for a bug in a stage.
        outside: what to publish in place of the message and remedy, because they quote what is on this machine; None:
            themselves.
    """

    code = "error"
    traceback = ""
    outside: str | None = None

    def __init__(self, message: str, *, remedy: str, outside: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy
        if outside is not None:
            self.outside = outside

    def explain(self) -> str:
        """Return the message and the remedy, on two lines."""
        return f"{self}\n  → {self.remedy}"


def text_of(value: object) -> str:
    """Return an error or another object as text that can be encoded.

    An object of a plugin may raise anything when it is formatted, and texts from file names hold surrogates.
    """
    try:
        return str(value)[:LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()
    except BaseException:  # noqa: BLE001 - it must not prevent the report of what went wrong
        return f"({type(value).__name__} cannot be formatted)"


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, which only the main thread receives; elsewhere a plugin has raised it."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def internal(error: Exception) -> HedgerowError:
    """Return an error for a bug in Hedgerow or in a library."""
    fault = HedgerowError(
        f"{type(error).__name__}: {error}", remedy="Report this with the node's log.", outside=type(error).__name__
    )
    fault.code = "internal"
    return fault


class ConfigError(HedgerowError):
    """The configuration is invalid: fix the file."""

    code = "bad-config"


class StageMismatch(ConfigError):
    """A stage does not take what the stages before it give: change one of them.

    Args:
        takes: what the stage takes: `tensor 'boxes': float32[1, ?, 4]`.
        gets: what it gets instead.
        remedy: what to change in the pipeline.
        stage: name of the stage in the pipeline; filled in by the check of the chain.
    """

    code = "stage-mismatch"

    def __init__(self, takes: str, gets: str, *, remedy: str, stage: str = "") -> None:
        super().__init__(f"{f'Stage {stage}' if stage else 'The stage'} takes {takes}; it gets {gets}", remedy=remedy)
        self.takes = takes
        self.gets = gets


class PluginError(HedgerowError):
    """A plugin is missing or broken: install or fix it."""

    code = "bad-plugin"


class ModelError(HedgerowError):
    """A model cannot be found, loaded or run: fix or replace it."""

    code = "bad-model"


class ModelNotFound(ModelError):
    """A model file does not exist."""

    code = "model-not-found"


class ModelUnreadable(ModelError):
    """A model file is corrupt, or uses operators that the backend lacks."""

    code = "model-unreadable"


class ModelMismatch(ModelError):
    """A model's inputs or outputs do not fit the stage that uses it."""

    code = "model-mismatch"


class BackendMissing(ModelError):
    """A model's backend is not installed."""

    code = "backend-missing"


class DeviceMissing(ModelError):
    """A model's device does not exist on this machine."""

    code = "device-missing"


class InferenceError(ModelError):
    """A loaded model failed while running."""

    code = "inference-failed"


class FrameError(HedgerowError):
    """A frame cannot be processed: it is dead-lettered, and other frames are unaffected.

    Args:
        message: what is wrong with the frame, with the values that show it.
        code: reason in counters and the dead letter, kebab-case.
        remedy: what to do next; by default, check the sensor.
    """

    code = "bad-frame"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        remedy: str = "Check what the sensor sends; `hedgerow explain` reads the dead letter.",
    ) -> None:
        super().__init__(message, remedy=remedy)
        if code is not None:
            self.code = code


class BusError(HedgerowError):
    """The broker is unreachable, refuses a request or violates the protocol: check the broker."""

    code = "bus"


class CommandError(HedgerowError):
    """A command cannot be carried out: change the request.

    Args:
        message: why it cannot.
        code: code of the error reply.
        remedy: what to request instead.
    """

    code = "bad-command"

    def __init__(self, message: str, *, remedy: str, code: str | None = None, outside: str | None = None) -> None:
        super().__init__(message, remedy=remedy, outside=outside)
        if code is not None:
            self.code = code


_MOST_SECRETS: Final = 64
_secrets: dict[str, None] = {}  # the newest last


def keep_secret(text: str) -> None:
    """Remember a password or token that this process uses, so that no published error has it.

    Raises: ConfigError: it is too short for that.
    """
    if not text:
        return
    if len(text) < SHORTEST_SECRET:
        raise ConfigError(
            f"A password or token has fewer than {SHORTEST_SECRET} characters",
            remedy="Anyone guesses it, and errors cannot withhold it. Set a longer one at the server, and here.",
        )
    _secrets.pop(text, None)
    _secrets[text] = None
    if len(_secrets) > _MOST_SECRETS:
        del _secrets[next(iter(_secrets))]


def without_token(text: str) -> str:
    """Return a text with the tokens of client ids replaced, for those who must not know them."""
    return _TOKEN.sub("…", text)


def without_secrets(text: str) -> str:
    """Return a text in which the user and password of every URL, and what `keep_secret` was told, are replaced by `***`."""
    for secret in sorted(_secrets.copy(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"//[^/\s]*@", "//***@", text)


def published(error: HedgerowError) -> tuple[str, str]:
    """Return an error's message and remedy as they may leave the node, without secrets and with limited lengths."""
    message, remedy = (str(error), error.remedy) if error.outside is None else (error.outside, _WITHHELD)
    return without_secrets(message)[:LONGEST_PUBLISHED], without_secrets(remedy)[:LONGEST_PUBLISHED]


def first_problem(error: ValidationError, whole: str) -> str:
    """Return the first problem of an invalid document: `field: message`.

    Args:
        error: the validation error.
        whole: name of the document, for problems without a field.
    """
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
