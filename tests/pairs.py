"""Which combinations of parameters are tried when each pair of values is enough."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

type Combination = tuple[int, ...]
"""The number of the value of each parameter."""


def covering(tried: Sequence[Combination]) -> list[Combination]:
    """Those whose numbers add up to a multiple of the number of values of the shortest parameter.

    Of three parameters or more with all their combinations, these have each pair of values: a third
    parameter has the value that completes the sum.

    Raises
    ------
    ValueError
        A pair would be lost, as with two parameters. Do not mark such a test.
    """
    step = min(len(set(values)) for values in zip(*tried, strict=True))
    kept = [each for each in tried if sum(each) % step == 0]
    if lost := pairs(tried) - pairs(kept):
        message = f"{len(lost)} pairs of values are only in combinations that are left out"
        raise ValueError(message)
    return kept


def numbered(names: Sequence[str]) -> list[int]:
    """The number of each name, in the order in which they appear first."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def pairs(tried: Sequence[Combination]) -> set[tuple[tuple[int, int], ...]]:
    """Each two values, with the places of their parameters."""
    return {pair for each in tried for pair in combinations(enumerate(each), 2)}


def left_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Those of the tests marked ``pairs`` that are left to the long form.

    Arguments that get their values together, as in ``parametrize(("table", "column"), ...)``, are
    one parameter.
    """
    of_tests: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairs"):
            of_tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left: list[pytest.Item] = []
    for name, tests in of_tests.items():
        # One name for each parametrization: `callspec.indices` numbers the tests, not the values.
        rows = [test.callspec._idlist for test in tests]
        places = list(zip(*map(numbered, zip(*rows, strict=True)), strict=True))
        try:
            kept = set(covering(places))
        except ValueError as error:
            raise pytest.UsageError(f"{name} is marked 'pairs': {error}") from error
        left += [test for test, place in zip(tests, places, strict=True) if place not in kept]
    return left
