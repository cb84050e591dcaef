"""What people are told about other sizes, from the curve of hit rate over size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cache.other_sizes import Axis, axis_of, best_of, better_of, by_size, sentence
from zarr_cache.sampling.curve import Curve

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store

    from zarr_cache.flows.settings import WhenFull

MIB, GIB = 2**20, 2**30


def curve(*points: tuple[float, float]) -> Curve:
    """Through these sizes in GiB and rates."""
    return Curve(
        tuple(int(size * GIB) for size, _ in points), tuple(rate for _, rate in points), 1000.0
    )


BENT = curve((1, 0.1), (8, 0.61), (20, 0.83), (24, 0.85), (64, 0.85))
"""It rises much up to 20 GiB, and ends at 24 GiB."""

JUMP = curve((1, 0.0), (23.9, 0.0), (24, 0.8), (64, 0.8))
"""Epochs: nothing is served until all fits."""


def test_a_better_size_and_the_best_one_are_named_beside_the_present_one() -> None:
    assert sentence(BENT, 8 * GIB) == (
        "20 GiB would have served 83 % of the bytes; now 61 % with 8 GiB; "
        "more than 24 GiB (85 %) would bring nothing."
    )


def test_where_the_curve_does_not_bend_only_the_best_size_is_named() -> None:
    assert sentence(JUMP, 8 * GIB) == (
        "24 GiB would have served 80 % of the bytes; now 0 % with 8 GiB; more would bring nothing."
    )


def test_without_a_limit_nothing_is_said_of_the_present_size() -> None:
    assert sentence(BENT, None) == (
        "8 GiB would have served 61 % of the bytes; more than 24 GiB (85 %) would bring nothing."
    )
    assert sentence(JUMP, None) == (
        "24 GiB would have served 80 % of the bytes; more would bring nothing."
    )


def test_a_cache_that_is_large_enough_needs_no_more() -> None:
    assert sentence(BENT, 30 * GIB) == (
        "30 GiB would have served 85 % of the bytes; more would bring nothing."
    )


def test_of_a_cache_that_is_far_too_large_the_smaller_size_is_named() -> None:
    assert sentence(BENT, 1000 * GIB) == (
        "1000 GiB would have served 85 % of the bytes, and so would 24 GiB; "
        "more would bring nothing."
    )


def test_a_size_within_one_percent_of_the_end_is_enough() -> None:
    almost = curve((1, 0.1), (10, 0.795), (100, 0.8))

    assert best_of(almost) == 10 * GIB
    assert sentence(almost, 10 * GIB) == (
        "10 GiB would have served 80 % of the bytes; more would bring nothing."
    )


def test_with_too_few_reads_the_sentence_says_so() -> None:
    assert sentence(None, GIB) == (
        "Too few reads are recorded to say what another size would bring."
    )


NOTHING = Curve((), (), 1000.0)
"""No key was read twice."""


@pytest.mark.parametrize("each", [NOTHING, curve((1, 0.0), (64, 0.004))])
def test_where_nothing_is_read_again_no_size_is_recommended(each: Curve) -> None:
    assert sentence(each, GIB) == (
        "No size would have served 1 % of the bytes: hardly any were read again."
    )


@pytest.mark.parametrize("each", [NOTHING, curve((1, 0.0), (8, 0.004))])
def test_what_is_read_again_after_too_long_is_not_known(each: Curve) -> None:
    assert sentence(each._replace(reach=8 * GIB), GIB) == (
        "No size up to 8 GiB would have served 1 % of the bytes; "
        "what a larger one would bring is not known."
    )


def test_the_sentence_says_up_to_which_size_more_brings_nothing() -> None:
    known = BENT._replace(reach=64 * GIB)

    assert sentence(known, 8 * GIB).endswith(
        "; more than 24 GiB (85 %) would bring nothing, up to 64 GiB."
    )
    assert sentence(known, 24 * GIB).endswith("; more would bring nothing, up to 64 GiB.")


def test_a_curve_that_rises_to_its_end_says_nothing_of_more() -> None:
    known = BENT._replace(reach=24 * GIB)

    assert sentence(known, 8 * GIB).endswith(
        "; what more than 24 GiB (85 %) would bring is not known."
    )
    assert sentence(JUMP._replace(reach=24 * GIB), GIB).endswith(
        "; what more would bring is not known."
    )


def test_what_a_cache_that_evicts_nothing_would_serve_is_not_what_it_serves_now() -> None:
    assert sentence(JUMP, 8 * GIB, evicts=False) == (
        "24 GiB would have served 80 % of the bytes; 8 GiB 0 % if it evicted; "
        "more would bring nothing."
    )


@pytest.mark.parametrize("max_size", [None, 0, 1, 2**62])
@pytest.mark.parametrize(
    "each",
    [
        *(BENT, JUMP, curve((1, 0.5)), Curve((1,), (1.0,), 1.0), Curve((1, 7), (0.2, 0.9), 1.0)),
        Curve((-5, 2**62 - 1, 2**62), (0.1, 0.1, 0.9), 1.0),
    ],
)
def test_there_is_a_sentence_for_each_size(each: Curve, max_size: int | None) -> None:
    assert sentence(each, max_size).endswith("would bring nothing.")


@pytest.mark.parametrize(
    ("end", "best"), [(700, 800), (801, 1024), (1500, 2048), (23 * MIB, 24 * MIB), (3 * GIB,) * 2]
)
def test_the_best_size_is_the_next_round_one(end: int, best: int) -> None:
    assert best_of(Curve((end - 1, end, 9 * end), (0.0, 0.5, 0.5), 1000.0)) == best


def test_the_better_size_is_a_tenth_larger_at_least() -> None:
    steep = curve((7.5, 0.1), (8, 0.7), (100, 0.8))

    assert better_of(steep, int(7.5 * GIB), 100 * GIB) == 10 * GIB


def test_the_axis_has_the_present_size_on_it() -> None:
    assert axis_of(BENT, None) == (GIB, 64 * GIB)
    assert axis_of(BENT, 100 * GIB) == (GIB, 100 * GIB)
    assert axis_of(BENT, MIB) == (MIB, 64 * GIB)


def test_no_size_of_the_axis_is_below_a_byte() -> None:
    axis = axis_of(Curve((-7, 0), (0.1, 0.9), 1.0), None)

    assert axis == (1, 1)
    assert axis.place(-7) == 0


def test_a_size_of_nothing_is_at_the_beginning_of_the_axis() -> None:
    axis = axis_of(BENT, 0)

    assert axis == (GIB, 64 * GIB)
    assert axis.place(0) == 0


def test_equal_ratios_are_equally_far_apart_on_the_axis() -> None:
    axis = Axis(GIB, 64 * GIB)

    assert axis.sizes(4) == pytest.approx([GIB, 4 * GIB, 16 * GIB, 64 * GIB])
    assert [axis.place(each * GIB) for each in (1, 8, 64, 99)] == pytest.approx([0, 0.5, 1, 1])


def test_the_axis_of_a_single_size_has_one_place() -> None:
    axis = axis_of(curve((1, 0.5)), None)

    assert axis.place(GIB) == 0
    assert axis.sizes(3) == [GIB] * 3


def test_rates_are_given_by_size() -> None:
    assert by_size(JUMP)[24 * GIB] == 0.8
    assert list(by_size(JUMP)) == list(JUMP.sizes)
    assert by_size(None) == {}


def in_rounds(
    cache_store: Store, *, rounds: int, max_size: int | None, when_full: WhenFull = "evict"
) -> CacheStore:
    """A CacheStore through which 30 KiB were read so often."""
    source = MemoryStore({f"c/{number}": buffer(bytes(1024)) for number in range(30)})
    store = CacheStore(
        source,
        cache_store=cache_store,
        namespace="rounds",
        max_size=max_size,
        when_full=when_full,
    )
    for _ in range(rounds):
        for number in range(30):
            store.get_sync(f"c/{number}")
    store.flush()
    return store


@pytest.fixture(params=[SqliteStore, lambda _: MemoryStore()], ids=["file", "another store"])
def cache_store(path: Path, request: pytest.FixtureRequest) -> Store:
    made: Store = request.param(path)
    return made


def test_what_is_read_in_rounds_is_served_from_the_size_that_has_room_for_all(
    cache_store: Store,
) -> None:
    store = in_rounds(cache_store, rounds=20, max_size=16 * 1024)
    rates = store.cache_info()["hit_rate_by_size"]

    assert list(rates) == sorted(rates)
    assert rates[30 * 1024] == pytest.approx(19 / 20, abs=0.01)
    assert all(rate < 0.01 for size, rate in rates.items() if size < 30 * 1024)


def test_without_a_limit_the_rates_are_known_as_well(cache_store: Store) -> None:
    store = in_rounds(cache_store, rounds=20, max_size=None)

    assert store.cache_info()["hit_rate_by_size"][30 * 1024] == pytest.approx(0.95, abs=0.01)
    assert "32 KiB would have served 95 % of the bytes; more would bring nothing." in (
        store._repr_html_()
    )


def test_of_few_reads_no_rate_is_known(cache_store: Store) -> None:
    store = in_rounds(cache_store, rounds=2, max_size=16 * 1024)

    assert store.cache_info()["hit_rate_by_size"] == {}


def test_the_present_size_is_compared_in_a_notebook(cache_store: Store) -> None:
    page = in_rounds(cache_store, rounds=20, max_size=16 * 1024)._repr_html_()

    assert "95 % of the bytes; now 0 % with 16 KiB;" in page
    assert "16 KiB now</text>" in page


def test_of_a_store_that_keeps_the_sentence_says_what_it_would_serve_if_it_evicted(
    cache_store: Store,
) -> None:
    store = in_rounds(cache_store, rounds=20, max_size=16 * 1024, when_full="keep")

    assert "95 % of the bytes; 16 KiB 0 % if it evicted;" in store._repr_html_()
