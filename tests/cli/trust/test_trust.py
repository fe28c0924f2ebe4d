"""`hedgerow trust` and `hedgerow model publish`: a repository managed by the command line alone."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from tests.trust.conftest import make_bundle

from hedgerow.blobs.fetch.fetcher import BlobFetcher
from hedgerow.blobs.serve import BlobServer
from hedgerow.blobs.store.store import BlobStore
from hedgerow.bus.connect import ClientOptions
from hedgerow.models.bundle.manifest import read_manifest
from hedgerow.testing import Mosquitto
from hedgerow.topics import Address
from hedgerow.trust.client import TrustClient
from hedgerow.trust.documents import FolderDocuments
from hedgerow.wire.fleet import ModelRef

Hedgerow = Callable[..., Any]
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def initialised(hedgerow: Hedgerow, here: Path) -> Path:
    """Folder of a repository with three root keys, two of which must sign, none with a passphrase."""
    created = hedgerow("trust", "init", "--no-passphrase", "--json")
    assert created.code == 0, created.err
    return here


def build(hedgerow: Hedgerow, here: Path) -> Path:
    """Build a bundle of a small model as a user does."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>\ngraph (float[N,3] x) => (float[N,3] y) { y = Add(x, x) }'
    )
    onnx.save(model, here / "door.onnx")
    np.savez(here / "frames.npz", x=np.random.default_rng(0).random((16, 3), np.float32))
    built = succeeded(
        hedgerow("model", "build", "door.onnx", "--version", "1.0.0", "--samples", "frames.npz", "--json")
    )
    return Path(built.json["folder"])


@pytest.fixture
def bundle(here: Path) -> Path:
    """A bundle with arbitrary bytes in place of a model, which is quick to create."""
    return make_bundle(here / "door-1.0.0").folder


def node(folder: Path, name: str = "node") -> TrustClient:
    root = (folder / "models/metadata/1.root.json").read_bytes()
    return TrustClient(folder / name, root, FolderDocuments(folder / "models"))


def succeeded(result: Any) -> Any:
    assert result.code == 0, result.err or result.out
    return result


# End to end


async def test_a_node_follows_a_repository_managed_by_commands_over_a_broker(
    hedgerow: Hedgerow, in_background: Callable[..., Any], initialised: Path, broker: Mosquitto
) -> None:
    """Creation, an owner, a publication, key rotations: all by commands."""

    async def run(*args: object) -> Any:
        return succeeded(await in_background(*args))

    await run("trust", "key", "vision.pem", "--no-passphrase")
    await run("trust", "add", "vision", "--model", "do*", "--public-key", "vision.pub", "--key", "keys/targets.pem")
    built = await asyncio.to_thread(build, hedgerow, initialised)
    published = (await run("model", "publish", built, "--to", "models", "--key", "vision.pem", "--json")).json
    ref = ModelRef(name="door", version="1.0.0", digest=published["digest"])
    address, options = Address("by-hand", "hall", "n1"), ClientOptions(url=broker.url)
    store = BlobStore(initialised / "store", 1 << 30)
    async with (
        BlobServer(options, address.region, initialised / "models"),
        BlobFetcher(options, address, store) as fetcher,
    ):
        root = (initialised / "models/metadata/1.root.json").read_bytes()
        trust = TrustClient(initialised / "trust", root, fetcher.documents)
        content = await asyncio.to_thread(trust.manifest, ref, {})
        manifest = read_manifest(content, ref.digest)
        await fetcher.fetch(manifest.files())
        folder = await asyncio.to_thread(store.install, content, manifest.files())
        assert (folder / manifest.variants[0].files[0].path).is_file()

        await run("trust", "key", "dora.pem", "--no-passphrase")
        both = ("--key", "keys/root-2.pem", "--key", "keys/root-3.pem")
        await run("trust", "rotate", "root", "--old-key", "root-1", "--new-key", "dora.pub", *both)
        await run("trust", "key", "new.pem", "--no-passphrase")
        await run(
            "trust", "rotate", "online", "--old-key", "models.online", "--new-key", "new.pub", "--online-key", "new.pem",
            *both,
        )  # fmt: skip
        fetcher.documents.forget()
        fresh = await asyncio.to_thread(trust.refresh)
        assert fresh.root == 3
        assert await asyncio.to_thread(trust.manifest, ref, {})
    status = (await run("trust", "status", "--json")).json
    assert status["problems"] == []
    assert [key["name"] for key in status["roles"][0]["keys"]] == ["root-2", "root-3", "dora"]


