"""Pushes a bundle to an OCI registry, from which nodes can then fetch its files.

Every file is a blob: a chunk is a range of it, versions share equal files, and `oras pull` restores the bundle. The bundle's
manifest is the config blob, under its own digest; the tag is `MODEL-VERSION`. Blobs are uploaded first and the image manifest
last, so an interrupted push leaves the tag unchanged and resumes when repeated.
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
class PushResult:
    """Result of a push.

    Attributes:
        name, version: of the model.
        tag: of the version in the registry.
        digest: of the bundle.
        blobs, bytes: number and size of the blobs uploaded; the others existed.
    """

    name: str
    version: str
    tag: str
    digest: str
    blobs: int
    bytes: int


def push(bundle: Bundle, web: WebClient, progress: Callable[[int], None] = lambda _: None) -> PushResult:
    """Push a bundle to a registry.

    Args:
        bundle: the bundle to push.
        web: client of the registry's repository, from `origins.web_client`.
        progress: called with the bytes of each finished file.
    Raises:
        OriginUnavailable: the registry cannot be reached, or refuses.
        BadBundle: a file does not match the manifest.
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
    image: dict[str, Any] = {
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
        "PUT", f"/manifests/{tag}", headers={"Content-Type": _OCI_MANIFEST}, body=orjson.dumps(image)
    ) as response:
        _expect(response, web.base, 201)
    return PushResult(manifest.name, manifest.version, tag, bundle.digest, blobs, size)


def tag_of(name: str, version: str) -> str:
    """Return the tag of a version. Characters not allowed in a tag, such as `+`, become `_`."""
    return re.sub(r"[^\w.-]", "_", f"{name}-{version}")[:128]


def _has(web: WebClient, digest: str) -> bool:
    with web.request("HEAD", f"/blobs/{digest}") as response:
        if response.status not in (200, 404):
            _expect(response, web.base, 200)
        return response.status == 200


def _upload(web: WebClient, digest: str, size: int, content: IO[bytes]) -> None:
    with web.request("POST", "/blobs/uploads/") as response:
        _expect(response, web.base, 202)
        place = urljoin(f"{web.base}/", response.headers.get("Location", ""))
    place += f"{'&' if urlsplit(place).query else '?'}{urlencode({'digest': digest})}"
    headers = {"Content-Type": _FILE, "Content-Length": str(size)}
    with web.request("PUT", place, headers=headers, body=content) as response:
        _expect(response, web.base, 201)


def _expect(response: Response, base: str, status: int) -> None:
    if response.status == status:
        return
    try:
        (first, *_) = orjson.loads(response.read(64 << 10))["errors"]
        why = f": {first['code']}: {first.get('message', '')}"
    except (ValueError, KeyError, TypeError):
        why = ""
    raise OriginUnavailable(
        f"{base} replied {response.status} {response.reason or ''}{why}",
        remedy="Check the repository's name, and that these credentials permit writing.",
    )
