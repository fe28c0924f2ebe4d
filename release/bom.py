"""Bills of materials of wheels and images, as CycloneDX 1.6 (JSON)."""

from __future__ import annotations

import re
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Final

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

_SPACE: Final = uuid.UUID("0b8f6c34-6f3e-5a0e-9a53-6f1f0f4c5d21")
"""UUID namespace of serial numbers, which are derived from digests: the same wheel has the same document."""
_NOT_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")


def wheel_bom(wheel: Path, digest: str, at: datetime) -> str:
    """Return the bill of materials of a wheel: itself, and the packages that it requires, as it states them."""
    with zipfile.ZipFile(wheel) as file:
        name = next(each for each in file.namelist() if each.endswith(".dist-info/METADATA"))
        stated = HeaderParser().parsestr(file.read(name).decode())
    required = [
        Component(
            type=ComponentType.LIBRARY,
            name=package,
            bom_ref=f"requirement/{number}",
            purl=PackageURL("pypi", name=_normalised(package)),
            properties=[Property(name="hedgerow:requirement", value=requirement)],
        )
        for number, requirement in enumerate(stated.get_all("Requires-Dist") or [])
        if (package := _NOT_NAME.split(requirement, maxsplit=1)[0])
    ]
    subject = _package(stated["Name"], stated["Version"], stated["License-Expression"] or "", digest)
    return _document(subject, required, digest, at)


def image_bom(name: str, digest: str, inventory: Mapping[str, Iterable[Mapping[str, str]]], at: datetime) -> str:
    """Return the bill of materials of an image.

    Args:
        name: of the image.
        digest: of its archive.
        inventory: what `inventory.py` printed inside it: Python's packages and Debian's.
    """
    python = [_package(each["name"], each["version"], each["licence"]) for each in inventory["python"]]
    debian = [
        Component(
            type=ComponentType.LIBRARY,
            name=each["name"],
            version=each["version"],
            bom_ref=f"deb/{each['name']}@{each['version']}",
            purl=PackageURL("deb", "debian", each["name"], each["version"], {"arch": each["architecture"]}),
        )
        for each in inventory["debian"]
    ]
    hashed = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
    subject = Component(type=ComponentType.CONTAINER, name=name, bom_ref="image", hashes=hashed)
    return _document(subject, [*python, *debian], digest, at)


def _package(name: str, version: str, licence: str, digest: str = "") -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"pypi/{name}@{version}",
        purl=PackageURL("pypi", name=_normalised(name), version=version),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else [],
    )


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _document(subject: Component, parts: list[Component], digest: str, at: datetime) -> str:
    bom = Bom(
        serial_number=uuid.uuid5(_SPACE, digest),
        metadata=BomMetaData(timestamp=at, component=subject),
        components=parts,
    )
    bom.register_dependency(subject, parts)
    text: Any = JsonV1Dot6(bom).output_as_string(indent=1)
    return f"{text}\n"
