"""Steps of a node's life beside the region's store: its certificate, and its place in the topology; done, or shown."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hedgerow.cli.base.console import echo
from hedgerow.errors import ConfigError

if TYPE_CHECKING:
    from hedgerow.pki.folder import Pki

_NODE_LIFE_DAYS: Final = 30


class LifeSteps:
    """What has to be done beside the region's store: done here, or shown for the operator to do.

    Args:
        dry_run: do nothing.
    """

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run
        self._done: list[str] = []
        self._left: list[str] = []

    def revoke(self, folder: Path | None, who: str, reason: str) -> None:
        """Revoke a certificate, unless it is."""
        if folder is None or self._dry_run:
            self._left.append(f"hedgerow pki revoke {who} --reason {reason}")
            return
        from hedgerow.pki.names import parse

        authorities, identity = _open(folder), parse(who)
        entry = authorities.find(identity)
        if entry is None or entry.revoked is not None:
            authorities.complete()
            self._done.append(f"{who} has no valid certificate in {folder}")
        else:
            authorities.revoke(identity, reason)
            self._done.append(f"the certificate of {who} is revoked")
        lists = authorities.lists(identity.authority)
        self._left.append(f"copy to the brokers first, then `kill -HUP` each: {', '.join(str(path) for path in lists)}")

    def issue(self, folder: Path | None, who: str, *, if_enrolled: str, was: str | None = None) -> None:
        """Issue a certificate, unless there is a valid one, or the machine enrolled: then it gets one for its own key.

        Args:
            if_enrolled: what is to be done then.
            was: who it was before; None: the same.
        """
        if folder is None or self._dry_run:
            self._left += [f"hedgerow pki issue {who}", f"or instead, if its machine enrolled: {if_enrolled}"]
            return
        from hedgerow.pki.names import parse

        authorities, identity = _open(folder), parse(who)
        if authorities.keeps_own_key(identity if was is None else parse(was)):
            self._left.append(if_enrolled)
            return
        entry = authorities.find(identity)
        if entry is None or entry.revoked is not None:
            entry = authorities.issue(identity, timedelta(days=_NODE_LIFE_DAYS))
        else:
            authorities.complete()
        self._done.append(f"the certificate of {who} is in {entry.folder}")

    def edit(self, file: Path | None, change: str, edit: Callable[[Path], bool]) -> None:
        """Change the topology, unless it has the change."""
        if file is None or self._dry_run:
            self._left.append(f"in the topology: {change}")
        else:
            try:
                self._done.append(f"{file}: {'changed' if edit(file) else 'it is so already'}")
            except ConfigError as error:
                self._left.append(f"in {file}, which could not be changed: {change}. {error} {error.remedy}")
        self._left.append(
            f"hedgerow topology render {file or 'topology.yaml'} --out rendered, and distribute the access lists"
        )

    def reply(self) -> dict[str, Any]:
        """Return the steps for --json."""
        return {"done": self._done, "left": self._left}

    def show(self) -> None:
        """Print the steps."""
        for done in self._done:
            echo(f"Done: {done}.")
        if self._left:
            echo("Would be left to do:" if self._dry_run else "Left to do:")
        for left in self._left:
            echo(f"  {left}")


def _open(folder: Path) -> Pki:
    from hedgerow.pki.folder import Pki

    return Pki(folder, lambda: datetime.now(UTC))
