"""Output of commands that tests run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class CommandOutput:
    """Output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)
