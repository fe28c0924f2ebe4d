"""Inventory of nodes: names of statuses in filters."""

from __future__ import annotations

import pytest

from hedgerow.errors import ConfigError
from hedgerow.region.rollouts.inventory import parse_status
from hedgerow.region.store.liveness import Liveness


def test_a_filter_takes_statuses_and_their_deprecated_names() -> None:
    for liveness in Liveness:
        assert parse_status(liveness.value) is liveness
        if liveness is not Liveness.STOPPED:  # which was called offline too
            assert parse_status(liveness.old_name) is liveness
    with pytest.raises(ConfigError, match="There is no status 'ill'") as refused:
        parse_status("ill")
    assert refused.value.remedy == "Use one of ok, degraded, one-way, silent, offline, stopped, unknown."
