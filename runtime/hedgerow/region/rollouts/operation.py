"""An operator's request in its context, as handlers get it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hedgerow.errors import CommandError
from hedgerow.region.rollouts.fleet import Fleet
from hedgerow.region.rollouts.planning.gate import Listening
from hedgerow.region.rollouts.requests import RolloutRequest
from hedgerow.region.store.audit import Actor
from hedgerow.region.store.life.identity import aliases, forgotten_nodes
from hedgerow.topics import Address


@dataclass(frozen=True, slots=True)
class Operation:
    """A request and its context.

    Attributes:
        by: who requests it, and why.
        now: Unix seconds.
        listening: since when the region has been receiving.
    """

    fleet: Fleet
    request: RolloutRequest
    by: Actor
    now: float
    listening: Listening

    @property
    def node(self) -> Address:
        """The node that the request names. Raises: CommandError: there is none, or several; or it was renamed or forgotten."""
        if not any(_is_named(node, self.named) for node in self.fleet.observed.ids):
            for node, gone in forgotten_nodes(self.fleet.database).items():
                if _is_named(node, self.named):
                    raise CommandError(
                        f"{node} was forgotten {gone.because}",
                        code="forgotten-node",
                        remedy=f"To take it in again: `hedgerow node admit {node.site}/{node.node}`.",
                    )
        return find_node(self.fleet.observed.ids, self.named, former=self._former())

    @property
    def named(self) -> str:
        """How the request names the node."""
        return str(self.request.args["node"])

    @property
    def dry_run(self) -> bool:
        """Whether only to say what would be done."""
        return bool(self.request.args.get("dry_run"))

    def _former(self) -> dict[Address, Address]:
        addresses = {row: address for address, row in self.fleet.observed.ids.items()}
        former = aliases(self.fleet.database)
        return {address: addresses[one.node] for address, one in former.items() if one.node in addresses}

    def require_reason(self) -> None:
        """Check that the request gives a reason.

        Raises: CommandError: it gives none.
        """
        if not self.by.why:
            raise CommandError("A reason is required", code="no-reason", remedy="Give it with --why.")


Action = Callable[[Operation], Any]


def find_node(
    nodes: Iterable[Address], text: str, *, former: Mapping[Address, Address] = MappingProxyType({})
) -> Address:
    """Return the node named by `region/site/node`, `site/node` or its name alone.

    Args:
        nodes: the known nodes.
        text: the name.
        former: present addresses by former ones, to name them in the error.
    Raises: CommandError: there is no such node, or several.
    """
    found = [node for node in nodes if _is_named(node, text)]
    if len(found) == 1:
        return found[0]
    if not found and (renamed := [now for before, now in former.items() if _is_named(before, text)]):
        raise CommandError(
            f"There is no node {text} any more: it is {renamed[0]} now",
            code="renamed-node",
            remedy="Use its present name.",
        )
    if not found:
        raise CommandError(
            f"There is no node {text}", code="unknown-node", remedy="List the known nodes with `hedgerow nodes`."
        )
    shown = ", ".join(map(str, sorted(found)[:5]))
    raise CommandError(
        f"{text} matches {len(found)} nodes", code="ambiguous-node", remedy=f"Use a full address: {shown}."
    )


def _is_named(node: Address, text: str) -> bool:
    return text in (str(node), f"{node.site}/{node.node}", node.node)
