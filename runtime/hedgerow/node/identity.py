"""Takes a node's identity away, or gives it a new one: clean images of a disk, and clones that are meant.

Killed at any point, a change is finished by the next call: each step does nothing if it is done. A file in the state folder
says that a change has begun, and `hedgerow node run` refuses until it is finished.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from hedgerow import disk
from hedgerow.bus.identity.client_ids import FILE as TOKEN
from hedgerow.bus.identity.client_ids import new_client_token
from hedgerow.bus.outbox import OutboxError
from hedgerow.bus.outbox.copies import copy_records, count_entries
from hedgerow.bus.set_aside import messages as set_aside
from hedgerow.config import NodeConfig
from hedgerow.configfile import Document
from hedgerow.errors import ConfigError
from hedgerow.node import state_folder
from hedgerow.node.link.outbox import FILE as OUTBOX

_OF_NODE: Final = ("fleet/desired.json", "fleet/kept.json", "fleet/pipelines", "sessions", "links")
"""What the region and the broker know by the node's name and client ids. Models, measurements and trust stay."""
_OF_OUTBOX: Final = (".mark", "-wal", "-shm", "-journal", ".reserve", "")
_NAME: Final = re.compile(r"""(,\s*)?\bname:\s*("[^"]*"|'[^']*'|[^,}\s#]+)(\s*,\s*(?=[^}\s]))?""")


class IdentityRefused(ConfigError):
    """A node's identity is not changed; the message says what would be lost, or who is in the way."""

    code = "identity-refused"


class Step(NamedTuple):
    """A step of a change: what it does, for people, and how. Doing it again does nothing."""

    what: str
    do: Callable[[], None]


@dataclass(frozen=True, slots=True)
class NodePlace:
    """A node on this machine.

    Attributes:
        state: its state folder.
        file, config: its configuration; None: only the state folder is known.
    """

    state: Path
    file: Path | None = None
    config: NodeConfig | None = None

    @property
    def secrets(self) -> list[Path]:
        """Files that prove who the node is; the secret ones first."""
        if self.config is None:
            return []
        broker = self.config.broker
        named = (broker.tls.key_file, broker.password_file, broker.tls.cert_file)
        return [path for path in named if path is not None]


@dataclass(slots=True)
class IdentityChange:
    """What a change does, or has done.

    Attributes:
        steps: in order.
        waiting: results that wait in the outbox; None: it cannot be read.
        aside: messages, and damaged outboxes, that were set aside.
        kept_as: where the outbox with what waited is kept; None: nowhere.
    """

    steps: list[Step] = field(default_factory=list)
    waiting: int | None = 0
    aside: int = 0
    kept_as: Path | None = None

    def carry_out(self) -> None:
        """Do all steps. Raises: ConfigError: one cannot be done; those before it are."""
        for step in self.steps:
            try:
                step.do()
            except OSError as error:
                raise ConfigError(
                    f"Could not {step.what}: {error.strerror or error}",
                    remedy="Let this user change that file, then run the command again: it goes on where it stopped.",
                ) from error


def seal(place: NodePlace, *, discard_results: bool) -> IdentityChange:
    """Plan to make an image clean: no key, certificate, password, name, client ids, or numbers and results of an outbox.

    Args:
        place: the node, which must be held (`state_folder.held`).
        discard_results: delete results that wait for the region.
    Raises: IdentityRefused: results wait.
    """
    change = IdentityChange(waiting=_waiting(place.state), aside=_aside(place.state))
    if (change.waiting or change.waiting is None or change.aside) and not discard_results:
        count = "an unknown number of" if change.waiting is None else str(change.waiting)
        raise IdentityRefused(
            f"{count} results wait for the region in {place.state / OUTBOX}, and {change.aside} files are set aside",
            remedy="Run the node until the region has them. Or delete them: --discard-results.",
        )
    if place.config is not None and place.config.broker.password is not None:
        raise IdentityRefused(
            f"The node's password is in its configuration: {place.file}, or HEDGEROW_BROKER__PASSWORD",
            remedy="Remove it there, or keep it in a file: `broker: {password_file: …}`.",
        )
    former = None if place.config is None else str(place.config.node.address)
    begun = orjson.dumps({"sealed_at": time.time(), "former": former})
    marker = place.state / state_folder.SEALED
    if not marker.exists():
        change.steps.append(Step(f"note in {place.state} that it is sealed", lambda: disk.replace(marker, begun)))
    change.steps += [_removal(path) for path in place.secrets if os.path.lexists(path)]
    change.steps += list(_removals(place.state, [f"{OUTBOX}{end}" for end in _OF_OUTBOX]))
    change.steps += [_removal(path) for path in sorted(place.state.glob(f"{OUTBOX}.*"))]
    change.steps += list(_removals(place.state, (TOKEN, f"{TOKEN}.new", *_OF_NODE, set_aside.FOLDER, "crashes")))
    if place.file is not None and (text := _without_name(place.file)) is not None:
        file = place.file.resolve()
        change.steps.append(Step(f"remove the node's name from {place.file}", lambda: _rewrite(file, text)))
    change.steps += _ownership(place.state)
    return change


