"""Process that fetches and installs a version, to be killed: `fetching.py BROKER NODE STORE MANIFEST [SOURCE CA]`.

Prints `fetching` at the start, and at the end `installed`, its peak memory (kB) and the bundle's folder.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.origins.origins import open_origins
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.connect import ClientOptions
from hedgerow.config import OriginSection
from hedgerow.models.bundle.manifest import read_manifest
from hedgerow.topics import Address


async def main(content: bytes, broker: str, node: str, folder: str, *source: str) -> None:
    files = read_manifest(content).files()
    store = BlobStore(Path(folder), 1 << 30)
    sources = open_origins([OriginSection(url=source[0], ca_file=Path(source[1]))] if source else [])
    options = ClientOptions(url=broker, client_id=node, max_backoff_s=0.5)
    async with BlobFetcher(options, Address("north", "hall", node), store, sources=sources) as fetcher:
        print("fetching", flush=True)
        await fetcher.fetch(files)
        installed = store.install(content, files)
    status = Path("/proc/self/status").read_text()  # noqa: ASYNC240 - procfs does not block
    (largest,) = (line.split()[1] for line in status.splitlines() if "VmHWM" in line)
    print("installed", largest, installed, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[4]).read_bytes(), *sys.argv[1:4], *sys.argv[5:]))
