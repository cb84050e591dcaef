"""The sample in the file: read, added to and written in one transaction. Steps of operations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zarr_cache.sampling.decision import MOST, Decision
from zarr_cache.sampling.histogram import NEVER
from zarr_cache.sampling.sample import MAX_HALVINGS, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from zarr_cache.file.connection import Connection
    from zarr_cache.sampling.sample import Batch

SAMPLED = np.dtype([("id", "<i8"), ("size", "<f4"), ("ago", "<u4")])
"""A value or a range in `sampling.sampled`."""

MAX_AGO = 2**32 - 1

READ = """
SELECT
    keeps, misses, missed_bytes, round_bytes, round_served, round_expected,
    halvings, max_size,
    reads, bytes, recent_reads, recent_bytes, recent_served, sampled
FROM sampling
WHERE id = 1
"""

READ_REUSE = """
SELECT bucket, reads, bytes, recent_bytes, ifnull(least, 0), ifnull(most, 0)
FROM reuse
WHERE bucket BETWEEN 0 AND :never
"""

WRITE = """
INSERT OR REPLACE INTO sampling (
    id, keeps, misses, missed_bytes, round_bytes, round_served, round_expected,
    halvings, max_size,
    reads, bytes, recent_reads, recent_bytes, recent_served, sampled
)
VALUES (
    1, :keeps, :misses, :missed_bytes, :round_bytes, :round_served, :round_expected,
    :halvings, :max_size,
    :reads, :bytes, :recent_reads, :recent_bytes, :recent_served, :sampled
)
"""

CLEAR_REUSE = """
DELETE FROM reuse
"""

WRITE_REUSE = """
INSERT INTO reuse (bucket, reads, bytes, recent_bytes, least, most)
VALUES (?, ?, ?, ?, ?, ?)
"""

KEEPS = """
SELECT keeps
FROM sampling
WHERE id = 1
"""


class Sampled(NamedTuple):
    """What comes of sampling: the decision, and how many keys each one in the sample stands for."""

    keeps: bool
    scale: int


def add(connection: Connection, batch: Batch, max_size: int | None) -> Sampled:
    """Add a batch of reads to the sample in the current transaction.

    One process after another adds its batches, in the order in which they are written.
    """
    sample = read(connection)
    sample.add(batch, max_size)
    _write(connection, sample)
    return Sampled(sample.decision.keeps, sample.scale)


def keeps(connection: Connection) -> bool:
    """Whether a full cache with ``when_full="auto"`` evicts nothing: an operation."""
    with connection.reading():
        row = connection.execute(KEEPS).fetchone()
    return row is not None and bool(row[0])


def read(connection: Connection) -> Sample:
    """The sample in the file, in the current transaction; an empty one if it is none.

    A user may have edited it, and a page may be damaged. It is no more than a record of the past.
    """
    row = connection.execute(READ).fetchone()
    reuse = connection.execute(READ_REUSE, {"never": NEVER}).fetchall()
    try:
        return parsed(row, reuse)
    except (TypeError, ValueError, OverflowError):
        return Sample()


def parsed(row: Sequence[Any], reuse: Sequence[Sequence[Any]]) -> Sample:
    """The sample of these rows of its tables.

    Raises
    ------
    TypeError, ValueError, OverflowError
        They are none.
    """
    *decided, halvings, max_size, reads, nbytes, recent_reads, recent_bytes, served, packed = row
    numbers = [*decided, halvings, 0 if max_size is None else max_size]
    faded = [reads, nbytes, recent_reads, recent_bytes, served]
    entries = np.frombuffer(packed, SAMPLED)
    rows = np.array(reuse, float).reshape(-1, 6)
    is_sound = (
        all(type(each) is int and 0 <= each <= MOST for each in numbers)
        and halvings <= MAX_HALVINGS
        and all(type(each) is float and 0 <= each < math.inf for each in faded)
        and bool((entries["id"] >= 0).all())
        and _are_sizes(entries["size"])
        and _are_sizes(rows)
    )
    if not is_sound:
        raise ValueError("a number of the sample is out of range")
    ids, sizes = entries["id"].astype(np.int64), entries["size"].astype(np.int64)
    sample = Sample(halvings, 0, ids, sizes, -entries["ago"].astype(np.int64))
    sample.reads, sample.nbytes, sample.recent_reads = reads, nbytes, recent_reads
    sample.recent_bytes, sample.recent_served = recent_bytes, served
    sample.max_size = max_size
    sample.decision = Decision(bool(decided[0]), *decided[1:])
    histogram = sample.histogram
    parts = histogram.reads, histogram.nbytes, histogram.recent, histogram.least, histogram.most
    for part, column in zip(parts, rows.T[1:], strict=True):
        part[rows.T[0].astype(np.int64)] = column
    return sample


def _are_sizes(numbers: npt.NDArray[np.floating[Any]]) -> bool:
    return bool(((numbers >= 0) & (numbers <= MOST)).all())


def _write(connection: Connection, sample: Sample) -> None:
    sampled = np.empty(len(sample.ids), SAMPLED)
    sampled["id"], sampled["size"] = sample.ids, sample.sizes
    sampled["ago"] = np.minimum(sample.position - sample.used, MAX_AGO)
    connection.execute(
        WRITE,
        {
            **sample.decision._asdict(),
            "halvings": sample.halvings,
            "max_size": sample.max_size,
            "reads": sample.reads,
            "bytes": sample.nbytes,
            "recent_reads": sample.recent_reads,
            "recent_bytes": sample.recent_bytes,
            "recent_served": sample.recent_served,
            "sampled": sampled.tobytes(),
        },
    )
    histogram = sample.histogram
    used = np.flatnonzero(histogram.reads)
    columns = [
        part[used].tolist() for part in (histogram.reads, histogram.nbytes, histogram.recent)
    ]
    sizes = [
        [
            None if bucket == NEVER else size
            for bucket, size in zip(used, part[used].tolist(), strict=True)
        ]
        for part in (histogram.least, histogram.most)
    ]
    connection.execute(CLEAR_REUSE)
    connection.executemany(WRITE_REUSE, zip(used.tolist(), *columns, *sizes, strict=True))
