"""How verbs are put together: groups that import a verb when it is asked for, and help that begins with examples.

A docstring is a verb's help as it stands: its first sentence is the summary, and a paragraph with two spaces in a row
(examples, a table) keeps its layout.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperGroup

from hedgerow.cli.base.console import exit_code, print_error
from hedgerow.errors import HedgerowError
from hedgerow.terminal import color_allowed


class Verb(NamedTuple):
    """One command.

    Attributes:
        target: the function behind it, `module:function`.
        summary: one line for the overview.
    """

    target: str
    summary: str


class Group(NamedTuple):
    """Verbs under one word.

    Attributes:
        verbs: what stands below it.
        summary: one line for the overview.
        help: what its own --help says.
    """

    verbs: Mapping[str, Verb | Group]
    summary: str
    help: str


class _LazyGroup(TyperGroup):
    """A group whose verbs are imported one at a time, when asked for; its overview imports none."""

    verbs: ClassVar[Mapping[str, Verb | Group]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(self.verbs)  # type: ignore[assignment]  # names, for listing and for "did you mean"

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now; None if there is none."""
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return None
        if isinstance(verb, Group):
            return typer.main.get_command(app_of(verb))
        module, _, function = verb.target.partition(":")
        return command_of(getattr(importlib.import_module(module), function), cmd_name, verb.summary)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs with their summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in self.verbs.items()])

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; an error of ours becomes two lines and an exit code, never a traceback."""
        if not color_allowed():
            ctx.color = False  # else click asks only whether it writes to a terminal
        try:
            return super().invoke(ctx)
        except HedgerowError as error:
            print_error(error)
            raise typer.Exit(exit_code(error)) from error


def app_of(group: Group, callback: Callable[..., None] | None = None, epilog: str | None = None) -> typer.Typer:
    """A group as a typer application.

    Args:
        callback: declares the group's own options.
        epilog: what stands below its options.
    """
    app = typer.Typer(
        cls=type("Verbs", (_LazyGroup,), {"verbs": group.verbs}),
        help=_keep_layout(group.help),
        epilog=_keep_layout(epilog) if epilog else None,
        add_completion=callback is not None,
        no_args_is_help=True,
        # Plain help is the same on a terminal, in a pipe and in the documentation, and starts four times as fast.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(callback or _nothing)
    return app


def command_of(function: Callable[..., Any], name: str, summary: str) -> Any:
    """A function as a command."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, help=_keep_layout(inspect.getdoc(function) or summary))(function)
    return typer.main.get_command(app)


def _nothing() -> None:
    pass


def _keep_layout(text: str) -> str:
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"\b\n{part}" if "  " in part else part for part in paragraphs)
