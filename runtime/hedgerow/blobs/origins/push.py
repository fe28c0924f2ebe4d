"""Brings a bundle to an OCI registry, so that nodes can fetch from there what they find in its manifest.

A file is a blob, so that a chunk is a part of one, files that two versions share lie there once, and `oras pull` gives the
bundle back. The bundle's manifest is the config, under its own digest; the tag is `MODEL-VERSION`. Blobs come first, what
names them last: who is stopped in between has changed nothing, and goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import orjson

from hedgerow.models.bundle.folder import Bundle
from hedgerow.models.bundle.manifest import MANIFEST
from hedgerow.web import OriginUnavailable, Response, WebClient

_OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MODEL: Final = "application/vnd.hedgerow.model"
_CONFIG: Final = f"{MODEL}.manifest.v1+json"
_FILE: Final = "application/octet-stream"
_TITLE: Final = "org.opencontainers.image.title"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was brought.

    Attributes:
        tag: under which the version is there.
        digest: that identifies the bundle.
        blobs, bytes: how many were added; the others were there.
    """

    name: str
    version: str
    tag: str
    digest: str
    blobs: int
    bytes: int


def push(bundle: Bundle, web: WebClient, progress: Callable[[int], None] = lambda _: None) -> Pushed:
    """Bring a bundle to a registry.

    Args:
        web: the repository there, as `sources.web_of` opens it.
        progress: told of bytes that are done with.
    Raises:
        OriginUnavailable: the registry cannot be reached, or refuses.
        BadBundle: a file is not what the manifest says.
    """
    bundle.verify()
    manifest = bundle.manifest
    files = {file.path: file for file in manifest.files()}
    blobs = size = 0
    for file in {file.digest: file for file in files.values()}.values():
        if not _has(web, file.digest):
            with bundle.path(file).open("rb") as stream:
                _upload(web, file.digest, file.size, stream)
            blobs, size = blobs + 1, size + file.size
        progress(file.size)
    content = (bundle.folder / MANIFEST).read_bytes()
    if not _has(web, bundle.digest):
        _upload(web, bundle.digest, len(content), BytesIO(content))
        blobs, size = blobs + 1, size + len(content)
    tag = tag_of(manifest.name, manifest.version)
    described: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": _OCI_MANIFEST,
        "artifactType": MODEL,
        "config": {"mediaType": _CONFIG, "digest": bundle.digest, "size": len(content)},
        "layers": [
            {"mediaType": _FILE, "digest": file.digest, "size": file.size, "annotations": {_TITLE: path}}
            for path, file in sorted(files.items())
        ],
        "annotations": {
            _TITLE: manifest.name,
            "org.opencontainers.image.version": manifest.version,
            **({"org.opencontainers.image.licenses": manifest.licence} if manifest.licence else {}),
        },
    }
    with web.request(
        "PUT", f"/manifests/{tag}", headers={"Content-Type": _OCI_MANIFEST}, body=orjson.dumps(described)
    ) as response:
        _accepted(response, web.base, 201)
    return Pushed(manifest.name, manifest.version, tag, bundle.digest, blobs, size)


def tag_of(name: str, version: str) -> str:
    """The tag of a version: what a tag may not have, as `+`, becomes `_`."""
    return re.sub(r"[^\w.-]", "_", f"{name}-{version}")[:128]


def _has(web: WebClient, digest: str) -> bool:
    with web.request("HEAD", f"/blobs/{digest}") as response:
        if response.status not in (200, 404):
            _accepted(response, web.base, 200)
        return response.status == 200


def _upload(web: WebClient, digest: str, size: int, content: IO[bytes]) -> None:
    with web.request("POST", "/blobs/uploads/") as response:
        _accepted(response, web.base, 202)
        place = urljoin(f"{web.base}/", response.headers.get("Location", ""))
    place += f"{'&' if urlsplit(place).query else '?'}{urlencode({'digest': digest})}"
    headers = {"Content-Type": _FILE, "Content-Length": str(size)}
    with web.request("PUT", place, headers=headers, body=content) as response:
        _accepted(response, web.base, 201)


def _accepted(response: Response, base: str, status: int) -> None:
    if response.status == status:
        return
    try:
        (first, *_) = orjson.loads(response.read(64 << 10))["errors"]
        why = f": {first['code']}: {first.get('message', '')}"
    except (ValueError, KeyError, TypeError):
        why = ""
    raise OriginUnavailable(
        f"{base} answers with {response.status} {response.reason or ''}{why}",
        remedy="Check the repository's name, and whether these credentials may write there.",
    )
