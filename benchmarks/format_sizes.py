"""How page size, part size and checksum blocks change reads, inserts and the size of the file.

The tables are `entry` and `value` of the file format without triggers, so that only the sizes
differ. Systems are taken in turn inside each round. Times are microseconds, the median over the
rounds of the median within a round. The figures of docs/decisions/0002-page-part-and-block-sizes.md
come from `--full`, which takes some minutes and up to 5 GB of disk.

    python benchmarks/format_sizes.py --sections read insert
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sqlite3
import statistics
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    type Call = Callable[[int], object]
    type Systems = dict[tuple[str, str], Call]  # by row and column of the table they fill
    type Figures = dict[tuple[str, str], float]

KIB, MIB = 1024, 1024 * 1024
MAPPINGS = {"mmap": 8 << 30, "not mapped": 0}
STORED_AT = 1_700_000_000_000
RNG = np.random.default_rng(1)
SERIAL = itertools.count(10**9)

SCHEMA = """
CREATE TABLE entry (
    id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL,
    size INTEGER NOT NULL, stored_at INTEGER NOT NULL, used_at INTEGER, revision INTEGER NOT NULL,
    checksum INTEGER NOT NULL, UNIQUE (namespace, key)
) STRICT;
CREATE INDEX entry_by_use ON entry (used_at, size) WHERE kind = 'value';
CREATE INDEX entry_by_age ON entry (namespace, stored_at);
CREATE TABLE value (
    entry INTEGER NOT NULL, part INTEGER NOT NULL, checksums BLOB NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (entry, part)
) STRICT;
"""
INSERT_ENTRY = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
VALUES (1, :key, 'value', :size, :stored_at, :used_at, 1, 0)
"""
INSERT_VALUE = """
INSERT INTO value (entry, part, checksums, data)
VALUES (:entry, :part, :checksums, :data)
"""
SELECT_VALUE = """
SELECT e.size, e.stored_at, v.checksums, v.data
FROM entry AS e JOIN value AS v ON v.entry = e.id AND v.part = 0
WHERE e.namespace = 1 AND e.key = :key
"""
SELECT_PART = """
SELECT e.size, e.stored_at, v.checksums, v.rowid
FROM entry AS e JOIN value AS v ON v.entry = e.id AND v.part = :part
WHERE e.namespace = 1 AND e.key = :key
"""
SELECT_OLDEST = "SELECT id FROM entry WHERE kind = 'value' ORDER BY used_at LIMIT 1"
DELETE_VALUE = "DELETE FROM value WHERE entry = :entry"
DELETE_ENTRY = "DELETE FROM entry WHERE id = :entry"


@dataclass(frozen=True)
class Scale:
    """How much is measured, and for how long."""

    pages: tuple[int, ...]
    rounds: int
    seconds: float  # per system and round
    full_file: int  # bytes of the values in a full file
    large: int  # bytes of the value that ranges are read from
    thin: int  # divides the number of values whose overhead is measured


SHORT = Scale((4096, 16384), 3, 0.005, 32 * MIB, 128 * MIB, 20)
FULL = Scale((4096, 8192, 16384, 32768, 65536), 5, 0.02, 256 * MIB, 512 * MIB, 1)


@dataclass(frozen=True)
class Bench:
    """The files of one section, closed and removed after it."""

    scale: Scale
    folder: Path
    stack: ExitStack

    def connect(
        self, path: Path, mmap_size: int = 8 << 30, log_pages: int = 1000
    ) -> sqlite3.Connection:
        """A connection with the pragmas of the cache, unless told otherwise."""
        db = self.stack.enter_context(closing(connect(path)))
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA secure_delete=OFF")
        db.execute(f"PRAGMA mmap_size={mmap_size}")
        db.execute(f"PRAGMA wal_autocheckpoint={log_pages}")
        return db


def connect(path: Path) -> sqlite3.Connection:
    """A connection without any pragma, outside a transaction."""
    return sqlite3.connect(path, autocommit=True)  # noqa: TID251 # its pragmas are what varies


