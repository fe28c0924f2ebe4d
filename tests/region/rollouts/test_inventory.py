"""The inventory of nodes: the words it is asked with."""

from __future__ import annotations

import pytest

from hedgerow.errors import ConfigError
from hedgerow.region.rollouts.inventory import health_of
from hedgerow.region.store.liveness import Liveness


def test_people_are_shown_the_fields_words_and_may_use_the_older_ones() -> None:
    assert [verdict.status for verdict in Liveness] == ["ok", "degraded", "one-way", "silent", "offline", "unknown"]
    for verdict in Liveness:
        assert health_of(verdict.status) is health_of(verdict.value) is verdict
    with pytest.raises(ConfigError, match="No node is 'ill'") as refused:
        health_of("ill")
    assert refused.value.remedy == "Write one of ok, degraded, one-way, silent, offline, unknown."