def new_identity(place: NodePlace, *, keep_results: bool) -> IdentityChange:
    """Plan to give a clone an identity of its own: new client ids, new numbers. Its name and certificate are the operator's to change.

    Args:
        place: the clone, which must be held (`state_folder.held`).
        keep_results: send what waits here too, under the new numbers. Otherwise it is set aside: the original sends it.
    Raises: IdentityRefused: the outbox cannot be read, and is to be kept.
    """
    intent = place.state / state_folder.NEW_IDENTITY
    begun = _read(intent) or {
        "keep": keep_results,
        "stamp": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        "copied": False,
    }
    keep = bool(begun["keep"])
    outbox, copy = place.state / OUTBOX, place.state / f"{OUTBOX}.new"
    change = IdentityChange(waiting=_waiting(place.state))
    if keep and change.waiting is None and not begun["copied"]:
        raise IdentityRefused(f"{outbox} cannot be read", remedy="Leave --keep-results out: the file is set aside.")
    change.steps.append(Step("note that this has begun", lambda: disk.replace(intent, orjson.dumps(begun))))
    if keep:
        change.steps += _keep_steps(outbox, copy, intent, begun)
    elif outbox.exists():
        change.steps.append(_removal(outbox.with_name(f"{OUTBOX}.mark")))
        if change.waiting == 0:
            change.steps.append(_removal(outbox))
        else:
            kept = change.kept_as = outbox.with_name(f"{OUTBOX}.original-{begun['stamp']}")
            change.steps.append(Step(f"set {outbox} aside as {kept.name}", lambda: _set_outbox_aside(outbox, kept)))
    else:
        change.steps += list(_removals(place.state, [f"{OUTBOX}.mark"]))
    change.steps.append(Step("make new client ids", lambda: new_client_token(place.state)))
    change.steps += list(_removals(place.state, _OF_NODE))
    change.steps += _ownership(place.state)
    change.steps.append(Step("note that this is done", lambda: _remove(intent)))
    return change


def _keep_steps(outbox: Path, copy: Path, intent: Path, begun: dict[str, Any]) -> Iterator[Step]:
    if not begun["copied"] and outbox.exists():
        for end in ("", "-wal", "-shm", "-journal", ".mark", ".reserve"):  # of a copy that was killed
            if end == "" or copy.with_name(copy.name + end).exists():
                yield _removal(copy.with_name(copy.name + end))
        yield Step(f"copy what waits to {copy.name}", partial(_copy, outbox, copy))
        copied = orjson.dumps(begun | {"copied": True})
        yield Step("note that the copy is whole", lambda: disk.replace(intent, copied))
    yield _removal(outbox.with_name(f"{OUTBOX}.mark"))
    if copy.exists() or not begun["copied"]:
        yield Step(f"use the copy as {outbox.name}", lambda: _replace(copy, outbox))
    for end in (".mark", ".reserve"):
        yield _removal(copy.with_name(copy.name + end))


