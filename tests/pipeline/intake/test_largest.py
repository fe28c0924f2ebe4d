"""Who has most: always the same as if all were asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.intake.largest import Largest


class Holder:
    def __init__(self, weight: int) -> None:
        self.weight = weight


def weight_of(holder: Holder) -> int:
    return holder.weight


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 5)), max_size=200),
)
def test_it_returns_the_largest_of_the_others_however_weights_change(
    weights: list[int], changes: list[tuple[int, int, int]]
) -> None:
    holders = [Holder(weight) for weight in weights]
    largest = Largest(holders, weight_of)
    for changed, weight, own in changes:
        holder, asking = holders[changed % len(holders)], holders[own % len(holders)]
        grown, holder.weight = weight > holder.weight, weight
        if grown:
            largest.grown(holder)
        most = max((each.weight for each in holders if each is not asking), default=0)
        found = largest.first(asking)
        assert (0 if found is None else found.weight) == most
        assert found is not asking


def test_entries_that_are_out_of_date_do_not_add_up() -> None:
    holders = [Holder(1) for _ in range(10)]
    largest = Largest(holders, weight_of)
    for number in range(10_000):
        holders[number % 10].weight = 2
        largest.grown(holders[number % 10])
        holders[number % 10].weight = 1

    assert len(largest._entries) <= 84
    assert largest.first(Holder(0)) in holders
