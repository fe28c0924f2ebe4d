"""Services import only what they need, since imports cost a gateway time at each start."""

from __future__ import annotations

import json
import sys

import pytest

from hedgerow.testing import processes

_IMPORT = """
import json, sys
import hedgerow.configfile
from hedgerow.telemetry.structlog_import import import_structlog
import_structlog("{format}")
import {module}
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
import rich.traceback
"""


def imported(module: str, format: str) -> set[str]:
    """Return the modules imported along with a module; check that rich can be imported afterwards."""
    run = processes.run(
        [sys.executable, "-c", _IMPORT.format(module=module, format=format)], capture_output=True, check=True
    )
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("hedgerow.node.node", {"cryptography", "openvino", "onnxruntime", "tuf"}),
        ("hedgerow.region.collector.collector", {"cryptography", "numpy", "tuf"}),
    ],
)
def test_a_service_imports_only_what_it_needs(module: str, unneeded: set[str]) -> None:
    assert imported(module, "json").isdisjoint(unneeded | {"pygments", "rich"})


def test_a_console_log_loads_rich() -> None:
    assert {"rich", "structlog"} <= imported("hedgerow.telemetry.logs", "console")
