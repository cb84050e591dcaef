"""After a failure the circuit is open for a while, and one operation at a time tries again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zarr_cache.backend.failures import CircuitBreaker
from zarr_cache.core.errors import CircuitOpenError, FileLockedError

if TYPE_CHECKING:
    from tests.fakes import HeldTime

LOCKED = FileLockedError("cache.sqlite: database is locked")


def tries(breaker: CircuitBreaker, held_time: HeldTime, seconds: int) -> list[int]:
    """After how many seconds an operation was let through; each fails."""
    found = []
    for second in range(seconds + 1):
        try:
            breaker.check()
        except CircuitOpenError:
            pass  # not now
        else:
            found.append(second)
            breaker.record_failure(LOCKED)
        held_time.step(1)
    return found


def half_open(held_time: HeldTime, failures: int = 1) -> CircuitBreaker:
    """One after the first failures, when an operation may try again."""
    breaker = CircuitBreaker()
    for _ in range(failures):
        breaker.record_failure(LOCKED)
    held_time.step(1)
    return breaker


def test_every_operation_may_try_while_none_fails(held_time: HeldTime) -> None:
    breaker = CircuitBreaker()
    for _ in range(3):
        breaker.check()
        breaker.record_success()
        held_time.step(1)

    assert breaker.is_closed


def test_trials_come_at_twice_the_distance_each_time(held_time: HeldTime) -> None:
    assert tries(CircuitBreaker(), held_time, 130) == [0, 1, 3, 7, 15, 31, 63, 123]


def test_only_one_tries_at_a_time(held_time: HeldTime) -> None:
    breaker = half_open(held_time)
    breaker.check()

    with pytest.raises(CircuitOpenError, match="database is locked"):
        breaker.check()


def test_raise_if_open_leaves_the_trial_to_another_caller(held_time: HeldTime) -> None:
    breaker = half_open(held_time)

    breaker.raise_if_open()
    breaker.check()


def test_operations_begun_before_the_first_failure_do_not_count(held_time: HeldTime) -> None:
    half_open(held_time, failures=8).check()


def test_a_success_closes_the_circuit(held_time: HeldTime) -> None:
    breaker = half_open(held_time)
    breaker.check()
    breaker.record_success()

    breaker.check()
    breaker.check()


def test_a_failure_that_comes_back_soon_opens_the_circuit_for_longer(held_time: HeldTime) -> None:
    breaker = CircuitBreaker()
    for _ in range(3):
        breaker.record_failure(LOCKED)
        held_time.step(5)
        breaker.check()
        breaker.record_success()
    breaker.record_failure(LOCKED)
    held_time.step(7)

    with pytest.raises(CircuitOpenError):
        breaker.check()


def test_a_failure_that_comes_back_late_is_a_new_one(held_time: HeldTime) -> None:
    breaker = half_open(held_time)
    breaker.check()
    breaker.record_success()
    held_time.step(100)
    breaker.record_failure(LOCKED)
    held_time.step(1)

    breaker.check()


@pytest.mark.usefixtures("held_time")
def test_an_operation_may_try_at_once_when_the_circuit_is_half_open() -> None:
    breaker = CircuitBreaker()
    breaker.record_failure(LOCKED)
    breaker.half_open()

    breaker.check()
