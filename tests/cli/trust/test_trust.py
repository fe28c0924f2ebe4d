"""`hedgerow trust` and `hedgerow model publish`: a repository made and kept by the command line alone, and what it says."""

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
WORD = "correct horse battery staple"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def begun(hedgerow: Hedgerow, here: Path) -> Path:
    """A repository with three keys of the root, two of which must sign, none with a passphrase."""
    made = hedgerow("trust", "init", "--no-passphrase", "--json")
    assert made.code == 0, made.err
    return here


def build(hedgerow: Hedgerow, here: Path) -> Path:
    """A bundle of a small model, built as a user does."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>\ngraph (float[N,3] x) => (float[N,3] y) { y = Add(x, x) }'
    )
    onnx.save(model, here / "door.onnx")
    np.savez(here / "frames.npz", x=np.random.default_rng(0).random((16, 3), np.float32))
    built = done(hedgerow("model", "build", "door.onnx", "--version", "1.0.0", "--samples", "frames.npz", "--json"))
    return Path(built.json["folder"])


@pytest.fixture
def bundle(here: Path) -> Path:
    """A bundle that is quick to make: bytes that stand for a model."""
    return make_bundle(here / "door-1.0.0").folder


def node(folder: Path, name: str = "node") -> TrustClient:
    root = (folder / "models/metadata/1.root.json").read_bytes()
    return TrustClient(folder / name, root, FolderDocuments(folder / "models"))


def done(said: Any) -> Any:
    assert said.code == 0, said.err or said.out
    return said


# From beginning to end


async def test_a_repository_of_the_command_lines_is_believed_by_a_node_over_a_broker(
    hedgerow: Hedgerow, in_background: Callable[..., Any], begun: Path, broker: Mosquitto
) -> None:
    """Made, given an owner, published to, rotated and kept by nothing but commands; a node follows all of it."""

    async def run(*args: object) -> Any:
        return done(await in_background(*args))

    await run("trust", "key", "vision.pem", "--no-passphrase")
    await run("trust", "add", "vision", "--model", "do*", "--public-key", "vision.pub", "--key", "keys/targets.pem")
    built = await asyncio.to_thread(build, hedgerow, begun)
    published = (await run("model", "publish", built, "--to", "models", "--key", "vision.pem", "--json")).json
    ref = ModelRef(name="door", version="1.0.0", digest=published["digest"])
    address, options = Address("by-hand", "hall", "n1"), ClientOptions(url=broker.url)
    store = BlobStore(begun / "store", 1 << 30)
    async with (
        BlobServer(options, address.region, begun / "models"),
        BlobFetcher(options, address, store) as fetcher,
    ):
        root = (begun / "models/metadata/1.root.json").read_bytes()
        trust = TrustClient(begun / "trust", root, fetcher.documents)
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


def test_a_ceremony_of_several_people_each_with_a_word_of_his_own(hedgerow: Hedgerow, here: Path) -> None:
    """Two of three sign, each on a machine of his own; what only one has signed waits."""
    for name in ("anna", "bo", "carl"):
        (here / f"{name}.word").write_text(f"{name}'s word\n")
        done(hedgerow("trust", "key", f"{name}.pem", "--passphrase-file", f"{name}.word"))
    (here / "words").write_text("anna's word\nbo's word\nwhat targets has\n")
    done(hedgerow("trust", "key", "targets.pem", "--passphrase-file", "words"))  # the first of them
    roots = ("--root-key", "anna.pem", "--root-key", "bo.pem", "--root-key", "carl.pub")
    done(hedgerow("trust", "init", *roots, "--targets-key", "targets.pem", "--passphrase-file", "words"))
    assert node(here).refresh().root == 1

    waits = done(
        hedgerow("trust", "rotate", "root", "--old-key", "bo", "--new-key", "targets.pub", "--key", "anna.pem",
                 "--passphrase-file", "anna.word")
    )  # fmt: skip
    assert "root 2 waits for 1 more signature, of bo, carl" in waits.out.replace("targets, ", "").replace(
        ", targets", ""
    )
    assert "hedgerow trust sign --key KEY" in waits.out
    assert "root 2 waits for 1 signature" in done(hedgerow("trust", "status")).out
    assert node(here).refresh().root == 1
    done(hedgerow("trust", "sign", "--key", "carl.pem", "--passphrase-file", "carl.word"))
    assert node(here).refresh().root == 2


def test_a_key_on_a_token_signs_the_root_and_models(
    hedgerow: Hedgerow, here: Path, bundle: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEDGEROW_TRUST_PIN", "1234")
    done(hedgerow("trust", "key", "bo.pem", "--no-passphrase"))
    done(hedgerow("trust", "init", "--root-key", token, "--root-key", "bo.pem", "--no-passphrase"))
    done(hedgerow("trust", "add", "vision", "--model", "door", "--public-key", token, "--key", "keys/targets.pem"))
    published = done(hedgerow("model", "publish", bundle, "--to", "models", "--key", token, "--json")).json

    assert node(here).manifest(ModelRef(name="door", version="1.0.0", digest=published["digest"]), {})
    assert token in done(hedgerow("trust", "status")).out


def test_a_lost_targets_key_is_replaced_and_the_next_command_is_named(hedgerow: Hedgerow, begun: Path) -> None:
    done(hedgerow("trust", "key", "t2.pem", "--no-passphrase"))
    root = ("--key", "keys/root-1.pem", "--key", "keys/root-2.pem")

    said = done(hedgerow("trust", "rotate", "targets", "--old-key", "targets", "--new-key", "t2.pub", *root))
    assert "hedgerow trust renew targets --key KEY" in said.out
    shown = hedgerow("trust", "status")
    assert shown.code == 1
    assert "hedgerow trust renew targets" in shown.out

    done(hedgerow("trust", "renew", "targets", "--key", "t2.pem"))
    assert done(hedgerow("trust", "status")).code == 0
    assert node(begun).refresh().root == 2


def test_versions_are_published_once_withdrawn_and_told_of(hedgerow: Hedgerow, begun: Path, bundle: Path) -> None:
    done(hedgerow("trust", "key", "vision.pem", "--no-passphrase"))
    done(
        hedgerow("trust", "add", "vision", "--model", "door", "--public-key", "vision.pub", "--key", "keys/targets.pem")
    )
    publish = ("model", "publish", bundle, "--to", "models", "--key", "vision.pem")

    first = done(hedgerow(*publish, "--for", "site=hall-2"))
    again = done(hedgerow(*publish, "--for", "site=hall-2"))
    shown = done(hedgerow("trust", "status"))

    assert "Published door 1.0.0 for site=hall-2, signed by vision." in first.out
    assert "door 1.0.0 was published already." in again.out
    assert "0 new chunks" in again.out
    assert any(line.split()[:4] == ["door", "1.0.0", "vision", "site=hall-2"] for line in shown.out.splitlines())
    done(hedgerow("trust", "renew", "vision", "--drop", "door/1.0.0", "--key", "vision.pem"))
    assert "site=hall-2" not in done(hedgerow("trust", "status")).out


def test_what_an_owner_published_is_taken_in_by_a_refresh(hedgerow: Hedgerow, begun: Path, bundle: Path) -> None:
    done(hedgerow("trust", "key", "vision.pem", "--no-passphrase"))
    done(
        hedgerow("trust", "add", "vision", "--model", "door", "--public-key", "vision.pub", "--key", "keys/targets.pem")
    )
    (begun / "models.online.pem").rename(begun / "region.pem")

    said = done(hedgerow("model", "publish", bundle, "--to", "models", "--key", "vision.pem"))
    assert "hedgerow trust refresh" in said.out
    assert "Nodes do not see yet what vision has signed" in done(hedgerow("trust", "status")).out
    refused = hedgerow("trust", "refresh")
    assert refused.code == 1
    assert "--online-key FILE" in refused.err

    assert "Refreshed; nodes believe it until" in done(hedgerow("trust", "refresh", "--online-key", "region.pem")).out
    assert done(hedgerow("trust", "refresh", "--online-key", "region.pem", "--json")).json["changed"] is False


# Keys and words


def test_new_keys_are_their_owners_alone_and_no_word_is_ever_printed(
    hedgerow: Hedgerow, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word comes from the environment, a file or a prompt; there is no option for it that others could see."""
    monkeypatch.setenv("HEDGEROW_TRUST_PASSPHRASE", WORD)
    said = [
        done(hedgerow("trust", "init")),
        done(hedgerow("trust", "key", "vision.pem")),
        done(hedgerow("trust", "add", "v", "--model", "m", "--public-key", "vision.pub", "--key", "keys/targets.pem")),
        done(hedgerow("trust", "status", "--json")),
    ]
    monkeypatch.setenv("HEDGEROW_TRUST_PASSPHRASE", "another word")
    said.append(hedgerow("trust", "renew", "targets", "--key", "keys/targets.pem", input=""))

    assert said[-1].code == 1
    keys = [*(here / "keys").glob("*.pem"), here / "vision.pem", here / "models.online.pem"]
    assert len(keys) == 6
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert [key.name for key in keys if b"ENCRYPTED" not in key.read_bytes()] == ["models.online.pem"]
    assert not any(word in one.out + one.err for one in said for word in (WORD, "another word", "PRIVATE KEY"))
    for verb in ("init", "key", "add", "rotate", "sign", "renew", "refresh", "remove"):
        options = done(hedgerow("trust", verb, "--help")).out
        assert "--passphrase-file" in options
        assert "--passphrase " not in options


