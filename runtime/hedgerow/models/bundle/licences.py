"""Validation of SPDX licence expressions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from hedgerow.errors import BackendMissing, ConfigError

_LONGEST: Final = 1000
"""Longest expression in characters; the parser takes ever longer for deeper brackets."""


def is_spdx(text: str) -> bool:
    """Return whether a text is an SPDX expression. Raises: BackendMissing: license-expression is not installed."""
    # `LicenseRef-…` stands for custom terms (SPDX 3.0.1, annex B).
    known = " ".join("MIT" if word.startswith("LicenseRef-") else word for word in _words(text))
    if not known or len(known) > _LONGEST:
        return False
    licensing, refused = _licensing()
    try:
        licensing.parse(known, validate=True)
    except (refused, IndexError):  # IndexError: brackets around nothing
        return False
    return True


def check_spdx(text: str) -> str:
    """Return a licence unchanged after validating it; an empty text is valid.

    Raises: ConfigError: it is not an SPDX expression.
    """
    if text and not is_spdx(text):
        raise ConfigError(
            f"{text!r} is not an SPDX licence expression",
            remedy="Use `Apache-2.0`, `MIT OR GPL-2.0-only`, … (spdx.org/licenses), or `LicenseRef-NAME` for your own terms.",
        )
    return text


@lru_cache(1)
def _licensing() -> tuple[Any, type[Exception]]:
    try:
        from license_expression import ExpressionError, get_spdx_licensing
    except ImportError as error:
        raise BackendMissing(
            f"The package license-expression, which validates licences, cannot be imported: {error}",
            remedy="Run `pip install 'hedgerow[build]'`.",
        ) from error
    return get_spdx_licensing(), ExpressionError


def _words(text: str) -> list[str]:
    return text.replace("(", " ( ").replace(")", " ) ").split()
