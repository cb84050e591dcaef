"""Of a sparse array, time and memory go with what is cached or selected, not with the grid.

Seen of an array of 240 million chunks of which ten were there: `coverage` and ``zarr-cache map``
took more than five minutes, and a dry run ran out of memory.
"""

from __future__ import annotations

import itertools
import tracemalloc
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, override

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from zarr.core.chunk_key_encodings import ChunkKeyEncoding
from zarr.registry import register_chunk_key_encoding
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import STRESS, CountingStore
from tests.warming.test_chunk_grid import selections
from zarr_cache import CacheStore, OfflineError, SqliteStore, coverage, warm
from zarr_cache.cli import app
from zarr_cache.warming.cached_chunks import MISSING, PAGE, States
from zarr_cache.warming.chunk_grid import StoredChunks
from zarr_cache.warming.coverage import cached_places
from zarr_cache.warming.coverage_map import map_of
from zarr_cache.warming.shard_index import Shards

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import Call

MANY = 240_000_000

VAST = 10**15

MIB = 2**20


class Written(NamedTuple):
    """How an array is written, and how many chunks it has."""

    settings: dict[str, Any]
    chunks: int


LAYOUTS = {
    "three dimensions": Written({"shape": (2000, 1200, 800), "chunks": (2, 2, 2)}, MANY),
    "one dimension": Written({"shape": (2 * MANY,), "chunks": (2,)}, MANY),
    "format 2": Written({"shape": (2000, 1200, 800), "chunks": (2, 2, 2), "zarr_format": 2}, MANY),
    "shards": Written(
        {"shape": (2000, 1200, 800), "chunks": (2, 2, 2), "shards": (4, 4, 4)}, MANY // 8
    ),
    "shards of one chunk": Written(
        {"shape": (2000, 1200, 800), "chunks": (2, 2, 2), "shards": (2, 2, 2)}, MANY
    ),
}

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


def sparse(memory: Any, written: Written, name: str = "") -> None:
    """An array of which ten chunks, or ten shards, are there."""
    array = zarr.create_array(
        memory, name=name or None, dtype="u1", fill_value=0, compressors=None, **written.settings
    )
    for place in range(10):
        array[(slice(place * 50, place * 50 + 1),) * array.ndim] = 1


def opened(path: Path, memory: MemoryStore, **settings: Any) -> zarr.Array[Any]:
    """The array through a CacheStore, with what is there of it cached."""
    store = CacheStore(memory, cache_store=SqliteStore(path), namespace="source", **settings)
    for key in memory._store_dict:
        store.get_sync(key)
    store.flush()
    return zarr.open_array(store, mode="r")


