"""The state folder: one that cannot be written is named before anything starts, and state in another place is moved there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hedgerow import configfile
from hedgerow.bus.outbox import Record
from hedgerow.bus.outbox.store import OutboxStore
from hedgerow.disk import why_unwritable
from hedgerow.errors import ConfigError
from hedgerow.node import state_folder
from hedgerow.testing import processes

WITHOUT_ROOTS_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
"""Root passes all permission checks; without these rights it is a user like others."""


def _file_in_place_of_the_folder(state: Path) -> None:
    state.write_text("")


def _file_in_place_of_a_parent(state: Path) -> None:
    shutil.rmtree(state.parent)
    state.parent.write_text("")


def _folder_without_write_permission(state: Path) -> None:
    state.mkdir(mode=0o555)


def _parent_without_write_permission(state: Path) -> None:
    state.parent.chmod(0o555)


def _unreadable_file_of_an_earlier_run(state: Path) -> None:
    state.mkdir()
    (state / "outbox.db").touch(mode=0o000)


def _folder_of_an_earlier_run_without_write_permission(state: Path) -> None:
    (state / "trials").mkdir(parents=True)
    (state / "trials").chmod(0o555)


def _broken_link(state: Path) -> None:
    state.symlink_to("nowhere")


UNWRITABLE = {
    _file_in_place_of_the_folder: "lib/state is not a folder",
    _file_in_place_of_a_parent: "lib is not a folder",
    _folder_without_write_permission: "lib/state belongs to user ",
    _parent_without_write_permission: "lib belongs to user ",
    _unreadable_file_of_an_earlier_run: "lib/state/outbox.db belongs to user ",
    _folder_of_an_earlier_run_without_write_permission: "lib/state/trials belongs to user ",
    _broken_link: "lib/state is not a folder",
}
# One process for all: each takes most of a second to start.
RUN_ALL = """
import sys
from hedgerow.cli.main import app
for file in sys.argv[1:]:
    try:
        app(["node", "run", file], prog_name="hedgerow")
    except SystemExit as end:
        print(f"ended with {end.code}", file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[Callable[[Path], None], tuple[Path, str]]:
    """By how a state folder was prepared: its place, and what a node said that was started on it."""
    folders = []
    for prepare in UNWRITABLE:
        folder = tmp_path_factory.mktemp("node")
        (folder / "lib").mkdir()
        prepare(folder / "lib" / "state")
        (folder / "node.yaml").write_text("node: {state_dir: lib/state}\n")
        folders.append(folder)
    rights = WITHOUT_ROOTS_RIGHTS if os.geteuid() == 0 else []
    command = [*rights, sys.executable, "-c", RUN_ALL, *(str(folder / "node.yaml") for folder in folders)]
    ended = processes.run(command, capture_output=True, text=True, timeout=120)
    *said, _ = ended.stderr.split("ended with 2\n")
    return dict(zip(UNWRITABLE, zip(folders, said, strict=True), strict=True))


@pytest.mark.parametrize("prepare", UNWRITABLE)
def test_a_state_folder_that_cannot_be_written_is_an_error_before_the_node_starts(
    refusals: dict[Callable[[Path], None], tuple[Path, str]], prepare: Callable[[Path], None]
) -> None:
    folder, said = refusals[prepare]
    message = UNWRITABLE[prepare]

    assert said.startswith(f"error: Cannot write to the state folder {folder}/lib/state: {folder}/{message}")
    assert "The setting is `node: {state_dir: …}`" in said
    assert "Traceback" not in said


def test_a_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: a test may not mount one."""
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_RDONLY, 255)))

    assert why_unwritable(tmp_path / "state") == (
        f"{tmp_path}/state is on a read-only file system",
        "Set a folder on a disk that can be written, such as a volume.",
    )


@pytest.fixture
def outbox(tmp_path: Path):
    def store(folder: Path, records: int) -> None:
        store = OutboxStore(folder / "outbox.db", max_bytes=1 << 20)
        with store.transaction():
            store.append([Record("doors", "result/doors", b"{}") for _ in range(records)])
        store.close()

    return store


def records_in(folder: Path) -> int:
    store = OutboxStore(folder / "outbox.db", max_bytes=1 << 20)
    try:
        return store.entries
    finally:
        store.close()


@pytest.mark.parametrize("path", ["configs/node.yaml", "a/b/c/node.yaml"])
def test_results_stored_by_an_earlier_build_in_another_folder_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outbox, path: str
) -> None:
    """The earlier build joined the file's folder twice, if the path was relative."""
    monkeypatch.chdir(tmp_path)
    folder = Path(path).parent
    stray = folder / folder / ".hedgerow"
    outbox(stray, records=3)
    (stray / "trials").mkdir()
    (stray / "trials" / "quarantine.json").write_text("{}")
    Path(path).write_text("")
    config = configfile.load(Path(path))

    for _ in range(2):  # the second start finds nothing to move
        state_folder.prepare(config.node.state_dir, folder)

    assert config.node.state_dir == tmp_path / folder / ".hedgerow"
    assert records_in(config.node.state_dir) == 3
    assert (config.node.state_dir / "trials" / "quarantine.json").exists()
    assert list(stray.iterdir()) == []


def test_two_outboxes_stay_apart_and_the_node_says_how_to_send_the_other(tmp_path: Path, outbox) -> None:
    configs = tmp_path / "configs"
    stray = configs / "configs" / ".hedgerow"
    outbox(stray, records=2)
    outbox(configs / ".hedgerow", records=1)

    with capture_logs() as logs:
        state_folder.prepare(configs / ".hedgerow", configs)

    (warning,) = logs
    assert (warning["event"], warning["records"]) == ("outbox-left-behind", 2)
    assert f"HEDGEROW_NODE__STATE_DIR={stray}" in warning["remedy"]
    assert (records_in(stray), records_in(configs / ".hedgerow")) == (2, 1)


def test_an_outbox_that_another_node_uses_is_not_moved(tmp_path: Path, outbox) -> None:
    configs = tmp_path / "configs"
    stray = configs / "configs" / ".hedgerow"
    outbox(stray, records=2)
    running = OutboxStore(stray / "outbox.db", max_bytes=1 << 20)
    try:
        with capture_logs() as logs:
            state_folder.prepare(configs / ".hedgerow", configs)
    finally:
        running.close()

    assert [entry["event"] for entry in logs] == ["state-not-moved"]
    assert records_in(stray) == 2


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot write to the state folder /proc/hedgerow"):
        state_folder.prepare(Path("/proc/hedgerow"), tmp_path)


def test_a_state_folder_is_closed_to_other_users_whatever_the_umask(tmp_path: Path) -> None:
    """What an earlier version left open is mended, and told; what a link points to is left alone."""
    folder, outside = tmp_path / "state", tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o644)
    (folder / "sessions").mkdir(parents=True, mode=0o755)
    (folder / "sessions" / "p").write_text("x")
    for path in (folder, folder / "sessions", folder / "sessions" / "p"):
        path.chmod(0o777)
    (folder / "link").symlink_to(outside)
    umask = os.umask(0)
    try:
        with capture_logs() as lines:
            state_folder.prepare(folder, tmp_path)
        OutboxStore(folder / "outbox.db", max_bytes=1 << 20).close()
        store = OutboxStore(folder / "outbox.db", max_bytes=1 << 20)
        modes = {path.name: path.stat().st_mode & 0o077 for path in folder.rglob("*") if not path.is_symlink()}
        store.close()
    finally:
        os.umask(umask)

    assert [(line["event"], line["files"]) for line in lines] == [("permissions-mended", 3)]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0}, modes
    assert {"outbox.db", "p"} <= modes.keys()
    assert outside.stat().st_mode & 0o777 == 0o644
