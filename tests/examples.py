"""Number of examples of property tests that need more or fewer than the default."""

from hypothesis import settings


def examples(full: int) -> int:
    """Return `full` in `make test-long`, a fifth of it in `make test`."""
    return full if settings.get_current_profile_name() == "full" else max(5, full // 5)
