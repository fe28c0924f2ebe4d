"""Imports of the packages that read and convert models, on first use, and translation of their exceptions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hedgerow.errors import BackendMissing, HedgerowError, ModelUnreadable


def onnx_package() -> Any:
    """Import the package `onnx`. Raises: BackendMissing: it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise BackendMissing(
            f"The package onnx, which reads and writes ONNX files, cannot be imported: {error}",
            remedy="Run `pip install 'hedgerow[build]'`.",
        ) from error
    return onnx


def openvino_package() -> Any:
    """Import the package `openvino`. Raises: BackendMissing: it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise BackendMissing(
            f"OpenVINO cannot be imported: {error}", remedy="Run `pip install 'hedgerow[openvino]'`."
        ) from error
    return openvino


@contextmanager
def translated_errors(failure: str) -> Iterator[None]:
    """Translate vendors' exceptions, and silence their warnings.

    Args:
        failure: what has failed, for the message: `door.onnx cannot be read`.
    Raises: ModelUnreadable: the vendor's code failed; BackendMissing: a package is missing.
    """
    root_logger = logging.getLogger()
    before = root_logger.level
    root_logger.setLevel(logging.ERROR)
    try:
        yield
    except HedgerowError:
        raise
    except ImportError as error:
        raise BackendMissing(
            f"A package needed to convert models cannot be imported: {error}",
            remedy="Run `pip install 'hedgerow[build]'`.",
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelUnreadable(
            f"{failure}: {reason}",
            remedy="Leave this variant out, or export the model in this format.",
        ) from error
    finally:
        root_logger.setLevel(before)
