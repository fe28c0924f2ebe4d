"""Options shared by several verbs, and sets of options that a verb receives as one argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

P = ParamSpec("P")
Collected = TypeVar("Collected")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Newest = Annotated[int, typer.Option("--newest", min=1, metavar="N", help="Show only the newest N.")]

# The broker

BrokerUrl = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="mqtt://HOST:PORT, mqtts://HOST:PORT, wss://HOST:PORT/PATH or unix:///path/to/socket.",
    ),
]
BrokerConfig = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Take broker, user and certificates from this file."),
]

# The region

StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="STORE", help="The store: an SQLite file, or postgresql://USER@HOST/DATABASE."),
]
StoreConfig = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Take the store from this file; default: region.yaml in this folder."
    ),
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Reason, for the audit log.")]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="WHO", help="Another name for the audit log, which shows it as claimed by USER@HOST."),
]

# Models

BundleFolder = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, as `hedgerow model build` writes it.")
]
MeasuringTime = Annotated[float, typer.Option("--seconds", min=1, help="Total time for measuring.")]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, help="Largest batch to try.")]


def with_options(
    collect: Callable[..., Collected],
) -> Callable[[Callable[Concatenate[Collected, P], None]], Callable[..., None]]:
    """Return a decorator that adds the parameters of `collect` to a verb's options.

    The verb receives what `collect` returns as its first argument.
    """
    shared = inspect.signature(collect, eval_str=True).parameters

    def decorate(verb: Callable[Concatenate[Collected, P], None]) -> Callable[..., None]:
        own = list(inspect.signature(verb).parameters.values())[1:]

        @wraps(verb)
        def run(**values: Any) -> None:
            collected = collect(**{name: values.pop(name) for name in shared})
            verb(collected, **values)  # type: ignore[call-arg]  # typer takes them from the signature

        hints = inspect.get_annotations(verb, eval_str=True)
        parameters = [*(parameter.replace(annotation=hints[parameter.name]) for parameter in own), *shared.values()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
