"""Progress bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hedgerow.terminal import supports_redraw


@contextmanager
def byte_progress(total: int | None, what: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a progress bar by bytes, if stderr is a terminal; a total of None is not known."""
    if quiet or not supports_redraw(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
