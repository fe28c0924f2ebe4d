"""Fixtures of other areas that attacks use too."""

from tests.region.conftest import postgres

__all__ = ["postgres"]
