"""Packages that convert models: imported when they are first used, and their exceptions made ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hedgerow.errors import BackendMissing, HedgerowError, ModelUnreadable


def onnx_package() -> Any:
    """The package `onnx`. Raises: BackendMissing: it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise BackendMissing(
            f"To make and read ONNX files, the package onnx is needed: {error}",
            remedy="Run `pip install 'hedgerow[build]'`.",
        ) from error
    return onnx


def openvino_package() -> Any:
    """The package `openvino`. Raises: BackendMissing: it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise BackendMissing(
            f"OpenVINO cannot be imported: {error}", remedy="Run `pip install 'hedgerow[openvino]'`."
        ) from error
    return openvino


@contextmanager
def explained(path: Path, form: str) -> Iterator[None]:
    """Make a vendor's exception one of ours, and keep vendors' warnings to what they lead to."""
    quiet = logging.getLogger()
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        yield
    except HedgerowError:
        raise
    except ImportError as error:
        raise BackendMissing(
            f"A package that converts models is missing: {error}", remedy="Run `pip install 'hedgerow[build]'`."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelUnreadable(
            f"{path.name} cannot be made {form}: {reason}",
            remedy="Leave that variant out, or export the model in that form.",
        ) from error
    finally:
        quiet.setLevel(before)
