"""Options that several verbs share, each declared once; and sets of them, which a verb gets as one argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

P = ParamSpec("P")
Given = TypeVar("Given")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Newest = Annotated[int, typer.Option("--newest", min=1, metavar="N", help="The newest N.")]

# The broker

BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker", metavar="URL", help="mqtt://HOST:PORT, mqtts://HOST:PORT or unix:///path/to/socket."),
]
BrokerConfig = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Take the broker, with user and certificates, from this file."),
]

# The region

StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="STORE", help="The store: an SQLite file, or postgresql://USER@HOST/DATABASE."),
]
StoreConfig = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Take the store from this file; else from region.yaml here."),
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why; stands in the audit log.")]
As = Annotated[str | None, typer.Option("--as", metavar="WHO", help="Who asks; by default USER@HOST.")]

# Models

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `hedgerow model build` made.")]
MeasuringTime = Annotated[float, typer.Option("--seconds", min=1, help="Time for all measurements.")]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, help="Largest batch to try.")]


def with_options(
    collect: Callable[..., Given],
) -> Callable[[Callable[Concatenate[Given, P], None]], Callable[..., None]]:
    """A decorator that gives a verb, after its own options, those that a function takes.

    The verb's first argument is what the function makes of them.
    """
    shared = inspect.signature(collect, eval_str=True).parameters

    def decorate(verb: Callable[Concatenate[Given, P], None]) -> Callable[..., None]:
        own = list(inspect.signature(verb).parameters.values())[1:]

        @wraps(verb)
        def run(**given: Any) -> None:
            collected = collect(**{name: given.pop(name) for name in shared})
            verb(collected, **given)  # type: ignore[call-arg]  # which there are, typer knows from the signature

        hints = inspect.get_annotations(verb, eval_str=True)
        parameters = [*(one.replace(annotation=hints[one.name]) for one in own), *shared.values()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate
