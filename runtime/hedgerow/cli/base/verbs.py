"""Builds the command line from groups of verbs, each imported only when it is run.

A verb's docstring is its help. A paragraph with two spaces in a row (examples, a table) keeps its layout.
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
    """A command.

    Attributes:
        target: its function, as `module:function`.
        summary: a line for the list of commands.
    """

    target: str
    summary: str


class Group(NamedTuple):
    """Commands under a common first word.

    Attributes:
        verbs: its commands and groups, by name.
        summary: a line for the list of commands.
        help: the text of its own --help.
    """

    verbs: Mapping[str, Verb | Group]
    summary: str
    help: str


class _LazyGroup(TyperGroup):
    """A group that imports a verb when it is run; listing verbs imports none."""

    verbs: ClassVar[Mapping[str, Verb | Group]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(self.verbs)  # type: ignore[assignment]  # names only, for listing and "did you mean"

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command and return it; None if the name is unknown."""
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
        """Run a verb; print a HedgerowError as two lines, and exit with its code."""
        if not color_allowed():
            ctx.color = False  # click knows terminals, not NO_COLOR
        try:
            return super().invoke(ctx)
        except HedgerowError as error:
            print_error(error)
            raise typer.Exit(exit_code(error)) from error


def app_of(group: Group, callback: Callable[..., None] | None = None, epilog: str | None = None) -> typer.Typer:
    """Return a group as a typer application.

    Args:
        callback: declares the group's own options.
        epilog: text below the options in --help.
    """
    app = typer.Typer(
        cls=type("Verbs", (_LazyGroup,), {"verbs": group.verbs}),
        help=_keep_layout(group.help),
        epilog=_keep_layout(epilog) if epilog else None,
        add_completion=callback is not None,
        no_args_is_help=True,
        # Without rich, help is the same on a terminal and in a pipe, and appears four times as fast.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(callback or _no_options)
    return app


def command_of(function: Callable[..., Any], name: str, summary: str) -> Any:
    """Return a function as a command."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, help=_keep_layout(inspect.getdoc(function) or summary))(function)
    return typer.main.get_command(app)


def _no_options() -> None:
    pass


def _keep_layout(text: str) -> str:
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"\b\n{part}" if "  " in part else part for part in paragraphs)
