"""Assigns the nodes of a rollout to waves. Pure.

Rules:
- Each node is in exactly one wave.
- Present nodes come before absent ones: a wave of nodes that are switched off proves nothing.
- Otherwise the order is pseudo-random but reproducible: by a digest of the rollout's name and the node's address. So the
  first nodes differ between rollouts, and a dry run shows the same plan that is executed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hedgerow.labels import Labels, Selector, parse_selector
from hedgerow.region.rollouts.planning.spec import EACH_SITE, percent, sites
from hedgerow.topics import Address


@dataclass(frozen=True, slots=True)
class Member:
    """A node selected by a rollout."""

    address: Address
    labels: Labels
    present: bool


@dataclass(frozen=True, slots=True)
class Wave:
    """A wave: its title, and its nodes in order."""

    title: str
    nodes: tuple[Address, ...]


def assign(name: str, waves: Sequence[int | str], members: Sequence[Member]) -> tuple[Wave, ...]:
    """Assign nodes to waves; empty waves are left out.

    Args:
        name: of the rollout.
        waves: as in the plan.
        members: the nodes.
    """
    left = sorted(members, key=lambda member: (not member.present, _order(name, member.address)))
    made: list[Wave] = []

    def take(title: str, chosen: Callable[[Member], bool]) -> None:
        nodes = tuple(member.address for member in left if chosen(member))
        left[:] = [member for member in left if not chosen(member)]
        if nodes:
            made.append(Wave(title, nodes))

    def first(count: int) -> Callable[[Member], bool]:
        chosen = {member.address for member in left[: max(0, count)]}
        return lambda member: member.address in chosen

    for wave in waves:
        if isinstance(wave, int):
            take(f"{wave} node{'s' if wave > 1 else ''}", first(wave))
        elif (share := percent(wave)) is not None:
            take(f"to {wave}", first(max(1, math.ceil(share * len(members) - 1e-9)) - (len(members) - len(left))))
        elif (count := sites(wave)) is not None:
            chosen = _sites_of(left)[:count]
            take(", ".join(sorted(chosen)), _at(chosen))
        elif wave == EACH_SITE:
            for site in _sites_of(left):
                take(f"site {site}", _at([site]))
        else:
            take(wave, _fits(parse_selector(wave)))
    take("the rest" if made else "all", lambda _: True)
    return tuple(made)


def wave_of(waves: Sequence[Wave]) -> Mapping[Address, int]:
    """Return the number of each node's wave, from 0."""
    return {node: number for number, wave in enumerate(waves) for node in wave.nodes}


def _at(chosen: Sequence[str]) -> Callable[[Member], bool]:
    return lambda member: member.address.site in chosen


def _fits(selector: Selector) -> Callable[[Member], bool]:
    return lambda member: selector.matches(member.labels)


def _sites_of(members: Sequence[Member]) -> list[str]:
    """Return sites in the order of their first nodes."""
    return list(dict.fromkeys(member.address.site for member in members))


def _order(name: str, address: Address) -> bytes:
    return hashlib.blake2b(f"{name}/{address}".encode(), digest_size=8).digest()
