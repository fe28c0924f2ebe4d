"""What a service does not need, it does not import: a gateway pays for that at each start."""

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
    """What is imported along with a module; rich can be imported afterwards."""
    run = processes.run(
        [sys.executable, "-c", _IMPORT.format(module=module, format=format)], capture_output=True, check=True
    )
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    ("module", "not_needed"),
    [
        ("hedgerow.node.node", {"cryptography", "openvino", "onnxruntime", "tuf"}),
        ("hedgerow.region.collector.collector", {"cryptography", "numpy", "tuf"}),
    ],
)
def test_a_service_imports_no_more_than_it_needs(module: str, not_needed: set[str]) -> None:
    assert imported(module, "json").isdisjoint(not_needed | {"pygments", "rich"})


def test_a_log_for_people_has_its_colours() -> None:
    assert {"rich", "structlog"} <= imported("hedgerow.telemetry.logs", "console")
