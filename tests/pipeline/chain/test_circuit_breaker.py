"""The circuit breaker on its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.pipeline.chain.circuit_breaker import CircuitBreaker


def opened(at: float = 0.0) -> CircuitBreaker:
    circuit = CircuitBreaker(threshold=3, pause_s=1.0, longest_pause_s=8.0)
    assert [circuit.failed(at) for _ in range(3)] == [False, False, True]
    return circuit


def test_it_opens_after_the_threshold_of_failures_in_a_row() -> None:
    circuit = opened()

    assert circuit.is_open
    assert not circuit.take_trial(0.9)


def test_a_success_resets_the_failure_count() -> None:
    circuit = CircuitBreaker(threshold=3)
    for _ in range(10):
        assert not circuit.failed(0)
        assert not circuit.failed(0)
        assert not circuit.succeeded()

    assert not circuit.is_open


def test_a_successful_trial_after_the_pause_closes_it() -> None:
    circuit = opened()

    assert circuit.take_trial(1.0)
    assert circuit.succeeded()
    assert not circuit.is_open
    assert [circuit.failed(2) for _ in range(3)] == [False, False, True], "the first pause applies again"
    assert circuit.open_until == 3.0


def test_one_caller_gets_the_trial_and_if_it_hangs_another_gets_one_after_the_next_pause() -> None:
    circuit = opened()

    assert [circuit.take_trial(now) for now in (1.0, 1.0, 1.9, 2.0, 2.0)] == [True, False, False, True, False]


def test_a_closed_circuit_grants_no_trial() -> None:
    assert not CircuitBreaker().take_trial(5.0)


def test_each_failed_trial_doubles_the_pause_up_to_the_longest() -> None:
    circuit = opened()
    pauses = []
    for _ in range(6):
        now = circuit.open_until
        assert now is not None
        assert circuit.take_trial(now)
        assert not circuit.failed(now, trial=True)
        pauses.append((circuit.open_until or 0) - now)

    assert pauses == [2, 4, 8, 8, 8, 8]


def test_by_default_ten_failures_open_it_for_one_second_and_at_most_a_minute() -> None:
    circuit = CircuitBreaker()
    assert [circuit.failed(0.0) for _ in range(10)] == [*[False] * 9, True]
    pauses = [circuit.open_until]
    for _ in range(7):
        circuit.open_until = 0.0
        assert not circuit.failed(0.0, trial=True)
        pauses.append(circuit.open_until)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_rest_of_a_failing_list_does_not_lengthen_the_pause() -> None:
    """A list of 64 failing frames is one failed trial, not 54."""
    circuit = opened()
    for _ in range(61):
        circuit.failed(1.01)

    assert circuit.open_until == 1.0


@given(st.lists(st.booleans()))
def test_it_is_open_only_after_failures_in_a_row(outcomes: list[bool]) -> None:
    circuit = CircuitBreaker(threshold=3)
    for success in outcomes:
        circuit.succeeded() if success else circuit.failed(0.0)

    assert circuit.is_open == (len(outcomes) >= 3 and not any(outcomes[-3:]))
