"""The sample lives in the file: processes add to it in turn, and a restart changes nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks import traces
from tests.fakes import forge, open_file, restart
from tests.sampling.reads_of_traces import (
    MIB,
    PARTS,
    batch_of,
    ids_of,
    in_batches,
    rate,
    sample_of,
    total,
)
from zarr_cache import SqliteStore
from zarr_cache.sampling import stored
from zarr_cache.sampling.curve import MIN_READS, curve_of
from zarr_cache.sampling.histogram import FADING, NEVER, PER_OCTAVE

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.traces import Sizes, Trace
    from zarr_cache.file.connection import Connection
    from zarr_cache.sampling.sample import Batch, Sample


def add(connection: Connection, batch: Batch, max_size: int | None) -> stored.Sampled:
    with connection.writing():
        return stored.add(connection, batch, max_size)


def read(connection: Connection) -> Sample:
    with connection.reading():
        return stored.read(connection)


def write(path: Path, trace: Trace, sizes: Sizes, max_size: int | None = None) -> SqliteStore:
    """Sample the reads in a file, which is closed and opened again after each batch."""
    store = SqliteStore(path)
    ids = ids_of(sizes, 0)
    for reads in in_batches(trace):
        store.database.run(add, batch_of(reads, sizes, ids, np.zeros(len(reads), bool)), max_size)
        restart(store)
    return store


@pytest.mark.parametrize("name", traces.TRACES)
def test_a_restart_after_each_batch_changes_nothing(path: Path, name: str) -> None:
    trace = traces.TRACES[name](0)
    sizes = traces.equal_sizes(trace) * MIB
    found = write(path, trace, sizes, 500 * MIB).database.run(read)
    expected = sample_of(trace, sizes, max_size=500 * MIB)

    assert found.ids.tolist() == expected.ids.tolist()
    assert found.sizes.tolist() == expected.sizes.tolist()
    assert found.rates()[0] == expected.rates()[0]
    assert found.rates()[1] == pytest.approx(expected.rates()[1])
    assert found.decision == expected.decision
    assert found.recent(500 * MIB) == pytest.approx(expected.recent(500 * MIB))


def test_the_curve_goes_from_a_part_of_the_budget_to_where_more_brings_nothing(path: Path) -> None:
    trace = traces.popular_regions(0)
    sizes = traces.equal_sizes(trace) * MIB
    curve = write(path, trace, sizes, 250 * MIB).database.run(curve_of)

    assert curve is not None
    assert curve.sizes[0] == pytest.approx(2.5 * MIB, rel=0.1)
    assert curve.sizes[-1] <= 8 * 250 * MIB
    assert list(curve.sizes) == sorted(set(curve.sizes))
    assert list(curve.rates) == sorted(curve.rates)
    assert curve.reads == pytest.approx(FADING * (1 - np.exp(-len(trace) / FADING)), rel=0.001)
    for part in PARTS[1:6]:
        size = int(part * total(trace, sizes))
        hits = traces.lru(trace, sizes, size)
        assert curve.at(size) == pytest.approx(rate(hits, trace, sizes), abs=0.02)


def test_the_curve_of_epochs_ends_at_the_size_of_all_of_it(path: Path) -> None:
    trace = traces.epochs_in_order()
    sizes = traces.equal_sizes(trace) * MIB
    curve = write(path, trace, sizes, 1000 * MIB).database.run(curve_of)

    assert curve is not None
    assert (curve.at(2499 * MIB), curve.at(10**15)) == (0, curve.rates[-1])
    assert curve.sizes[-1] == 2500 * MIB


def test_a_value_that_is_read_over_and_over_needs_its_own_size(path: Path) -> None:
    store = SqliteStore(path)
    batch = batch_of(np.array([0]), np.array([MIB]), np.array([5]), np.array([True]))
    store.database.run(add, batch._replace(counts=np.array([1000])), 10 * MIB)

    curve = store.database.run(curve_of)

    assert curve is not None
    assert curve.sizes == (MIB - 1, MIB)
    assert curve.rates == pytest.approx([0, 0.999])


def test_of_few_reads_there_is_no_curve(path: Path) -> None:
    sizes = np.full(2, MIB)
    trace = np.arange(MIN_READS) % 2

    assert write(path, trace, sizes).database.run(curve_of) is None
    assert write(path, trace[:9], sizes).database.run(curve_of) is not None


def test_the_shell_shows_the_same(path: Path) -> None:
    trace = traces.panning_viewer(0)
    sizes = traces.equal_sizes(trace) * MIB
    store = write(path, trace, sizes)
    curve = store.database.run(curve_of)
    with open_file(path) as shell:
        rows = shell.execute("SELECT size, bytes, hit_rate FROM hit_rate_by_size").fetchall()

    assert curve is not None
    assert rows[0][0] == "29.0 MiB"
    for _, nbytes, hit_rate in rows:
        assert hit_rate == pytest.approx(curve.at(nbytes), abs=0.002)


def test_the_last_bucket_is_that_of_the_script() -> None:
    assert (NEVER, PER_OCTAVE) == (496, 8)


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM sampling",
        "UPDATE sampling SET sampled = x'00'",
        "UPDATE sampling SET bytes = 9e999",
        "UPDATE sampling SET sampled = x'00000000000000000000c07f00000000'",
        "INSERT OR REPLACE INTO reuse VALUES (12345, 1, 1, 1, 1, 1), (-1, 1, 1, 1, 1, 1)",
        "INSERT OR REPLACE INTO reuse VALUES (100, 9e999, 1, 1, NULL, NULL)",
        "UPDATE sampling SET misses = 9223372036854775807",
        "UPDATE sampling SET sampled = x'ffffffffffffffff0000c0ff00000000'",
    ],
)
def test_an_edit_by_a_user_breaks_nothing(path: Path, edit: str) -> None:
    trace = traces.popular_regions(0)
    sizes = traces.equal_sizes(trace) * MIB
    write(path, trace[:3000], sizes, 100 * MIB).close()
    forge(path, edit)
    store = write(path, trace[3000:], sizes, 100 * MIB)
    curve = store.database.run(curve_of)

    assert curve is not None
    assert curve.at(250 * MIB) == pytest.approx(0.5, abs=0.1)


ROW = (0, 0, 0, 0, 0, 0, 3, MIB, 1.0, 1.0, 1.0, 1.0, 1.0, bytes(16))
REUSE = (100, 1.0, 1.0, 1.0, 1.0, 1.0)


def changed(values: tuple[Any, ...], index: int, value: object) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def test_rows_of_the_tables_are_a_sample() -> None:
    sample = stored.parsed(ROW, [REUSE])

    assert (sample.halvings, sample.max_size, sample.reads) == (3, MIB, 1.0)
    assert sample.histogram.reads[100] == 1
    assert stored.parsed(changed(ROW, 7, None), []).max_size is None


@pytest.mark.parametrize(
    ("row", "reuse"),
    [
        (None, []),
        *[(changed(ROW, index, "free_extent"), []) for index in range(len(ROW))],
        *[(changed(ROW, index, None), []) for index in range(len(ROW)) if index != 7],
        *[(changed(ROW, index, -1), []) for index in range(13)],
        *[(changed(ROW, index, 2**63 - 1), []) for index in range(8)],
        *[(changed(ROW, index, each), []) for index in range(8, 13) for each in (-1.0, math.nan)],
        (changed(ROW, 6, 32), []),
        (changed(ROW, 13, bytes(17)), []),
        (changed(ROW, 13, b"\xff" * 8 + bytes(8)), []),
        (changed(ROW, 13, bytes(8) + b"\xff" * 8), []),
        (ROW[:-1], []),
        *[
            (ROW, [changed(REUSE, index, each)])
            for index in range(6)
            for each in ("free_extent", -1.0, math.nan, math.inf)
        ],
        (ROW, [REUSE[:-1]]),
    ],
)
def test_other_rows_are_none(row: Any, reuse: Any) -> None:
    # As a damaged page may hold them: those of another table.
    with pytest.raises((TypeError, ValueError, OverflowError)):
        stored.parsed(row, reuse)