def test_a_ceremony_of_several_people_each_with_their_own_passphrase(hedgerow: Hedgerow, here: Path) -> None:
    """Two of three must sign, each on their own machine; a change with one signature waits."""
    for name in ("anna", "bo", "carl"):
        (here / f"{name}.pass").write_text(f"{name}'s passphrase\n")
        succeeded(hedgerow("trust", "key", f"{name}.pem", "--passphrase-file", f"{name}.pass"))
    (here / "passphrases").write_text("anna's passphrase\nbo's passphrase\ntargets' passphrase\n")
    succeeded(hedgerow("trust", "key", "targets.pem", "--passphrase-file", "passphrases"))  # takes the first
    roots = ("--root-key", "anna.pem", "--root-key", "bo.pem", "--root-key", "carl.pub")
    succeeded(hedgerow("trust", "init", *roots, "--targets-key", "targets.pem", "--passphrase-file", "passphrases"))
    assert node(here).refresh().root == 1

    waits = succeeded(
        hedgerow("trust", "rotate", "root", "--old-key", "bo", "--new-key", "targets.pub", "--key", "anna.pem",
                 "--passphrase-file", "anna.pass")
    )  # fmt: skip
    assert "root 2 waits for 1 more signature from bo, carl" in waits.out.replace("targets, ", "").replace(
        ", targets", ""
    )
    assert "hedgerow trust sign --key KEY" in waits.out
    assert "root 2 waits for 1 signature" in succeeded(hedgerow("trust", "status")).out
    assert node(here).refresh().root == 1
    succeeded(hedgerow("trust", "sign", "--key", "carl.pem", "--passphrase-file", "carl.pass"))
    assert node(here).refresh().root == 2