def what_else(place: NodePlace) -> list[str]:
    """Return what an operator has to change besides, after `new_identity`."""
    if place.config is None:
        return ["its name, in its configuration: `node: {name: …}`", "its certificate and key"]
    node, tls = place.config.node, place.config.broker.tls
    advice = [f"its name, now {node.address}: `node: {{name: …}}` in {place.file}, or HEDGEROW_NODE__NAME"]
    if tls.cert_file is not None:
        advice.append(
            f"its certificate {tls.cert_file} and key {tls.key_file}, which are the original's: `hedgerow pki issue {node.site}/NAME`, "
            "or `hedgerow pki apply` with the topology"
        )
    if place.config.broker.password_file is not None or place.config.broker.password is not None:
        advice.append("its user and password at the broker")
    return advice


def _waiting(state: Path) -> int | None:
    """Return how many results and gaps wait; None if the outbox cannot be read. Raises: OutboxError: a node uses it."""
    path = state / OUTBOX
    if not path.exists() or not path.stat().st_size:
        return 0
    try:
        return count_entries(path)
    except OutboxError as error:
        if error.code == "outbox-damaged":
            return None
        raise


def _aside(state: Path) -> int:
    damaged = [path for path in state.glob(f"{OUTBOX}.damaged-*") if not path.name.endswith(("-wal", "-shm"))]
    return set_aside.count(state / set_aside.FOLDER) + len(damaged)


def _removals(folder: Path, names: Sequence[str]) -> Iterator[Step]:
    for name in names:
        if os.path.lexists(folder / name):
            yield _removal(folder / name)


def _removal(path: Path) -> Step:
    return Step(f"delete {path}", lambda: _remove(path))


def _ownership(folder: Path) -> list[Step]:
    """Return the step that gives what root has made to the folder's owner, who runs the node."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return []

    def give() -> None:
        for path in folder.iterdir():
            if path.lstat().st_uid == 0:
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    return [Step(f"give {folder} to its owner", give)]


def _remove(path: Path) -> None:
    if path.is_symlink():
        target = path.resolve()
        if target.is_file():
            target.unlink()
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        disk.sync(path.parent)


def _copy(outbox: Path, copy: Path) -> None:
    copy_records(outbox, copy)


def _replace(source: Path, target: Path) -> None:
    if source.exists():
        source.replace(target)
        disk.sync(target.parent)


def _set_outbox_aside(outbox: Path, kept: Path) -> None:
    for end in ("-wal", "-shm", "-journal"):  # only of a damaged file: one that could be read is complete
        _replace(outbox.with_name(outbox.name + end), kept.with_name(kept.name + end))
    _replace(outbox, kept)


def _rewrite(file: Path, text: str) -> None:
    """Replace a file's text, with its rights."""
    temporary = file.with_name(f".{file.name}.new")
    disk.write(temporary, text.encode())
    shutil.copymode(file, temporary)
    if os.geteuid() == 0:
        os.chown(temporary, file.stat().st_uid, file.stat().st_gid)
    temporary.replace(file)
    disk.sync(file.parent)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        body = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) and {"keep", "stamp", "copied"} <= body.keys() else None


def _without_name(file: Path) -> str | None:
    """Return a configuration without the node's name; None if it has none.

    Raises: ConfigError: the name cannot be removed without changing anything else.
    """
    document = Document.read(file)
    line = document.line_of(["node", "name"])
    if "name" not in (document.content.get("node") or {}) or line is None:
        return None
    lines = file.read_text("utf-8").splitlines(keepends=True)
    expected = document.content | {"node": {key: one for key, one in document.content["node"].items() if key != "name"}}
    for changed in _candidates(lines, line - 1):
        with suppress(ConfigError):
            if Document(changed, file).content == expected:
                return changed
    raise ConfigError(
        f"The node's name cannot be removed from {file}:{line}",
        remedy="Write `node:` as a block, one key a line; or remove the name yourself.",
    )


def _candidates(lines: list[str], at: int) -> Iterator[str]:
    """Yield texts without the name in a line: as a line of its own, and between braces."""
    without = lines[:at] + lines[at + 1 :]
    yield "".join(without)
    if at and lines[at - 1].split("#")[0].strip() == "node:":  # it was the only key
        yield "".join([*lines[: at - 1], "node: {}\n", *lines[at + 1 :]])
    for found in _NAME.finditer(lines[at]):
        between = "" if found[1] is None or found[3] is None else ", "
        yield "".join([*lines[:at], lines[at][: found.start()] + between + lines[at][found.end() :], *lines[at + 1 :]])
