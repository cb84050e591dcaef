"""In the short form a test marked ``pairs`` meets each pair of values, and fewer combinations."""

from __future__ import annotations

from itertools import product

import pytest

from tests.pairs import covering, pairs


@pytest.mark.parametrize("lengths", [(2, 3, 4), (6, 4, 2), (3, 3, 3), (2, 26, 2), (2, 3, 2, 4)])
def test_each_pair_is_tried(lengths: tuple[int, ...]) -> None:
    tried = list(product(*map(range, lengths)))

    kept = covering(tried)

    assert pairs(kept) == pairs(tried)
    assert len(kept) <= -(-len(tried) // min(lengths))


def test_of_two_parameters_nothing_may_be_left_out() -> None:
    with pytest.raises(ValueError, match="8 pairs of values are only in combinations"):
        covering(list(product(range(3), range(4)))[1:])


def test_what_is_not_a_product_and_would_lose_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="pairs of values"):
        covering([(0, 0, 1), (1, 1, 0), (0, 1, 1)])
