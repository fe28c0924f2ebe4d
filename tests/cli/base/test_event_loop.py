"""Running a service on the configured event loop."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from hedgerow.cli.base import event_loop
from hedgerow.cli.base.event_loop import LoopKind, run_on
from hedgerow.errors import ConfigError


@pytest.mark.parametrize(("kind", "module"), [("asyncio", "asyncio"), ("uvloop", "uvloop")])
def test_a_service_runs_on_the_configured_loop(kind: LoopKind, module: str) -> None:
    loops = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())

    run_on(kind, main())

    assert type(loops[0]).__module__.partition(".")[0] == module


def test_a_loop_that_is_not_installed_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(event_loop.__file__).parent)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "uvloop"]:
        monkeypatch.delitem(sys.modules, name)

    async def main() -> None:
        raise AssertionError("must not run")

    with pytest.raises(ConfigError) as caught:
        run_on("uvloop", main())

    assert "hedgerow[uvloop]" in caught.value.remedy