def test_a_word_is_typed_twice_for_a_new_key_and_once_for_an_old_one(hedgerow: Hedgerow, here: Path) -> None:
    made = hedgerow("trust", "key", "anna.pem", input=f"{WORD}\n{WORD}\n")
    other = hedgerow("trust", "key", "bo.pem", input="one\nanother\n")
    begun = hedgerow("trust", "init", "--root-key", "anna.pem", "--threshold", 1, "--no-passphrase", input=f"{WORD}\n")

    assert "New passphrase of anna.pem" in done(made).err
    assert "Repeat for confirmation" in made.err
    assert other.code == 1
    assert not (here / "bo.pem").exists()
    assert done(begun).err.count("Passphrase of anna.pem") == 1


def test_without_anybody_to_type_it_says_how_else_a_word_may_come(hedgerow: Hedgerow, here: Path) -> None:
    refused = hedgerow("trust", "key", "anna.pem", input="")

    assert refused.code == 1
    assert "--passphrase-file or HEDGEROW_TRUST_PASSPHRASE" in refused.err
    assert not (here / "anna.pem").exists()


# What is refused, and how


def test_what_cannot_be_begun_makes_no_key(hedgerow: Hedgerow, here: Path) -> None:
    too_many = hedgerow("trust", "init", "--root-keys", 1, "--no-passphrase")
    (here / "carl.pub").write_text("")
    too_few = hedgerow("trust", "init", "--root-key", "carl.pub", "--root-key", "dora.pub", "--no-passphrase")

    assert (too_many.code, too_few.code) == (2, 2)
    assert "--threshold 2 is more than the 1 key of the root" in too_many.err
    assert "2 of the root's keys must sign, and 0 can" in too_few.err
    assert [path.name for path in here.iterdir()] == ["carl.pub"]