@contextmanager
def new_file(path: Path, page: int = 16384) -> Iterator[sqlite3.Connection]:
    """A new file inside one transaction without journal, complete when the block is left."""
    with closing(connect(path)) as db:
        db.execute(f"PRAGMA page_size={page}")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("PRAGMA secure_delete=OFF")
        db.executescript(SCHEMA)
        db.execute("BEGIN")
        yield db
        db.execute("COMMIT")


def size_name(size: int) -> str:
    """The size in the largest unit that divides it."""
    if size % MIB == 0:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size % KIB == 0 else f"{size // 1000} kB"


def print_table(title: str, figures: Figures) -> None:
    """Print the figures by row and column, with an empty cell where there is none."""
    rows, columns = (dict.fromkeys(key[axis] for key in figures) for axis in (0, 1))
    print(f"\n{title:40}", *(f"{column:>11}" for column in columns))
    for row in rows:
        cells = (figures.get((row, column)) for column in columns)
        print(f"{row:40}", *(" " * 11 if x is None else f"{x:11.4g}" for x in cells), flush=True)


def identity_checksum_of(key: str, size: int, stored_at: int) -> int:
    """The checksum that those of the blocks go on from."""
    return int(google_crc32c.value(b"1\0%s\0%d\0%d" % (key.encode(), size, stored_at)))


def insert_entry(db: sqlite3.Connection, key: str, size: int, used_at: int) -> int | None:
    """The id of the new entry."""
    facts = {"key": key, "size": size, "stored_at": STORED_AT, "used_at": used_at}
    return db.execute(INSERT_ENTRY, facts).lastrowid


def store(
    db: sqlite3.Connection,
    key: str,
    data: bytes,
    *,
    part: int = 64 * MIB,
    block: int = 64 * KIB,
    used_at: int = 0,
) -> None:
    """Store one value in the transaction that the caller has begun."""
    array = np.frombuffer(data, np.uint8)
    seed = identity_checksum_of(key, array.size, STORED_AT)
    entry = insert_entry(db, key, array.size, used_at)
    for number, start in enumerate(range(0, array.size, part)):
        piece = array[start : start + part]
        blocks = (piece[at : at + block] for at in range(0, piece.size, block))
        checksums = np.array([google_crc32c.extend(seed, block) for block in blocks], "<u4")
        row = {"entry": entry, "part": number, "checksums": checksums.tobytes(), "data": piece}
        db.execute(INSERT_VALUE, row)


def delete(db: sqlite3.Connection, entry: int) -> None:
    """Delete one value in the transaction that the caller has begun."""
    db.execute(DELETE_VALUE, {"entry": entry})
    db.execute(DELETE_ENTRY, {"entry": entry})


def check(data: bytes, seed: int, checksums: bytes, block: int) -> None:
    """Raise ValueError unless each block of `data` has its checksum."""
    if len(data) <= block:  # at 2 kB an array of its own would show
        if google_crc32c.extend(seed, data) != int.from_bytes(checksums[:4], "little"):
            raise ValueError("damaged")
        return
    array = np.frombuffer(data, np.uint8)
    for number, expected in enumerate(np.frombuffer(checksums, "<u4").tolist()):
        if google_crc32c.extend(seed, array[number * block : (number + 1) * block]) != expected:
            raise ValueError("damaged")


def read_select(db: sqlite3.Connection, key: str) -> None:
    """Read a value in one part by one SELECT, checked."""
    size, stored_at, checksums, data = db.execute(SELECT_VALUE, {"key": key}).fetchone()
    check(data, identity_checksum_of(key, size, stored_at), checksums, 64 * KIB)


