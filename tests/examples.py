"""How many examples a property is tried with, where that is not what Hypothesis would take."""

from hypothesis import settings


def examples(full: int) -> int:
    """That many in `make test-long`, a fifth in `make test`."""
    return full if settings.get_current_profile_name() == "full" else max(5, full // 5)