def test_a_second_beginning_makes_no_key(hedgerow: Hedgerow, begun: Path) -> None:
    refused = hedgerow("trust", "init", "--keys", "more", "--no-passphrase")

    assert refused.code == 1
    assert "is a repository already" in refused.err
    assert "hedgerow trust status" in refused.err
    assert not (begun / "more").exists()


def test_a_dry_run_says_what_each_key_is_for_and_makes_nothing(hedgerow: Hedgerow, here: Path) -> None:
    said = done(hedgerow("trust", "init", "--dry-run"))

    for role in ("root", "targets", "owner", "snapshot", "timestamp", "keys/root-3.pem", "models.online.pem"):
        assert role in said.out
    assert done(hedgerow("trust", "init", "--dry-run", "--json")).json["days"]["root"] == 730
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("status", "--repository", "nowhere"), 1, "hedgerow trust init"),
        (("sign",), 2, "--key"),
        (("sign", "--key", "keys/root-1.pem"), 1, "hedgerow trust status"),
        (("add", "vision", "--model", "door", "--key", "keys/targets.pem"), 1, "Give more keys"),
        (("add", "root", "--model", "door", "--key", "keys/targets.pem"), 1, "cannot be an owner's name"),
        (("add", "vision", "--key", "keys/root-1.pem"), 1, "--model NAME"),
        (("remove", "nobody", "--key", "keys/targets.pem"), 1, "There is no owner 'nobody'"),
        (("rotate", "root", "--old-key", "root-9", "--key", "keys/root-1.pem"), 1, "root-1"),
        (("renew", "targets", "--key", "keys/root-1.pem"), 1, "hedgerow trust status"),
        (("renew", "targets", "--drop", "door", "--key", "keys/targets.pem"), 2, "--drop is for owners"),
        (("renew", "targets", "--key", "keys/nowhere.pem"), 1, "Check that it is the right file"),
        (("refresh", "--online-key", "keys/root-1.pem"), 0, ""),
    ],
)
def test_what_is_refused_says_what_to_do(
    hedgerow: Hedgerow, begun: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    refused = hedgerow("trust", *args)

    assert refused.code == code, refused.err
    assert said in refused.err + refused.out
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("verb", ["init", "key", "add", "remove", "rotate", "sign", "renew", "refresh", "status"])
def test_help_begins_with_examples(hedgerow: Hedgerow, verb: str) -> None:
    out = done(hedgerow("trust", verb, "--help")).out

    assert out.index("Examples:") < out.index("Options:")
    assert f"hedgerow trust {verb}" in out
