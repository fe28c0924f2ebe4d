"""Waves: their sizes, titles and reproducible order."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hedgerow.region.rollouts.planning.waves import Member, Wave, assign, wave_of
from hedgerow.topics import Address


def member(number: int, site: str = "s", *, present: bool = True, **labels: str) -> Member:
    return Member(Address("r", site, f"n{number}"), labels, present)


def fleet(count: int) -> list[Member]:
    return [member(number) for number in range(count)]


def sizes(waves: list[int | str], members: list[Member]) -> Mapping[str, int]:
    return {wave.title: len(wave.nodes) for wave in assign("faces-2", waves, members)}


@pytest.mark.parametrize(
    ("waves", "count", "expected"),
    [
        ([], 3, {"all": 3}),
        ([1], 3, {"1 node": 1, "the rest": 2}),
        ([2], 3, {"2 nodes": 2, "the rest": 1}),
        ([3], 3, {"3 nodes": 3}),
        ([1, 2], 4, {"1 node": 1, "2 nodes": 2, "the rest": 1}),
        ([5], 3, {"5 nodes": 3}),
        (["0%"], 50, {"to 0%": 1, "the rest": 49}),
        (["7%"], 100, {"to 7%": 7, "the rest": 93}),
        (["50%"], 3, {"to 50%": 2, "the rest": 1}),
        (["5%", "25%"], 40, {"to 5%": 2, "to 25%": 8, "the rest": 30}),
        (["50%", "25%"], 4, {"to 50%": 2, "the rest": 2}),
        ([3, "50%"], 4, {"3 nodes": 3, "the rest": 1}),
        (["100%"], 4, {"to 100%": 4}),
    ],
)
def test_waves_have_the_planned_sizes(waves: list[int | str], count: int, expected: Mapping[str, int]) -> None:
    assert sizes(waves, fleet(count)) == expected


def test_waves_by_site_are_titled_by_site() -> None:
    members = [member(number, f"s{number % 3}") for number in range(9)]

    assert sizes(["each site"], members) == {"site s0": 3, "site s1": 3, "site s2": 3}
    assert sizes(["3 sites"], members) == {"s0, s1, s2": 9}
    (two, rest) = assign("faces-2", ["2 sites"], members)
    assert two.title == ", ".join(sorted({node.site for node in two.nodes}))
    assert (rest.title, len(rest.nodes)) == ("the rest", 3)
    (one, _) = assign("faces-2", ["1 site"], members)
    assert one.title == one.nodes[0].site


def test_a_wave_by_label_has_the_matching_nodes() -> None:
    members = [member(number, ring="early" if number < 3 else "late") for number in range(8)]
    (early, rest) = assign("faces-2", ["ring=early"], members)

    assert (early.title, sorted(early.nodes)) == ("ring=early", [one.address for one in members[:3]])
    assert rest.title == "the rest"
    assert sizes(["ring=none"], members) == {"all": 8}


def test_present_nodes_come_first() -> None:
    members = [member(number, present=number >= 4) for number in range(8)]
    (first, rest) = assign("faces-2", [4], members)

    assert set(first.nodes) == {one.address for one in members if one.present}
    assert set(rest.nodes) == {one.address for one in members if not one.present}


def test_the_order_is_reproducible_and_differs_between_rollouts() -> None:
    """A region upgraded during a rollout still uses the waves that the dry run showed."""

    def order(name: str) -> str:
        return " ".join(node.node for wave in assign(name, [], fleet(8)) for node in wave.nodes)

    assert order("faces-2") == "n6 n0 n4 n1 n5 n7 n3 n2"
    assert order("faces-3") != order("faces-2")


def test_wave_of_maps_nodes_to_wave_numbers() -> None:
    a, b, c = (Address("r", "s", node) for node in "abc")

    assert wave_of([Wave("first", (b,)), Wave("second", (a, c))]) == {b: 0, a: 1, c: 1}
