"""Prints the packages of an image as JSON. `build.py` runs it inside the image; it needs nothing but Python."""

import json
import sys
from importlib import metadata
from pathlib import Path

_DPKG = Path("/var/lib/dpkg/status")


def python_packages() -> list[dict[str, str]]:
    """Return Python's packages."""
    found = []
    for each in metadata.distributions():
        stated = each.metadata
        licence = stated.get("License-Expression") or (stated.get("License") or "").split("\n")[0]
        found.append({"name": stated["Name"], "version": each.version, "licence": licence})
    return sorted(found, key=lambda each: each["name"].lower())


def debian_packages(status: str) -> list[dict[str, str]]:
    """Return Debian's packages, from dpkg's list."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" ")
        )
        if "Package" in fields:
            found.append(
                {"name": fields["Package"], "version": fields["Version"], "architecture": fields["Architecture"]}
            )
    return sorted(found, key=lambda each: each["name"])


if __name__ == "__main__":
    packages = debian_packages(_DPKG.read_text("utf-8")) if _DPKG.exists() else []
    json.dump({"python": python_packages(), "debian": packages}, sys.stdout)