def read_blob(
    db: sqlite3.Connection,
    key: str,
    part: int = 0,
    *,
    start: int = 0,
    nbytes: int | None = None,
    block: int = 64 * KIB,
) -> None:
    """Read `[start, start + nbytes)` of one part by a blob handle, each touched block checked."""
    first = start // block
    touched = -1 if nbytes is None else ((start + nbytes - 1) // block + 1 - first) * block
    db.execute("BEGIN")
    try:
        row = db.execute(SELECT_PART, {"key": key, "part": part}).fetchone()
        size, stored_at, checksums, rowid = row
        with db.blobopen("value", "data", rowid, readonly=True) as blob:
            blob.seek(first * block)
            data = blob.read(touched)
    finally:
        db.execute("COMMIT")
    end = first + -(-len(data) // block)
    check(data, identity_checksum_of(key, size, stored_at), checksums[4 * first : 4 * end], block)


def in_turn(
    systems: Systems, scale: Scale, calls: int | None = None
) -> dict[tuple[str, str], list[list[float]]]:
    """Microseconds of each call, by system and round; without `calls` as many as time allows."""
    times: dict[tuple[str, str], list[list[float]]] = {name: [] for name in systems}
    least, most = (calls, calls) if calls else (3, 40)
    names = list(systems)
    gc.disable()
    for _ in range(scale.rounds):
        for index in RNG.permutation(len(names)):
            call, taken = systems[names[index]], list[float]()
            end = time.perf_counter() + scale.seconds
            call(0)
            while len(taken) < most and (len(taken) < least or time.perf_counter() < end):
                began = time.perf_counter_ns()
                call(len(taken) + 1)
                taken.append((time.perf_counter_ns() - began) / 1000)
            times[names[index]].append(taken)
    gc.enable()
    return times


def medians(systems: Systems, scale: Scale, calls: int | None = None) -> Figures:
    """The median over the rounds of the median within a round, in microseconds."""
    times = in_turn(systems, scale, calls)
    return {k: statistics.median(map(statistics.median, rounds)) for k, rounds in times.items()}


def rotating[FileId](read: Callable[[FileId], object], places: Sequence[FileId]) -> Call:
    """Reads from another place each time, so that no page cache flatters it."""
    return lambda number: read(places[number * 7 % len(places)])


def section_read(bench: Bench) -> None:
    """Whole values by page size and way of reading, next to a file and to a bare SELECT."""
    counts = {2000: 64, MIB: 32, 8 * MIB: 4}
    keys = {size: [f"{size}-{n}" for n in range(count)] for size, count in counts.items()}
    mixed = [(n, size) for n in range(64) for size in counts if n < counts[size]]
    values = {keys[size][n]: RNG.bytes(size) for n, size in mixed}
    for key, data in values.items():
        (bench.folder / key).write_bytes(data)
    plain = bench.connect(bench.folder / "plain.sqlite")
    plain.execute("CREATE TABLE plain (key TEXT PRIMARY KEY, value BLOB)")
    plain.executemany("INSERT INTO plain VALUES (?, ?)", ((k, values[k]) for k in keys[2000]))
    for page in bench.scale.pages:
        with new_file(bench.folder / f"{page}.sqlite", page) as db:
            for key, data in values.items():
                store(db, key, data)
    opened = {
        (page, how): bench.connect(bench.folder / f"{page}.sqlite", mmap_size)
        for how, mmap_size in MAPPINGS.items()
        for page in bench.scale.pages
    }

    def bare_select(key: str) -> None:
        plain.execute("SELECT value FROM plain WHERE key = :key", {"key": key}).fetchone()

    def read_file(key: str) -> None:
        with (bench.folder / key).open("rb") as file:
            file.read()

    figures: Figures = {}
    for size in counts:  # one size after the other: the allocator learns from what it gave
        name = size_name(size)
        systems: Systems = {(f"{name}, open().read()", "any"): rotating(read_file, keys[size])}
        if size == min(counts):
            systems[f"{name}, bare SELECT", "any"] = rotating(bare_select, keys[size])
        for read, ((page, how), db) in itertools.product((read_select, read_blob), opened.items()):
            row = f"{name}, {read.__name__}, {how}"
            systems[row, str(page)] = rotating(partial(read, db), keys[size])
        figures |= medians(systems, bench.scale)
    print_table("whole values, checked", figures)


def inserting(db: sqlite3.Connection, data: bytes, *, evict: bool) -> Call:
    """Stores a new value in a transaction of its own, in the place of the oldest if so told."""

    def insert(_number: int) -> None:
        db.execute("BEGIN IMMEDIATE")
        if evict:
            delete(db, db.execute(SELECT_OLDEST).fetchone()[0])
        used_at = next(SERIAL)
        store(db, f"c/{used_at}", data, used_at=used_at)
        db.execute("COMMIT")

    return insert


def wal_bytes(path: Path) -> int:
    """Size of the write-ahead log beside the file."""
    return path.with_name(f"{path.name}-wal").stat().st_size


def kib_logged(db: sqlite3.Connection, path: Path, data: bytes) -> float:
    """KiB that one insert adds to the log, on a connection that makes no checkpoint by itself."""
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    insert = inserting(db, data, evict=False)
    for number in range(20):
        insert(number)
    return wal_bytes(path) / 20 / KIB


def section_insert(bench: Bench) -> None:
    """Inserts into a full file, each evicting as much as it stores."""
    figures: Figures = {}
    for size in (64 * KIB, 256 * KIB, MIB):
        data, name = RNG.bytes(size), size_name(size)
        systems: Systems = {}
        for page in bench.scale.pages:
            path = bench.folder / f"{name}-{page}"
            with new_file(path, page) as db:
                for n in range(bench.scale.full_file // size):
                    store(db, f"c/{RNG.random()}", data, used_at=n)
            systems[name, str(page)] = inserting(bench.connect(path), data, evict=True)
        os.sync()  # the new files must not be written back while the inserts are timed
        # As many calls as let checkpoints show in the mean.
        times = in_turn(systems, bench.scale, calls=min(60, 24 * MIB // size))
        for (_, page_name), rounds in times.items():
            taken = sorted(itertools.chain.from_iterable(rounds))
            figures[f"{name}, median", page_name] = statistics.median(taken)
            figures[f"{name}, mean", page_name] = statistics.mean(taken)
            figures[f"{name}, 99th percentile", page_name] = taken[len(taken) * 99 // 100]
            log_mib = wal_bytes(bench.folder / f"{name}-{page_name}") / MIB
            figures[f"{name}, MiB of -wal left", page_name] = log_mib
    for size, page in itertools.product((1000, 64 * KIB, MIB), bench.scale.pages):
        path = bench.folder / f"64 KiB-{page}"
        logged = kib_logged(bench.connect(path, log_pages=10**6), path, RNG.bytes(size))
        figures[f"{size_name(size)}, KiB logged without eviction", str(page)] = logged
    print_table("insert with eviction", figures)


def section_worn(bench: Bench) -> None:
    """Reads in a file whose free pages lay in no order when its values were stored."""
    data, count = RNG.bytes(16 * MIB), bench.scale.full_file * 10 // MIB
    keys = {p: [f"{p}/{n}" for n in range(max(2, 16 * MIB // p))] for p in (MIB, 4 * MIB, 16 * MIB)}
    systems: Systems = {}
    for page in bench.scale.pages:
        path = bench.folder / f"{page}.sqlite"
        with new_file(path, page) as db:
            for n in range(count):
                store(db, f"old/{n}", data[: RNG.integers(20_000, 200_000)])
            for index in RNG.permutation(count)[: count * 7 // 10].tolist():
                delete(db, index + 1)
            for size, key in ((size, key) for size, names in keys.items() for key in names):
                store(db, key, data[:size])
        for how, mmap_size in MAPPINGS.items():
            read = partial(read_blob, bench.connect(path, mmap_size))
            systems[f"1 MiB whole, {how}", str(page)] = rotating(read, keys[MIB])
            for size, end in itertools.product(keys, (False, True)):
                row = f"64 KiB at {'end' if end else 'start'} of {size_name(size)}, {how}"
                seek = partial(read, start=size - 64 * KIB if end else 0, nbytes=64 * KIB)
                systems[row, str(page)] = rotating(seek, keys[size])
    print_table("by blob in a worn file, checked", medians(systems, bench.scale))


def section_parts(bench: Bench) -> None:
    """64 KiB out of a large value by part size and checksum block, next to whole values."""
    large = RNG.bytes(bench.scale.large)
    keys = {size: [f"{size}/{n}" for n in range(32 * MIB // size)] for size in (MIB, 8 * MIB)}
    layouts = [(part, 64 * KIB) for part in (MIB, 4 * MIB, 16 * MIB, 64 * MIB)]
    layouts += [(4 * MIB, block) for block in (128 * KIB, 256 * KIB, MIB)]
    systems: Systems = {}
    for part, block in layouts:
        path = bench.folder / f"{part}-{block}.sqlite"
        with new_file(path) as db:
            for size, key in ((size, key) for size, names in keys.items() for key in names):
                store(db, key, large[:size], block=block)
            store(db, "large", large, part=part, block=block)
        for how, mmap_size in MAPPINGS.items():
            row = f"part {size_name(part)}, block {size_name(block)}, {how}"
            read = partial(read_blob, bench.connect(path, mmap_size), block=block)
            for size, names in keys.items():
                systems[row, f"all {size_name(size)}"] = rotating(read, names)
            seek = partial(read, nbytes=64 * KIB)
            systems[row, "in 1 MiB"] = rotating(partial(seek, start=MIB // 2), keys[MIB])
            for where, start in ("first", 0), ("middle", part // 2), ("end", part - 64 * KIB):
                seek_part = partial(seek, "large", start=start)
                systems[row, where] = rotating(seek_part, range(len(large) // part))
    print_table("64 KiB out of a large value", medians(systems, bench.scale))


def bytes_per_byte(path: Path, page: int, sizes: Iterable[int]) -> float:
    """Size of a file over the bytes of its values; their content does not matter."""
    zeros, total = memoryview(bytes(6 * MIB)), 0
    with new_file(path, page) as db:
        for used_at, size in enumerate(sizes):
            entry = insert_entry(db, f"group/array/c/{RNG.integers(2**40)}", size, used_at)
            checksums = bytes(4 * -(-size // (64 * KIB)))
            row = {"entry": entry, "part": 0, "checksums": checksums, "data": zeros[:size]}
            db.execute(INSERT_VALUE, row)
            total += size
    file_bytes = path.stat().st_size
    path.unlink()
    return file_bytes / total


def section_overhead(bench: Bench) -> None:
    """Size of the file over the bytes of its values."""
    counts = dict.fromkeys((1000, 10_000, 64_000, 64 * KIB), 10_000)
    counts |= {300_000: 1500, MIB: 400, 4 * MIB: 100}
    figures: Figures = {}
    for mean, spread in itertools.product(counts, (0, 0.25)):
        count = max(50, counts[mean] // bench.scale.thin)
        sizes = (mean * RNG.uniform(1 - spread, 1 + spread, count)).astype(int).tolist()
        row = f"{size_name(mean)} {'± 25 %' if spread else 'exactly'}"
        for page in bench.scale.pages:
            path = bench.folder / "overhead.sqlite"
            figures[row, str(page)] = bytes_per_byte(path, page, sizes)
    print_table("file size over bytes of values", figures)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "read": section_read,
    "insert": section_insert,
    "worn": section_worn,
    "parts": section_parts,
    "overhead": section_overhead,
}


def main() -> None:
    """Run the sections, each in a folder of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all page sizes, full volumes")
    parser.add_argument("--sections", choices=SECTIONS, nargs="+", default=list(SECTIONS))
    parser.add_argument("--folder", type=Path, help="where to put the files")
    arguments = parser.parse_args()
    print(f"SQLite {sqlite3.sqlite_version}, crc32c: {google_crc32c.implementation}")
    for section in arguments.sections:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, ExitStack() as stack:
            SECTIONS[section](Bench(FULL if arguments.full else SHORT, Path(folder), stack))


if __name__ == "__main__":
    main()