def peak(call: Any) -> int:
    """The most bytes that Python and numpy held during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_layout
def test_coverage_has_every_chunk_and_looks_at_those_that_are_cached(
    path: Path, layout: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryStore()
    sparse(memory, layout)
    array = opened(path, memory)
    found = coverage(array)

    assert found.size == layout.chunks
    places = np.flatnonzero(found)
    assert len(places) == 10

    def fail(*_: object) -> None:
        raise AssertionError("the keys of the grid are walked")

    monkeypatch.setattr(StoredChunks, "keys", fail)
    assert coverage(array).size == layout.chunks


@pytest.mark.parametrize("persist_ranges", [False, True])
def test_coverage_of_inner_chunks_takes_memory_for_the_result_alone(
    path: Path, persist_ranges: bool
) -> None:
    memory = MemoryStore()
    sparse(memory, LAYOUTS["shards"])
    array = opened(path, memory, persist_ranges=persist_ranges)
    found: list[Any] = []

    most = peak(lambda: found.append(coverage(array, inner=True)))

    assert found[0].size == MANY
    # Of eight inner chunks each.
    assert np.count_nonzero(found[0]) == 80
    assert most < MANY + 8 * MIB


@every_layout
@pytest.mark.parametrize("persist_ranges", [False, True])
def test_a_dry_run_counts_the_chunks_and_lists_none(
    path: Path, layout: Written, persist_ranges: bool
) -> None:
    memory = MemoryStore()
    sparse(memory, layout)
    array = opened(path, memory, persist_ranges=persist_ranges)
    plans: list[Any] = []

    most = peak(lambda: plans.append(warm(array, dry_run=True)))

    (plan,) = plans
    in_each = 8 if persist_ranges and layout is LAYOUTS["shards"] else 1
    assert plan.chunks == layout.chunks * in_each
    assert plan.cached == 10 * in_each
    assert plan.requests == layout.chunks - 10
    assert most < 16 * MIB


@pytest.mark.parametrize(
    ("selection", "chunks"),
    [
        (np.s_[::2], MANY),
        (np.s_[::3], MANY // 3 * 2),
        (np.s_[5 : 2 * MANY - 4 : 7], (2 * MANY - 9) // 7 + 1),
        ([5, 0, -1], 3),
        (np.s_[-3:], 2),
    ],
)
def test_a_dry_run_of_a_selection_takes_no_memory_for_the_others(
    path: Path, selection: Any, chunks: int
) -> None:
    memory = MemoryStore()
    sparse(memory, LAYOUTS["one dimension"])
    array = opened(path, memory)
    plans: list[Any] = []

    most = peak(lambda: plans.append(warm(array, selection, dry_run=True)))

    assert plans[0].chunks == chunks
    assert most < 16 * MIB


def test_a_dry_run_of_a_group_of_such_arrays_counts_them_all(path: Path) -> None:
    memory = MemoryStore()
    zarr.create_group(memory)
    for number, layout in enumerate(LAYOUTS.values()):
        if layout.settings.get("zarr_format") != 2:
            sparse(memory, layout, f"t{number}")
    store = CacheStore(memory, cache_store=SqliteStore(path))
    group = zarr.open_group(store, mode="r")
    plans: list[Any] = []

    most = peak(lambda: plans.append(warm(group, dry_run=True)))

    assert plans[0].chunks == 3 * MANY + MANY // 8
    assert most < 16 * MIB


@every_layout
@pytest.mark.parametrize("inner", [False, True])
def test_a_map_takes_memory_for_its_cells_alone(path: Path, layout: Written, inner: bool) -> None:
    memory = MemoryStore()
    sparse(memory, layout)
    array = opened(path, memory)

    def draw() -> None:
        drawn = map_of(cached_places(array, inner=inner), "t", most=(40, 100))
        lines.append(drawn.caption[0])

    lines: list[str] = []
    most = peak(draw)

    is_inner = inner and layout is LAYOUTS["shards"]
    chunks, cached = (MANY, 80) if is_inner else (layout.chunks, 10)
    assert lines == [f"{cached} of {chunks} chunks cached (0 %)"]
    assert most < 8 * MIB


@pytest.mark.parametrize("arguments", [(), ("--inner",), ("--slice", "0,:,100:500")])
def test_the_command_draws_such_an_array(
    tmp_path: Path, path: Path, arguments: tuple[str, ...]
) -> None:
    folder = tmp_path / "sparse.zarr"
    sparse(LocalStore(folder), LAYOUTS["shards"], "")
    source = LocalStore(folder, read_only=True)
    store = CacheStore(source, cache_store=SqliteStore(path))
    array = zarr.open_array(store, mode="r")
    warm(array, np.s_[0, 0, 400])
    store.close()
    file = tmp_path / "map.svg"
    command = ["map", str(folder), "--cache-file", str(path), *arguments]

    shown = CliRunner().invoke(app, command)
    drawn = CliRunner().invoke(app, [*command, "--output", str(file)])

    expected = {
        (): "1 of 30000000 shards cached (0 %)",
        ("--inner",): "8 of 240000000 inner chunks cached (0 %)",
        ("--slice", "0,:,100:500"): "1 of 30000 shards cached (0 %)",
    }[arguments]
    assert expected in shown.stdout
    assert drawn.stdout.startswith(f"{file}: {expected}")
    assert file.read_text(encoding="utf-8").startswith("<svg ")


# So many that not even a byte for each would do


VAST_LAYOUTS = [
    Written({"shape": (10**8, 10**7), "chunks": (1, 1)}, VAST),
    Written({"shape": (VAST,), "chunks": (1,)}, VAST),
    Written({"shape": (10**6,) * 4, "chunks": (1,) * 4}, 10**24),
    Written({"shape": (4 * 10**8, 10**7), "chunks": (1, 1), "shards": (2, 2)}, VAST),
]

vast = pytest.mark.parametrize(
    "layout", VAST_LAYOUTS, ids=["a plane", "a line", "10^24 chunks", "shards"]
)


@vast
def test_a_map_and_a_dry_run_of_any_number_of_chunks_are_made(path: Path, layout: Written) -> None:
    memory = MemoryStore()
    sparse(memory, layout)
    array = opened(path, memory)

    drawn = map_of(cached_places(array), "t", most=(40, 100))
    plan = warm(array, dry_run=True)

    assert drawn.caption[0] == f"10 of {layout.chunks} chunks cached (0 %)"
    assert (plan.chunks, plan.cached) == (layout.chunks, 10)
    assert f"{layout.chunks}" in str(plan)


@vast
def test_coverage_of_too_many_chunks_is_an_error_that_says_what_to_do(
    path: Path, layout: Written
) -> None:
    memory = MemoryStore()
    sparse(memory, layout)
    array = opened(path, memory)

    with pytest.raises(MemoryError, match=f"'' has {layout.chunks} chunks, .* zarr-cache map"):
        coverage(array)


class EndingStore(CountingStore):
    """A source that ends a run at the request of this number."""

    ends_at: ClassVar = 1000 * STRESS

    @override
    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        if "c/" in key and self.requests["get"] > self.ends_at:
            raise OfflineError(key, "source")
        return await super()._ask(method, key, call)


@pytest.mark.parametrize("persist_ranges", [False, True])
@vast
def test_a_run_requests_the_chunks_one_by_one_and_lists_none(
    path: Path, layout: Written, persist_ranges: bool
) -> None:
    memory = MemoryStore()
    zarr.create_array(memory, dtype="u1", fill_value=0, **layout.settings)
    source = EndingStore(memory)
    store = CacheStore(
        source, cache_store=SqliteStore(path), namespace="source", persist_ranges=persist_ranges
    )
    array = zarr.open_array(store, mode="r")

    def run() -> None:
        with pytest.raises(OfflineError):
            warm(array)

    most = peak(run)

    assert source.requests["get"] > EndingStore.ends_at
    assert most < 64 * MIB


# What is found by arithmetic is what is found by a walk


LENGTHS = (23, 17)


FORMS = ["c/{0}/{1}", "c/0{0}/{1}", "c/{0}", "c/{0}/{1}/0", "x/{0}/{1}", "c/-{0}/{1}", "zarr.json"]


KEYS = [form.format(*place) for form in FORMS for place in np.ndindex(LENGTHS)]


@given(st.tuples(*map(selections, LENGTHS)), st.tuples(*[st.integers(1, 5)] * 2))
def test_a_key_is_found_if_the_selection_touches_its_chunk(
    selection: tuple[Any, Any], chunks: tuple[int, int]
) -> None:
    array = zarr.create_array(MemoryStore(), shape=LENGTHS, chunks=chunks, dtype="u1")
    touched = StoredChunks(array, selection)
    every = list(touched.keys())
    numbers = {key: number for number, key in enumerate(every)}

    one_by_one = [found for key in KEYS for found in touched.find([key])]

    assert sorted(set(one_by_one)) == [(numbers[key], key) for key in every]
    assert touched.find(set(KEYS)) == sorted(set(one_by_one))
    assert [touched.key_at(number) for number in range(touched.count)] == every


@given(
    st.tuples(*map(selections, LENGTHS)),
    st.tuples(*[st.integers(1, 5)] * 2),
    st.tuples(*[st.integers(1, 4)] * 2),
)
def test_the_shards_have_the_inner_chunks_that_the_selection_touches(
    selection: tuple[Any, Any], chunks: tuple[int, int], per_shard: tuple[int, int]
) -> None:
    shape = tuple(chunk * number for chunk, number in zip(chunks, per_shard, strict=True))
    array = zarr.create_array(MemoryStore(), shape=LENGTHS, chunks=chunks, shards=shape, dtype="u1")
    elements = np.zeros(LENGTHS, bool)
    elements[
        np.ix_(
            *(
                np.atleast_1d(np.arange(n)[one])
                for n, one in zip(LENGTHS, map(indexable, selection), strict=True)
            )
        )
    ] = True
    expected: dict[str, set[tuple[int, ...]]] = {}
    for row, column in np.argwhere(elements).tolist():
        inner = (row // chunks[0], column // chunks[1])
        shard = tuple(place // number for place, number in zip(inner, per_shard, strict=True))
        place = tuple(each % number for each, number in zip(inner, per_shard, strict=True))
        expected.setdefault("c/{}/{}".format(*shard), set()).add(place)

    shards = Shards(array, per_shard, selection)

    found = {
        shard.key: set(itertools.product(*(each.ravel().tolist() for each in shard.inside)))
        for shard in shards
    }
    whole = [shard.key for shard in shards if shard.is_whole]
    assert found == expected
    assert whole == [key for key in found if len(found[key]) == np.prod(per_shard)]
    assert shards.count_whole() == len(whole)
    assert sum(shard.size for shard in shards) == np.prod(shards.shape)


def indexable(one: Any) -> Any:
    return np.array(one, int) if isinstance(one, list) else one


@given(st.integers(1, 3 * PAGE), st.data())
def test_states_are_counted_and_sampled_as_in_a_list(count: int, data: st.DataObject) -> None:
    numbers = st.integers(0, count - 1)
    changes = data.draw(st.lists(st.tuples(numbers, st.integers(0, 3)), max_size=count))
    most = data.draw(st.integers(1, 40))
    states, every = States(count), [MISSING] * count
    for number, state in changes:
        states[number] = every[number] = state
    missing = [number for number, state in enumerate(every) if state == MISSING]

    some = states.some_missing(most)

    assert [states[number] for number in range(count)] == every
    assert [states.count(state) for state in range(4)] == [every.count(each) for each in range(4)]
    assert list(states.missing()) == missing
    assert list(states.known()) == [(n, state) for n, state in enumerate(every) if state]
    assert some == (missing if len(missing) <= most else sorted(set(some) & set(missing)))
    assert len(some) == min(most, len(missing))


class ReversedKeys(ChunkKeyEncoding):
    """Keys that zarr can make, and not decode."""

    name: ClassVar[str] = "reversed"

    @override
    def encode_chunk_key(self, chunk_coords: tuple[int, ...]) -> str:
        return "/".join(["r", *map(str, reversed(chunk_coords))])


def test_keys_that_cannot_be_decoded_are_found_by_a_walk(path: Path) -> None:
    register_chunk_key_encoding("reversed", ReversedKeys)
    memory = MemoryStore()
    zarr.create_array(
        memory, shape=(4, 6), chunks=(2, 2), dtype="u1", chunk_key_encoding=ReversedKeys()
    )[...] = 1
    store = CacheStore(memory, cache_store=SqliteStore(path))
    array = zarr.open_array(store, mode="r")

    warm(array, np.s_[:2, 2:])

    assert coverage(array).tolist() == [[False, True, True], [False, False, False]]
