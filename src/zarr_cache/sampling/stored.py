"""The sample in the file: read, added to and written in one transaction. Steps of operations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zarr_cache.sampling.decision import Decision
from zarr_cache.sampling.histogram import NEVER
from zarr_cache.sampling.sample import Sample

if TYPE_CHECKING:
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
    """The sample in the file, in the current transaction; an empty one if it is none."""
    row = connection.execute(READ).fetchone()
    if row is None or len(row[-1]) % SAMPLED.itemsize:
        # A user has edited it. It is no more than a record of the past.
        return Sample()
    decided, (halvings, max_size, *faded, packed) = row[:6], row[6:]
    sampled = np.frombuffer(packed, SAMPLED)
    if not all(map(math.isfinite, faded)) or not np.isfinite(sampled["size"]).all():
        return Sample()
    sample = Sample(halvings, 0, sampled["id"].astype(np.int64), sampled["size"].astype(np.int64))
    sample.used = -sampled["ago"].astype(np.int64)
    sample.reads, sample.nbytes, sample.recent_reads, *recent = faded
    sample.recent_bytes, sample.recent_served = recent
    sample.max_size = max_size
    sample.decision = Decision(bool(decided[0]), *decided[1:])
    rows = np.array(connection.execute(READ_REUSE, {"never": NEVER}).fetchall(), float)
    if not np.isfinite(rows).all():
        return Sample()
    if len(rows):
        buckets, *columns = rows.T
        histogram = sample.histogram
        parts = (
            histogram.reads,
            histogram.nbytes,
            histogram.recent,
            histogram.least,
            histogram.most,
        )
        for part, column in zip(parts, columns, strict=True):
            part[buckets.astype(np.int64)] = column
    return sample


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
