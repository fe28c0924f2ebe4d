"""Chunks from a web server and an OCI registry: real servers, real TLS, and their failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.blobs.conftest import (
    REGION,
    SITE,
    TIMEOUT_S,
    Repository,
    Testbed,
    installed_digest,
    manifest_of,
    noise,
)
from tests.blobs.servers import PASSWORD, USER, Authority, ConnectProxy, FolderServer, Registry, basic

from hedgerow.blobs.errors import ContentMissing
from hedgerow.blobs.origins.origins import ModelOrigin, PlacedChunk, open_origins, placed_chunks, web_client
from hedgerow.blobs.origins.push import push, tag_of
from hedgerow.bus.client import Client
from hedgerow.config import OriginSection
from hedgerow.errors import ConfigError
from hedgerow.models.bundle.chunks import describe_file
from hedgerow.models.bundle.folder import BadBundle, Bundle
from hedgerow.models.bundle.manifest import File, Manifest, digest_of
from hedgerow.topics import Address, Channel
from hedgerow.web import OriginUnavailable


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def server(repository: Repository, authority: Authority) -> Iterator[FolderServer]:
    with FolderServer(repository.folder, authority) as server:
        yield server


@pytest.fixture
def file(repository: Repository) -> File:
    return repository.add("model.onnx", noise(300_000, 1))


def open_origin(url: str, authority: Authority | None, **more: Any) -> ModelOrigin:
    (origin,) = open_origins([OriginSection(url=url, ca_file=authority.file if authority else None, **more)])
    return origin


def chunks_of(file: File) -> list[PlacedChunk]:
    return list(placed_chunks([file]).values())


def fetch_all(origin: ModelOrigin, file: File) -> bytes:
    return b"".join(origin.fetch(piece) for piece in chunks_of(file))


# A web server


def test_a_copy_of_the_repository_serves_chunks_over_one_connection(
    server: FolderServer, authority: Authority, file: File
) -> None:
    origin = open_origin(server.url, authority)

    assert digest_of(fetch_all(origin, file)) == file.digest
    assert server.connections == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_resumes_where_it_broke(
    server: FolderServer, authority: Authority, file: File, ranges: bool
) -> None:
    """Without range support the download restarts."""
    server.breaks, server.breaks_after, server.ranges = 2, 20_000, ranges

    first = chunks_of(file)[0]
    data = open_origin(server.url, authority).fetch(first)

    assert digest_of(data) == first.chunk.digest
    assert server.sent == first.chunk.size + (0 if ranges else 40_000)


def test_a_server_that_keeps_breaking_off_is_unavailable(
    server: FolderServer, authority: Authority, file: File
) -> None:
    server.breaks, server.breaks_after = 99, 10

    with pytest.raises(OriginUnavailable, match="broke 3 times"):
        open_origin(server.url, authority).fetch(chunks_of(file)[0])


def test_no_more_is_read_than_the_chunk_size(server: FolderServer, authority: Authority, file: File) -> None:
    """The chunk was replaced by a larger file."""
    first = chunks_of(file)[0]
    name = first.chunk.digest.removeprefix("sha256:")
    (server.folder / "blobs" / "sha256" / name[:2] / name).write_bytes(bytes(50 << 20))

    assert open_origin(server.url, authority).fetch(first) == bytes(first.chunk.size)


def test_a_server_with_an_untrusted_certificate_receives_no_request(
    server: FolderServer, authority: Authority, file: File
) -> None:
    with pytest.raises(OriginUnavailable, match="certificate verify failed"):
        open_origin(server.url, None).fetch(chunks_of(file)[0])
    assert server.requests == 0


def test_server_errors_are_reported_with_a_remedy(server: FolderServer, authority: Authority, file: File) -> None:
    origin, piece = open_origin(server.url, authority), chunks_of(file)[0]

    server.status = 500
    with pytest.raises(OriginUnavailable, match="500"):
        origin.fetch(piece)
    server.status = 404
    with pytest.raises(ContentMissing, match="does not have"):
        origin.fetch(piece)
    server.status, server.moved_to = 0, "http://127.0.0.1:9/elsewhere"
    with pytest.raises(OriginUnavailable):
        origin.fetch(piece)
    server.moved_to, server.authorization = "", basic(USER, PASSWORD)
    with pytest.raises(OriginUnavailable, match="401") as caught:
        origin.fetch(piece)
    assert "credentials_file" in caught.value.remedy


def test_credentials_are_read_from_a_file_that_may_change(
    server: FolderServer, authority: Authority, file: File, tmp_path: Path
) -> None:
    credentials = tmp_path / "secret"
    credentials.write_text("plant:older\n")
    origin, piece = open_origin(server.url, authority, credentials_file=credentials), chunks_of(file)[0]
    server.authorization = basic(USER, PASSWORD)
    with pytest.raises(OriginUnavailable):
        origin.fetch(piece)

    credentials.write_text(f"{USER}:{PASSWORD}\n")
    assert origin.fetch(piece)
    server.authorization = "Bearer t0ken"
    credentials.write_text("t0ken\n")
    assert origin.fetch(piece)
    server.authorization = basic(USER, PASSWORD)
    auth = basic(USER, PASSWORD).removeprefix("Basic ")
    credentials.write_text(json.dumps({"auths": {f"127.0.0.1:{server.port}": {"auth": auth}}}))
    assert origin.fetch(piece)


def test_credentials_are_sent_to_no_other_host(
    server: FolderServer, authority: Authority, file: File, repository: Repository, tmp_path: Path
) -> None:
    """The server redirects to another one, which receives no credentials."""
    credentials = tmp_path / "secret"
    credentials.write_text(f"{USER}:{PASSWORD}\n")
    with FolderServer(repository.folder, authority) as other:
        other.authorization = basic(USER, PASSWORD)
        piece = chunks_of(file)[0]
        name = piece.chunk.digest.removeprefix("sha256:")
        server.moved_to = f"{other.url}/blobs/sha256/{name[:2]}/{name}"

        with pytest.raises(OriginUnavailable, match="401"):
            open_origin(server.url, authority, credentials_file=credentials).fetch(piece)
        assert other.requests == 1


def test_a_token_is_fetched_with_the_credentials_and_renewed_when_it_expires(
    server: FolderServer, authority: Authority, file: File, tmp_path: Path
) -> None:
    """As with registries that use a token server."""
    credentials = tmp_path / "secret"
    credentials.write_text(f"{USER}:{PASSWORD}\n")
    server.authorization, server.token = basic(USER, PASSWORD), "one"
    origin, piece = open_origin(server.url, authority, credentials_file=credentials), chunks_of(file)[0]
    assert origin.fetch(piece)

    server.token = "two"
    assert origin.fetch(piece)

    credentials.write_text("other:user\n")
    server.token = "three"
    with pytest.raises(OriginUnavailable, match="401"):
        origin.fetch(piece)


def test_a_proxy_from_the_environment_is_used(
    server: FolderServer, authority: Authority, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ConnectProxy()
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "elsewhere.example")
    assert open_origin(server.url, authority).fetch(chunks_of(file)[0])
    assert proxy.targets == [f"127.0.0.1:{server.port}"]

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert open_origin(server.url, authority).fetch(chunks_of(file)[0])
    proxy.close()
    assert len(proxy.targets) == 1


def test_an_unreadable_file_is_reported_at_the_start(authority: Authority, tmp_path: Path) -> None:
    for name in ("ca_file", "credentials_file"):
        with pytest.raises(ConfigError, match="nothing"):
            open_origins([OriginSection.model_validate({"url": "https://h.example/m", name: tmp_path / "nothing"})])


# A registry


def build_bundle(folder: Path, version: str = "1.0.0", seed: int = 1) -> Bundle:
    """Build a bundle with two files, chunked as usual."""
    (folder / "variants" / "fp32").mkdir(parents=True)
    paths = {"variants/fp32/model.onnx": noise(400_000, seed), "variants/fp32/labels.bin": noise(50_000, 99)}
    for path, content in paths.items():
        (folder / path).write_bytes(content)
    files = [describe_file(folder / path, path) for path in paths]
    manifest = Manifest.model_validate_json(manifest_of(files, version))
    from hedgerow.models.bundle import model_file

    digest = model_file.digest(folder / files[0].path)
    variant = manifest.variants[0].model_copy(update={"model_digest": digest})
    manifest = manifest.model_copy(update={"variants": (variant,)})
    (folder / "manifest.json").write_bytes(manifest.encode())
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Registry]:
    registry = Registry(tmp_path_factory.mktemp("registry") / "registry", authority)
    yield registry
    registry.close()


def section(registry: Registry, **more: Any) -> OriginSection:
    settings = {"url": registry.url, "ca_file": registry.authority.file, "credentials_file": registry.credentials}
    return OriginSection.model_validate(settings | more)


def test_a_pushed_bundle_can_be_fetched_chunk_by_chunk(registry: Registry, tmp_path: Path) -> None:
    bundle = build_bundle(tmp_path / "bundle")
    result = push(bundle, web_client(section(registry)))
    (origin,) = open_origins([section(registry)])

    assert (result.tag, result.blobs) == ("doors-1.0.0", 3)
    for file in bundle.manifest.files():
        assert digest_of(fetch_all(origin, file)) == file.digest
    name = f"targets/doors/1.0.0/{bundle.digest.removeprefix('sha256:')}.manifest.json"
    assert digest_of(origin.manifest(name, 1 << 20)) == bundle.digest


def test_existing_blobs_are_not_pushed_again(registry: Registry, tmp_path: Path) -> None:
    """The same version uploads nothing; another version shares a file."""
    push(build_bundle(tmp_path / "one", "1.0.0"), web_client(section(registry)))

    assert push(build_bundle(tmp_path / "again", "1.0.0"), web_client(section(registry))).blobs == 0
    assert push(build_bundle(tmp_path / "two", "1.1.0", seed=2), web_client(section(registry))).blobs == 2


def test_another_implementation_pulls_the_bundle(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ORAS restores the files."""
    import oras.client

    bundle = build_bundle(tmp_path / "bundle")
    push(bundle, web_client(section(registry)))
    client = oras.client.OrasClient(tls_verify=str(registry.authority.file), auth_backend="basic")
    client.auth.set_basic_auth(USER, PASSWORD)
    monkeypatch.setenv("HOME", str(tmp_path))

    client.pull(f"{registry.url.removeprefix('oci://')}:doors-1.0.0", outdir=str(tmp_path / "pulled"))

    for file in bundle.manifest.files():
        assert (tmp_path / "pulled" / file.path).read_bytes() == bundle.path(file).read_bytes()


