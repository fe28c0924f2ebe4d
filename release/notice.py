"""Writes NOTICE: the licences of what the images ship, from the metadata of the installed packages. `make notice`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SETS: Final = ("onnx", "openvino", "region")
_PACKAGE: Final = re.compile(r"^([a-z0-9._-]+)==([^ ;\\]+)(?: ; ([^\\]+))?", re.MULTILINE)

_HEAD: Final = """Hedgerow
Copyright the authors of Hedgerow

Licensed under the Apache License, Version 2.0: see LICENSE.

The wheels of Hedgerow contain nothing of others. Its images ship the packages below, each under its own licence; its text is in
the image, in `/opt/hedgerow/lib/NAME.dist-info`. What the base image has of Debian and Python is under the licences in
`/usr/share/doc/*/copyright`.

This list is generated from the metadata of the packages: run `make notice` after `make lock`.
"""


def locked(set_name: str) -> Iterator[tuple[str, str]]:
    """Yield name and version of the packages of an image, except those for other systems and later versions of Python."""
    for name, version, marker in _PACKAGE.findall(
        (ROOT / f"containers/requirements/{set_name}.lock").read_text("utf-8")
    ):
        if "win32" not in marker and "python_full_version >= '3.12'" not in marker:
            yield name, version


def licence(package: str, version: str) -> str:
    """Return the licence of an installed package, as its metadata states it.

    Raises: SystemExit: it is not installed in this version, or states no licence.
    """
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise SystemExit(
            f"{package} is not installed.\n  → Run `make test` once, which installs what is locked."
        ) from None
    if found.version != version:
        raise SystemExit(
            f"{package} {found.version} is installed, but {version} is locked.\n  → Run `make lock`, then `make test` once."
        )
    stated = found.metadata
    classifiers = [each for each in stated.get_all("Classifier") or [] if each.startswith("License ::")]
    text = stated.get("License-Expression") or (stated.get("License") or "").split("\n")[0].strip()
    text = text or " AND ".join(each.split(" :: ")[-1] for each in classifiers)
    if not text:
        raise SystemExit(
            f"{package} {version} states no licence.\n  → Look it up, and leave the package out of the images."
        )
    return text


def notice() -> str:
    """Return the text of NOTICE."""
    users: dict[tuple[str, str], list[str]] = {}
    for set_name in SETS:
        for package in locked(set_name):
            users.setdefault(package, []).append(set_name)
    rows = [
        f"{name} {version}\n    {licence(name, version)}\n    in {', '.join(sets)}"
        for (name, version), sets in sorted(users.items())
    ]
    return "\n".join([_HEAD, *rows]) + "\n"


if __name__ == "__main__":
    (ROOT / "NOTICE").write_text(notice(), "utf-8")
    sys.stdout.write("NOTICE is written.\n")
