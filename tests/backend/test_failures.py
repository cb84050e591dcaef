"""A file that has failed is left alone for a while, and tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zarr_cache.backend.failures import Breaker
from zarr_cache.core.errors import CircuitOpenError, FileLockedError

if TYPE_CHECKING:
    from tests.fakes import HeldTime

LOCKED = FileLockedError("cache.sqlite: database is locked")


def tries(breaker: Breaker, held_time: HeldTime, seconds: int) -> list[int]:
    """After how many seconds an operation was let through, each of which fails."""
    found = []
    for second in range(seconds + 1):
        try:
            breaker.check()
        except CircuitOpenError:
            pass  # not now
        else:
            found.append(second)
            breaker.failed(LOCKED)
        held_time.step(1)
    return found


def test_every_operation_is_let_through_while_none_fails(held_time: HeldTime) -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.check()
        breaker.succeeded()
        held_time.step(1)

    assert breaker.is_closed


def test_trials_come_at_twice_the_distance_each_time(held_time: HeldTime) -> None:
    assert tries(Breaker(), held_time, 130) == [0, 1, 3, 7, 15, 31, 63, 123]


def test_only_one_tries_at_a_time(held_time: HeldTime) -> None:
    breaker = Breaker()
    breaker.failed(LOCKED)
    held_time.step(1)
    breaker.check()

    with pytest.raises(CircuitOpenError, match="database is locked"):
        breaker.check()


def test_who_only_looks_keeps_nobody_from_trying(held_time: HeldTime) -> None:
    breaker = Breaker()
    breaker.failed(LOCKED)
    held_time.step(1)

    breaker.look()
    breaker.check()


def test_those_that_had_begun_before_the_first_failure_do_not_count(held_time: HeldTime) -> None:
    breaker = Breaker()
    for _ in range(8):
        breaker.failed(LOCKED)
    held_time.step(1)

    breaker.check()


def test_a_success_lets_all_through(held_time: HeldTime) -> None:
    breaker = Breaker()
    breaker.failed(LOCKED)
    held_time.step(1)
    breaker.check()
    breaker.succeeded()

    breaker.check()
    breaker.check()


def test_a_fault_that_comes_back_soon_is_waited_for_longer(held_time: HeldTime) -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(LOCKED)
        held_time.step(5)
        breaker.check()
        breaker.succeeded()
    breaker.failed(LOCKED)
    held_time.step(7)

    with pytest.raises(CircuitOpenError):
        breaker.check()


def test_a_fault_that_comes_back_late_is_a_new_one(held_time: HeldTime) -> None:
    breaker = Breaker()
    breaker.failed(LOCKED)
    held_time.step(1)
    breaker.check()
    breaker.succeeded()
    held_time.step(100)
    breaker.failed(LOCKED)
    held_time.step(1)

    breaker.check()


@pytest.mark.usefixtures("held_time")
def test_who_cannot_wait_tries_at_once() -> None:
    breaker = Breaker()
    breaker.failed(LOCKED)
    breaker.try_again()

    breaker.check()