def test_a_key_on_a_token_signs_the_root_and_models(
    hedgerow: Hedgerow, here: Path, bundle: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEDGEROW_TRUST_PIN", "1234")
    succeeded(hedgerow("trust", "key", "bo.pem", "--no-passphrase"))
    succeeded(hedgerow("trust", "init", "--root-key", token, "--root-key", "bo.pem", "--no-passphrase"))
    succeeded(hedgerow("trust", "add", "vision", "--model", "door", "--public-key", token, "--key", "keys/targets.pem"))
    published = succeeded(hedgerow("model", "publish", bundle, "--to", "models", "--key", token, "--json")).json

    assert node(here).manifest(ModelRef(name="door", version="1.0.0", digest=published["digest"]), {})
    assert token in succeeded(hedgerow("trust", "status")).out


def test_replacing_a_lost_targets_key_suggests_the_next_command(hedgerow: Hedgerow, initialised: Path) -> None:
    succeeded(hedgerow("trust", "key", "t2.pem", "--no-passphrase"))
    root = ("--key", "keys/root-1.pem", "--key", "keys/root-2.pem")

    rotated = succeeded(hedgerow("trust", "rotate", "targets", "--old-key", "targets", "--new-key", "t2.pub", *root))
    assert "hedgerow trust renew targets --key KEY" in rotated.out
    shown = hedgerow("trust", "status")
    assert shown.code == 1
    assert "hedgerow trust renew targets" in shown.out

    succeeded(hedgerow("trust", "renew", "targets", "--key", "t2.pem"))
    assert succeeded(hedgerow("trust", "status")).code == 0
    assert node(initialised).refresh().root == 2


def test_a_version_is_published_once_and_can_be_withdrawn(hedgerow: Hedgerow, initialised: Path, bundle: Path) -> None:
    succeeded(hedgerow("trust", "key", "vision.pem", "--no-passphrase"))
    succeeded(
        hedgerow("trust", "add", "vision", "--model", "door", "--public-key", "vision.pub", "--key", "keys/targets.pem")
    )
    publish = ("model", "publish", bundle, "--to", "models", "--key", "vision.pem")

    first = succeeded(hedgerow(*publish, "--for", "site=hall-2"))
    again = succeeded(hedgerow(*publish, "--for", "site=hall-2"))
    shown = succeeded(hedgerow("trust", "status"))

    assert "Published door 1.0.0 for site=hall-2, signed by vision." in first.out
    assert "door 1.0.0 is already published." in again.out
    assert "0 new chunks" in again.out
    assert any(line.split()[:4] == ["door", "1.0.0", "vision", "site=hall-2"] for line in shown.out.splitlines())
    succeeded(hedgerow("trust", "renew", "vision", "--drop", "door/1.0.0", "--key", "vision.pem"))
    assert "site=hall-2" not in succeeded(hedgerow("trust", "status")).out


def test_a_refresh_makes_a_published_version_visible_to_nodes(
    hedgerow: Hedgerow, initialised: Path, bundle: Path
) -> None:
    succeeded(hedgerow("trust", "key", "vision.pem", "--no-passphrase"))
    succeeded(
        hedgerow("trust", "add", "vision", "--model", "door", "--public-key", "vision.pub", "--key", "keys/targets.pem")
    )
    (initialised / "models.online.pem").rename(initialised / "region.pem")

    published = succeeded(hedgerow("model", "publish", bundle, "--to", "models", "--key", "vision.pem"))
    assert "hedgerow trust refresh" in published.out
    assert "Nodes do not see the newest metadata of vision yet" in succeeded(hedgerow("trust", "status")).out
    refused = hedgerow("trust", "refresh")
    assert refused.code == 1
    assert "--online-key FILE" in refused.err

    assert (
        "Refreshed; valid for nodes until" in succeeded(hedgerow("trust", "refresh", "--online-key", "region.pem")).out
    )
    assert succeeded(hedgerow("trust", "refresh", "--online-key", "region.pem", "--json")).json["changed"] is False


# Keys and passphrases


def test_new_keys_are_private_and_passphrases_never_printed(
    hedgerow: Hedgerow, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passphrases come from the environment, a file or a prompt, never from an option, which the process list shows."""
    monkeypatch.setenv("HEDGEROW_TRUST_PASSPHRASE", PASSPHRASE)
    results = [
        succeeded(hedgerow("trust", "init")),
        succeeded(hedgerow("trust", "key", "vision.pem")),
        succeeded(
            hedgerow("trust", "add", "v", "--model", "m", "--public-key", "vision.pub", "--key", "keys/targets.pem")
        ),
        succeeded(hedgerow("trust", "status", "--json")),
    ]
    monkeypatch.setenv("HEDGEROW_TRUST_PASSPHRASE", "another passphrase")
    results.append(hedgerow("trust", "renew", "targets", "--key", "keys/targets.pem", input=""))

    assert results[-1].code == 1
    keys = [*(here / "keys").glob("*.pem"), here / "vision.pem", here / "models.online.pem"]
    assert len(keys) == 6
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert [key.name for key in keys if b"ENCRYPTED" not in key.read_bytes()] == ["models.online.pem"]
    secrets = (PASSPHRASE, "another passphrase", "PRIVATE KEY")
    assert not any(secret in result.out + result.err for result in results for secret in secrets)
    for verb in ("init", "key", "add", "rotate", "sign", "renew", "refresh", "remove"):
        options = succeeded(hedgerow("trust", verb, "--help")).out
        assert "--passphrase-file" in options
        assert "--passphrase " not in options


def test_the_passphrase_of_a_new_key_is_typed_twice_and_of_an_old_one_once(hedgerow: Hedgerow, here: Path) -> None:
    created = hedgerow("trust", "key", "anna.pem", input=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    mistyped = hedgerow("trust", "key", "bo.pem", input="one\nanother\n")
    init = ("trust", "init", "--root-key", "anna.pem", "--threshold", 1, "--no-passphrase")
    opened = hedgerow(*init, input=f"{PASSPHRASE}\n")

    assert "New passphrase of anna.pem" in succeeded(created).err
    assert "Repeat for confirmation" in created.err
    assert mistyped.code == 1
    assert not (here / "bo.pem").exists()
    assert succeeded(opened).err.count("Passphrase of anna.pem") == 1


def test_without_a_terminal_the_error_names_other_sources_of_the_passphrase(hedgerow: Hedgerow, here: Path) -> None:
    refused = hedgerow("trust", "key", "anna.pem", input="")

    assert refused.code == 1
    assert "--passphrase-file or HEDGEROW_TRUST_PASSPHRASE" in refused.err
    assert not (here / "anna.pem").exists()


# Errors


def test_init_with_an_impossible_threshold_creates_no_key(hedgerow: Hedgerow, here: Path) -> None:
    too_many = hedgerow("trust", "init", "--root-keys", 1, "--no-passphrase")
    (here / "carl.pub").write_text("")
    too_few = hedgerow("trust", "init", "--root-key", "carl.pub", "--root-key", "dora.pub", "--no-passphrase")

    assert (too_many.code, too_few.code) == (2, 2)
    assert "--threshold 2 exceeds the number of root keys, 1" in too_many.err
    assert "2 root keys must sign, but only 0 can sign here" in too_few.err
    assert [path.name for path in here.iterdir()] == ["carl.pub"]


def test_init_of_an_existing_repository_creates_no_key(hedgerow: Hedgerow, initialised: Path) -> None:
    refused = hedgerow("trust", "init", "--keys", "more", "--no-passphrase")

    assert refused.code == 1
    assert "is a repository already" in refused.err
    assert "hedgerow trust status" in refused.err
    assert not (initialised / "more").exists()


def test_a_dry_run_explains_each_key_and_creates_nothing(hedgerow: Hedgerow, here: Path) -> None:
    result = succeeded(hedgerow("trust", "init", "--dry-run"))

    for role in ("root", "targets", "owner", "snapshot", "timestamp", "keys/root-3.pem", "models.online.pem"):
        assert role in result.out
    assert succeeded(hedgerow("trust", "init", "--dry-run", "--json")).json["days"]["root"] == 730
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("status", "--repository", "nowhere"), 1, "hedgerow trust init"),
        (("sign",), 2, "--key"),
        (("sign", "--key", "keys/root-1.pem"), 1, "hedgerow trust status"),
        (("add", "vision", "--model", "door", "--key", "keys/targets.pem"), 1, "Give more keys"),
        (("add", "root", "--model", "door", "--key", "keys/targets.pem"), 1, "is not a valid owner name"),
        (("add", "vision", "--key", "keys/root-1.pem"), 1, "--model NAME"),
        (("remove", "nobody", "--key", "keys/targets.pem"), 1, "There is no owner 'nobody'"),
        (("rotate", "root", "--old-key", "root-9", "--key", "keys/root-1.pem"), 1, "root-1"),
        (("renew", "targets", "--key", "keys/root-1.pem"), 1, "hedgerow trust status"),
        (("renew", "targets", "--drop", "door", "--key", "keys/targets.pem"), 2, "--drop is for owners"),
        (("renew", "targets", "--key", "keys/nowhere.pem"), 1, "Check that it is the right file"),
        (("refresh", "--online-key", "keys/root-1.pem"), 0, ""),
    ],
)
def test_errors_name_the_remedy(
    hedgerow: Hedgerow, initialised: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    refused = hedgerow("trust", *args)

    assert refused.code == code, refused.err
    assert message in refused.err + refused.out
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("verb", ["init", "key", "add", "remove", "rotate", "sign", "renew", "refresh", "status"])
def test_help_begins_with_examples(hedgerow: Hedgerow, verb: str) -> None:
    out = succeeded(hedgerow("trust", verb, "--help")).out

    assert out.index("Examples:") < out.index("Options:")
    assert f"hedgerow trust {verb}" in out
