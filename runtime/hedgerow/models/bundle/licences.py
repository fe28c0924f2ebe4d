"""Licences by their SPDX names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hedgerow.errors import BackendMissing, ConfigError


def is_spdx(text: str) -> bool:
    """Whether a text is an SPDX expression. Raises: BackendMissing: the package that knows them is not installed."""
    # `LicenseRef-…` stands for terms of one's own (SPDX 3.0.1, annex B).
    known = " ".join("MIT" if word.startswith("LicenseRef-") else word for word in _words(text))
    if not known:
        return False
    licensing, refused = _licensing()
    try:
        licensing.parse(known, validate=True)
    except refused:
        return False
    return True


def check_spdx(text: str) -> str:
    """A licence, checked and given back; an empty text says nothing, and is fine.

    Raises: ConfigError: it is no SPDX expression.
    """
    if text and not is_spdx(text):
        raise ConfigError(
            f"{text!r} is no licence by its SPDX name",
            remedy="Write `Apache-2.0`, `MIT OR GPL-2.0-only`, … (spdx.org/licenses), or `LicenseRef-NAME` for terms of your own.",
        )
    return text


@lru_cache(1)
def _licensing() -> tuple[Any, type[Exception]]:
    try:
        from license_expression import ExpressionError, get_spdx_licensing
    except ImportError as error:
        raise BackendMissing(
            f"A package that knows licences is missing: {error}", remedy="Run `pip install 'hedgerow[build]'`."
        ) from error
    return get_spdx_licensing(), ExpressionError


def _words(text: str) -> list[str]:
    return text.replace("(", " ( ").replace(")", " ) ").split()
