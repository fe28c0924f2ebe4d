"""Clean images and clones that are meant: `hedgerow node seal` and `new-identity`, also if they are killed at any file operation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hedgerow import configfile
from hedgerow.bus.identity.client_ids import FILE as TOKEN
from hedgerow.bus.identity.client_ids import client_token
from hedgerow.bus.outbox.copies import count_entries
from hedgerow.bus.outbox.records import OutboxError, Record
from hedgerow.bus.outbox.store import OutboxStore
from hedgerow.cli.main import app
from hedgerow.errors import ConfigError
from hedgerow.node import state_folder
from hedgerow.node.identity import IdentityRefused, NodePlace, new_identity, seal, what_else

CONFIG = """\
# The gateway of the shop.
node:
  region: north
  site: shop-12
  name: gateway  # as on the label
  state_dir: state
broker:
  url: mqtts://broker.lan:8883
  tls: {ca_file: ca.pem, cert_file: own.pem, key_file: own.key}
  username: gateway
  password_file: password
pipelines: {}
"""
STAYS = ("state/tuned/a.json", "state/fleet/store/blob", "state/fleet/trust/root.json", "ca.pem")
GOES = (
    "own.pem", "own.key", "password", "state/fleet/desired.json", "state/fleet/kept.json", "state/fleet/pipelines/p/pipelines.yaml",
    "state/links/p", "state/sessions/p", "state/crashes/x",
)  # fmt: skip


def make(folder: Path, results: int = 0) -> NodePlace:
    """A node that has run, with results that wait."""
    (folder / "node.yaml").write_text(CONFIG)
    for name in (*STAYS, *GOES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "own.key").chmod(0o600)
    client_token(folder / "state")
    store = OutboxStore(folder / "state" / "outbox.db", max_bytes=1 << 20)
    if results:
        with store.transaction():
            store.append([record(n) for n in range(results)])
    store.close()
    return place_of(folder)


def place_of(folder: Path) -> NodePlace:
    return NodePlace(folder / "state", folder / "node.yaml", configfile.load(folder / "node.yaml"))


def record(n: int) -> Record:
    return Record(
        "p", f"hedgerow/v1/north/shop-12/gateway/result/p{n}", b"%d" % n, b"", n % 3, 1e9, 3600.0 if n % 2 else None
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def waiting(folder: Path) -> list[tuple[str, bytes]]:
    store = OutboxStore(folder / "state" / "outbox.db", max_bytes=1 << 20)
    try:
        return [(entry.topic, bytes(entry.payload)) for entry in store.read(0, 1 << 62, 1000, 1 << 30) if entry.topic]
    finally:
        store.abandon()


def epoch(folder: Path) -> str:
    store = OutboxStore(folder / "state" / "outbox.db", max_bytes=1 << 20)
    try:
        with store.transaction():
            store.append([record(0)])  # a store may begin its epoch with the first record of a run
        return str(store.epoch)
    finally:
        store.abandon()


def assert_sealed(folder: Path, before: dict[str, bytes]) -> None:
    after = files(folder)
    assert set(after) - {"state/in-use"} == {"node.yaml", "state/sealed", *STAYS}
    assert all(after[name] == before[name] for name in STAYS)
    assert after["node.yaml"].decode() == CONFIG.replace("  name: gateway  # as on the label\n", "")
    config = configfile.load(folder / "node.yaml")
    with pytest.raises(ConfigError, match="sealed image"):
        state_folder.check_identity(folder / "state", is_named="name" in config.node.model_fields_set)


def test_a_sealed_image_has_nothing_of_the_node_and_runs_once_it_is_named(tmp_path: Path) -> None:
    place = make(tmp_path)
    before = files(tmp_path)
    seal(place, discard_results=False).carry_out()
    assert_sealed(tmp_path, before)
    assert seal(place_of(tmp_path), discard_results=False).steps == [], "again: nothing is left to do"
    state_folder.check_identity(tmp_path / "state", is_named=True)
    assert not (tmp_path / "state" / "sealed").exists()


def test_an_image_with_results_is_not_sealed_unless_they_may_go(tmp_path: Path) -> None:
    place = make(tmp_path, results=7)
    (tmp_path / "state" / "outbox.db.damaged-20260101T000000Z").write_bytes(b"x")
    before = files(tmp_path)
    with pytest.raises(IdentityRefused, match=r"7 results wait .*, and 1 files are set aside") as refusal:
        seal(place, discard_results=False)
    assert "--discard-results" in str(refusal.value.remedy)
    after = files(tmp_path)
    assert {name: after[name] for name in before if "outbox" not in name} == {name: before[name] for name in before if "outbox" not in name}  # fmt: skip
    seal(place, discard_results=True).carry_out()
    assert_sealed(tmp_path, before)


@pytest.mark.parametrize("content", [b"no database at all" * 400, b""], ids=["damaged", "empty"])
def test_an_outbox_that_cannot_be_read_counts_as_results(tmp_path: Path, content: bytes) -> None:
    place = make(tmp_path)
    before = files(tmp_path)
    (tmp_path / "state" / "outbox.db").write_bytes(content)
    if content:
        with pytest.raises(IdentityRefused, match="an unknown number of results"):
            seal(place, discard_results=False)
    seal(place, discard_results=True).carry_out()
    assert_sealed(tmp_path, before)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("node: {region: north, site: s, name: gw}\n", "node: {region: north, site: s}\n"),
        ("node: {name: gw, region: north}\n", "node: {region: north}\n"),
        ("node: {region: north, name: 'gw', site: s}\n", "node: {region: north, site: s}\n"),
        ("node: {name: gw}\n", "node: {}\n"),
        ("node:\n  name: gw\n", "node: {}\n"),
        ("node:\n  name: gw\n  labels: {name: x}\n", "node:\n  labels: {name: x}\n"),
        ("node:\n  labels:\n    name: x\n  name: gw\n", "node:\n  labels:\n    name: x\n"),
        ("node: {labels: {name: x}, name: gw}\n", "node: {labels: {name: x}}\n"),
        ("node: {region: north}\n", "node: {region: north}\n"),
    ],
)
def test_only_the_name_goes_from_the_configuration(tmp_path: Path, node: str, expected: str) -> None:
    (tmp_path / "state").mkdir()
    file = tmp_path / "node.yaml"
    file.write_text(f"{node}# a comment: name: gw\npipelines: {{}}\n")
    file.chmod(0o640)
    seal(NodePlace(tmp_path / "state", file, configfile.load(file)), discard_results=False).carry_out()
    assert file.read_text() == f"{expected}# a comment: name: gw\npipelines: {{}}\n"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_name_that_cannot_be_removed_alone_is_left_to_the_operator(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    file = tmp_path / "node.yaml"
    file.write_text("node: {region: north, name:\n  gw, site: s}\npipelines: {}\n")
    with pytest.raises(ConfigError, match="name cannot be removed"):
        seal(NodePlace(tmp_path / "state", file, configfile.load(file)), discard_results=False)


def test_a_password_in_the_configuration_is_not_sealed_in(tmp_path: Path) -> None:
    place = make(tmp_path)
    file = tmp_path / "node.yaml"
    file.write_text(CONFIG.replace("password_file: password", "password: secret"))
    with pytest.raises(IdentityRefused, match="password is in its configuration"):
        seal(place_of(tmp_path), discard_results=False)
    assert (tmp_path / "own.key").exists()
    assert place.secrets[1] == tmp_path / "password"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_user_of_the_node(tmp_path: Path) -> None:
    make(tmp_path, results=3)
    for path in (tmp_path / "state", *(tmp_path / "state").rglob("*")):
        os.chown(path, 1234, 1234)
    for keep in (False, True):
        with state_folder.held(tmp_path / "state", alone=True):
            new_identity(place_of(tmp_path), keep_results=keep).carry_out()
    assert {path.stat().st_uid for path in (tmp_path / "state").rglob("*")} == {1234}


def test_a_key_behind_a_link_goes_too(tmp_path: Path) -> None:
    place = make(tmp_path)
    (tmp_path / "own.key").rename(tmp_path / "real.key")
    (tmp_path / "own.key").symlink_to("real.key")
    seal(place, discard_results=False).carry_out()
    assert not (tmp_path / "real.key").exists()
    assert not (tmp_path / "own.key").is_symlink()


def test_neither_begins_while_a_node_runs_there(tmp_path: Path) -> None:
    place = make(tmp_path)
    with (
        state_folder.held(place.state),
        state_folder.held(place.state),  # two nodes of one folder, where no outbox forbids it
        pytest.raises(ConfigError, match="A node runs in"),
        state_folder.held(place.state, alone=True),
    ):
        pass
    with (
        state_folder.held(place.state, alone=True),
        pytest.raises(ConfigError, match="being changed"),
        state_folder.held(place.state),
    ):
        pass
    store = OutboxStore(
        place.state / "outbox.db", max_bytes=1 << 20
    )  # a node of an earlier version, which does not hold it
    try:
        with pytest.raises(OutboxError, match="in use"):
            seal(place, discard_results=True)
        with pytest.raises(OutboxError, match="in use"):
            new_identity(place, keep_results=False)
    finally:
        store.close()


def test_a_clone_gets_an_identity_and_leaves_what_waits_to_the_original(tmp_path: Path) -> None:
    original, clone = tmp_path / "original", tmp_path / "clone"
    original.mkdir()
    make(original, results=5)
    shutil.copytree(original, clone)
    change = new_identity(place_of(clone), keep_results=False)
    change.carry_out()
    assert change.waiting == 5
    assert change.kept_as is not None
    assert count_entries(change.kept_as) == 5
    assert len(waiting(original)) == 5
    assert client_token(clone / "state") != client_token(original / "state")
    assert epoch(clone) != epoch(original)
    assert len(waiting(clone)) == 1, "what `epoch` has added"
    after = files(clone)
    assert not {name for name in after if name.startswith(("state/links", "state/sessions", "state/fleet/desired"))}
    assert all(name in after for name in (*STAYS, "own.key", "own.pem", "password"))
    advice = "\n".join(what_else(place_of(clone)))
    for word in ("north/shop-12/gateway", "own.pem", "own.key", "hedgerow pki issue shop-12/NAME", "password"):
        assert word in advice


def test_a_clone_may_send_what_waits_too_under_numbers_of_its_own(tmp_path: Path) -> None:
    place = make(tmp_path, results=250)
    before, old = waiting(tmp_path), client_token(place.state)
    new_identity(place, keep_results=True).carry_out()
    assert sorted(waiting(tmp_path)) == sorted(before)
    assert [path.name for path in place.state.glob("outbox.db.*")] == ["outbox.db.reserve"] or not list(
        place.state.glob("outbox.db.new*")
    )
    assert client_token(place.state) != old
    rows = OutboxStore(place.state / "outbox.db", max_bytes=1 << 20)
    try:
        found = rows._database.rows("SELECT pipeline, created_at, expires_at FROM entry ORDER BY key")
    finally:
        rows.abandon()
    assert {(pipeline, created) for pipeline, created, _ in found} == {("p", 1e9)}
    assert sum(ends is not None for *_, ends in found) == 125, "what expires does so still"


def test_what_a_copy_that_was_killed_has_left_is_no_part_of_the_next_one(tmp_path: Path) -> None:
    """Its log and mark would be taken for those of the new file, and be used with it."""
    place = make(tmp_path, results=5)
    before = waiting(tmp_path)
    for end in ("", "-wal", "-shm", "-journal", ".mark", ".reserve"):
        shutil.copy(place.state / "outbox.db", place.state / f"outbox.db.new{end}")
    (place.state / "outbox.db.new.mark").write_bytes(b"a mark of another epoch")
    new_identity(place, keep_results=True).carry_out()

    assert sorted(waiting(tmp_path)) == sorted(before)
    assert not list(place.state.glob("outbox.db.new*"))


EVERY = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"])
"""Which operations on files are the last one."""


class Killed(BaseException):
    """The process was killed."""


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bool], None]]:
    """A function that lets the Nth operation on files be the last one, done or not."""
    names = ("unlink", "rmdir", "replace", "rename", "fsync", "open", "mkdir", "write")
    counts = {"left": -1}
    after = {"does": False}

    def wrap(name: str) -> Callable[..., Any]:
        real = (lambda _: None) if name == "fsync" else getattr(os, name)  # the process is killed, not the machine

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if counts["left"] < 0:
                return real(*args, **kwargs)
            counts["left"] -= 1
            if counts["left"] >= 0:
                return real(*args, **kwargs)
            if after["does"]:
                with suppress(OSError):
                    real(*args, **kwargs)
            raise Killed

        return wrapped

    for name in names:
        monkeypatch.setattr(os, name, wrap(name))

    def begin(number: int, does: bool) -> None:
        counts["left"], after["does"] = number, does

    yield begin
    counts["left"] = -1


def at_each_operation(
    killing: Callable[[int, bool], None],
    folder: Path,
    every: int,
    work: Callable[[Path], None],
    check: Callable[[Path, bool], None],
) -> int:
    """Kill `work` at operations on files, and check what is left; then let the next call finish it. Returns: how many there are."""
    for number in range(0, 1000, every):
        for does in (False, True) if every == 1 else (bool(number % 2),):
            place = folder / f"{number}{does}"
            shutil.copytree(folder / "before", place)
            killing(number, does)
            try:
                work(place)
            except Killed:
                killing(-1, False)
                check(place, False)
                work(place)
                check(place, True)
            else:
                killing(-1, False)
                check(place, True)
                return number
            shutil.rmtree(place)
    raise AssertionError("it never ends")


@EVERY
def test_a_seal_that_is_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, killing: Callable[[int, bool], None], every: int
) -> None:
    (tmp_path / "before").mkdir()
    make(tmp_path / "before", results=3)
    before = files(tmp_path / "before")

    def work(folder: Path) -> None:
        seal(place_of(folder), discard_results=True).carry_out()

    def check(folder: Path, is_done: bool) -> None:
        if is_done:
            assert_sealed(folder, before)
            return
        left = files(folder)
        if not (folder / "state" / "sealed").exists():
            assert all(left[name] == before[name] for name in before if "outbox" not in name), "nothing is gone yet"
        configfile.load(folder / "node.yaml")  # old or new, never half

    assert at_each_operation(killing, tmp_path, every, work, check) > 40


@EVERY
@pytest.mark.parametrize("keep", [False, True], ids=["leave", "keep"])
def test_a_new_identity_that_is_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, killing: Callable[[int, bool], None], keep: bool, every: int
) -> None:
    (tmp_path / "before").mkdir()
    make(tmp_path / "before", results=3)
    before = files(tmp_path / "before")
    sent = waiting(tmp_path / "before")

    def work(folder: Path) -> None:
        new_identity(place_of(folder), keep_results=keep).carry_out()

    def check(folder: Path, is_done: bool) -> None:
        state = folder / "state"
        if not is_done:
            if (state / state_folder.NEW_IDENTITY).exists():
                with pytest.raises(ConfigError, match="not finished"):
                    state_folder.check_identity(state, is_named=True)
            elif (state / "links").exists():  # not begun
                assert (state / TOKEN).read_bytes() == before[f"state/{TOKEN}"]
                assert sorted(waiting(folder)) == sorted(sent)
            return
        state_folder.check_identity(state, is_named=True)
        assert (state / TOKEN).read_bytes() != before[f"state/{TOKEN}"]
        assert not (state / "links").exists()
        aside = list(state.glob("outbox.db.original-*"))
        if keep:
            assert sorted(waiting(folder)) == sorted(sent)
            assert aside == []
        else:
            assert not (state / "outbox.db").exists()
            assert [count_entries(path) for path in aside] == [3]

    assert at_each_operation(killing, tmp_path, every, work, check) > 10


def test_the_commands_say_what_they_do_and_do_nothing_in_a_dry_run(tmp_path: Path) -> None:
    make(tmp_path, results=2)
    before = {name: body for name, body in files(tmp_path).items() if "outbox" not in name}
    file = str(tmp_path / "node.yaml")
    for verb, options in (("seal", ["--discard-results"]), ("new-identity", [])):
        done = CliRunner().invoke(app, ["node", verb, file, "--dry-run", "--json", *options])
        assert done.exit_code == 0, done.output
        body = json.loads(done.output)
        assert (body["waiting"], body["dry_run"]) == (2, True)
        assert any("client" in step for step in body["steps"])
        after = files(tmp_path)
        assert {name: after[name] for name in before} == before
    refused = CliRunner().invoke(app, ["node", "seal", file])
    assert refused.exit_code != 0
    done = CliRunner().invoke(app, ["node", "new-identity", file])
    assert done.exit_code == 0, done.output
    assert "north/shop-12/gateway" in done.output
    done = CliRunner().invoke(app, ["node", "seal", file, "--discard-results"])
    assert done.exit_code == 0, done.output
    assert "Sealed" in done.output
    nothing = CliRunner().invoke(app, ["node", "seal"])
    assert nothing.exit_code == 2
