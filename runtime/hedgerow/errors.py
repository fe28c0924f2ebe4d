"""Every error Hedgerow raises on purpose.

The tree is ordered by *what to do next*, not by where the error came from: mend the configuration,
mend the plugin, mend the model, look at the sensor, look at the broker, ask differently.

Rules:
- Every class has a `code`: short, stable, kebab-case. It is what counters, dead letters and replies carry.
- Every error has a `remedy`: the next thing a person should do, as a sentence.
- Foreign exceptions (a vendor's, the operating system's) are translated where they arise, never here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class HedgerowError(Exception):
    """Something that Hedgerow can explain.

    Attributes:
        code: short stable name of the kind of error.
        remedy: the next thing to do, as a sentence.
    """

    code = "error"

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy

    def explain(self) -> str:
        """What went wrong and what to do, on two lines."""
        return f"{self}\n  → {self.remedy}"


def internal(error: Exception) -> HedgerowError:
    """A fault of ours, or of a library that did what it never should, as what can be told of it."""
    fault = HedgerowError(f"{type(error).__name__}: {error}", remedy="See the node's log, and report it.")
    fault.code = "internal"
    return fault


class ConfigError(HedgerowError):
    """The configuration cannot be used: mend the file."""

    code = "bad-config"


class PluginError(HedgerowError):
    """A plugin is missing, broken or not what it says: mend or install it."""

    code = "bad-plugin"


class ModelError(HedgerowError):
    """A model cannot be found, loaded or run: mend or replace the model."""

    code = "bad-model"


class ModelNotFound(ModelError):
    """The file a model is to come from is not there."""

    code = "model-not-found"


class ModelUnreadable(ModelError):
    """A model file is corrupt, or uses operators that the backend lacks."""

    code = "model-unreadable"


class ModelMismatch(ModelError):
    """A model's inputs or outputs do not fit the stage that uses it."""

    code = "model-mismatch"


class BackendMissing(ModelError):
    """The backend a model asks for is not installed."""

    code = "backend-missing"


class DeviceMissing(ModelError):
    """The device a model asks for is not on this machine."""

    code = "device-missing"


class InferenceError(ModelError):
    """A loaded model failed while running."""

    code = "inference-failed"


class FrameError(HedgerowError):
    """One frame cannot be processed: it is dead-lettered, the next one is unaffected.

    Args:
        message: what is wrong with this frame, with the numbers that show it.
        code: the reason counted and sent with the dead letter, kebab-case.
        remedy: what to look at; by default the sensor that sent the frame.
    """

    code = "bad-frame"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        remedy: str = "Look at what the sensor sends; the dead letter carries the frame.",
    ) -> None:
        super().__init__(message, remedy=remedy)
        if code is not None:
            self.code = code


class BusError(HedgerowError):
    """The broker cannot be reached, refuses us, or breaks the protocol: look at the broker."""

    code = "bus"


class CommandError(HedgerowError):
    """A command cannot be carried out: ask differently.

    Args:
        message: why not.
        code: the code of the error reply.
        remedy: what to ask instead.
    """

    code = "bad-command"

    def __init__(self, message: str, *, remedy: str, code: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        if code is not None:
            self.code = code


def first_problem(error: ValidationError, whole: str) -> str:
    """The first thing that is wrong with a document: `where: what`.

    Args:
        whole: what to call it where it is wrong as a whole.
    """
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