def test_a_push_without_permission_fails_with_a_remedy(registry: Registry, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("plant:guessed\n")

    with pytest.raises(OriginUnavailable, match="401") as caught:
        push(build_bundle(tmp_path / "bundle"), web_client(section(registry, credentials_file=wrong)))
    assert "credentials" in caught.value.remedy


def test_a_modified_bundle_is_not_pushed(registry: Registry, tmp_path: Path) -> None:
    bundle = build_bundle(tmp_path / "bundle", "9.0.0", seed=9)
    bundle.path(bundle.manifest.files()[1]).write_bytes(b"other")

    with pytest.raises(BadBundle):
        push(bundle, web_client(section(registry)))


def test_a_registry_without_the_version_reports_it_missing(registry: Registry, file: File) -> None:
    (origin,) = open_origins([section(registry)])

    with pytest.raises(ContentMissing) as caught:
        origin.fetch(chunks_of(file)[0])
    assert "hedgerow model push" in caught.value.remedy


def test_every_version_has_a_tag() -> None:
    assert tag_of("door", "1.0.0-rc.1+build.5") == "door-1.0.0-rc.1_build.5"


# Nodes


async def test_a_site_fetches_from_a_web_server_once(testbed: Testbed, authority: Authority) -> None:
    """Of three nodes that fetch together, one downloads; the others receive the chunks from it."""
    file = testbed.repository.add("model.onnx", noise(2 << 20, 1))
    with FolderServer(testbed.repository.folder, authority) as server:
        sources = [open_origin(server.url, authority)]
        async with testbed.served() as region, testbed.fetchers("n1", "n2", "n3", sources=sources) as fetchers:
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(*(fetcher.fetch([file]) for fetcher in fetchers))

    assert server.sent <= 1.05 * file.size
    assert region.counts.chunks == 0
    for fetcher in fetchers:
        assert installed_digest(fetcher._store, manifest_of([file]), file) == file.digest


async def test_a_node_that_serves_no_peers_fetches_silently(testbed: Testbed, authority: Authority) -> None:
    """If it announced wants, peers would wait for chunks that it does not send."""
    file = testbed.repository.add("model.onnx", noise(2 << 20, 1))
    topics: list[str] = []
    with FolderServer(testbed.repository.folder, authority) as server:
        alone = {"sources": [open_origin(server.url, authority)], "serve_neighbours": False}
        async with (
            testbed.served() as region,
            Client(
                testbed.options("observer"), lambda messages: topics.extend(each.topic for each in messages)
            ) as observer,
            testbed.fetchers("n1", "n2", "n3", **alone) as fetchers,
        ):
            await observer.subscribe({Address(REGION, SITE, "+").topic(Channel.BLOB, "#"): 1})
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(*(fetcher.fetch([file]) for fetcher in fetchers))

    assert server.sent == 3 * file.size
    assert (topics, region.counts.chunks) == ([], 0)


async def test_mirrors_are_tried_in_order_and_the_region_last(
    testbed: Testbed, authority: Authority, tmp_path: Path
) -> None:
    """The first sends damaged chunks, the second lacks some; each is skipped with the reason."""
    file = testbed.repository.add("model.onnx", noise(2 << 20, 1))
    other = Repository(tmp_path / "other")
    for chunk in file.chunks:
        other.path(chunk.digest).parent.mkdir(parents=True, exist_ok=True)
        other.path(chunk.digest).write_bytes(bytes(chunk.size))
    half = Repository(tmp_path / "half")
    for chunk in file.chunks[: len(file.chunks) // 2]:
        half.path(chunk.digest).parent.mkdir(parents=True, exist_ok=True)
        half.path(chunk.digest).write_bytes(testbed.repository.path(chunk.digest).read_bytes())
    events: list[tuple[str, dict[str, Any]]] = []
    with FolderServer(other.folder, authority) as first, FolderServer(half.folder, authority) as second:
        sources = [open_origin(server.url, authority) for server in (first, second)]
        async with (
            testbed.served() as region,
            testbed.fetcher(
                "n1", sources=sources, on_event=lambda kind, detail: events.append((kind, detail))
            ) as fetcher,
        ):
            async with asyncio.timeout(TIMEOUT_S):
                await fetcher.fetch([file])

    assert [(kind, detail["source"], detail["next"], detail["code"]) for kind, detail in events] == [
        ("source-left-alone", first.url, second.url, "content-damaged"),
        ("source-left-alone", second.url, "region", "content-missing"),
    ]
    assert region.counts.chunks >= len(file.chunks) // 2
    assert installed_digest(fetcher._store, manifest_of([file]), file) == file.digest


async def test_a_site_fetches_from_a_registry(testbed: Testbed, registry: Registry, tmp_path: Path) -> None:
    bundle = build_bundle(tmp_path / "bundle", "3.0.0", seed=3)
    push(bundle, web_client(section(registry)))
    files = bundle.manifest.files()
    async with (
        testbed.served() as region,
        testbed.fetchers("n1", "n2", sources=open_origins([section(registry)])) as fetchers,
    ):
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(fetcher.fetch(files) for fetcher in fetchers))

    assert region.counts.chunks == 0
    for fetcher in fetchers:
        fetcher._store.install((bundle.folder / "manifest.json").read_bytes(), files)
