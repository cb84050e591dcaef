"""Measure page size, part size, checksum block size and read method for the file format.

A short run by default (about 40 s); ``--full`` takes all page sizes and full volumes (about
four minutes, up to 5 GB of disk).  Sections: read (with the bare SELECT), insert, parts,
worn (a file after many evictions), overhead.  Times are medians in microseconds unless the
table says otherwise; variants are taken in turn inside each round.
"""

import argparse
import gc
import json
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import google_crc32c
import numpy as np

KIB, MIB = 1024, 1024 * 1024
PAGES = (4096, 8192, 16384, 32768, 65536)
SMALLEST_BLOCK = 64 * KIB
BLOCKS = (64 * KIB, 128 * KIB, 256 * KIB, MIB)
STORED_AT = 1_700_000_000_000

ENTRY = """
CREATE TABLE entry (id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, key TEXT NOT NULL,
  kind TEXT NOT NULL, size INTEGER NOT NULL, stored_at INTEGER NOT NULL, used_at INTEGER,
  revision INTEGER NOT NULL, checksum INTEGER NOT NULL, UNIQUE(namespace, key)) STRICT;
CREATE INDEX entry_by_use ON entry (used_at, size) WHERE kind='value';
CREATE INDEX entry_by_age ON entry (namespace, stored_at);
"""
VALUE = {
    "data first": """CREATE TABLE value (entry INTEGER NOT NULL, part INTEGER NOT NULL,
  data BLOB NOT NULL, checksums BLOB NOT NULL, PRIMARY KEY(entry, part)) STRICT;""",
    "checksums first": """CREATE TABLE value (entry INTEGER NOT NULL, part INTEGER NOT NULL,
  checksums BLOB NOT NULL, data BLOB NOT NULL, PRIMARY KEY(entry, part)) STRICT;""",
}
INSERT_ENTRY = (
    "INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)"
    " VALUES (1, ?, 'value', ?, ?, ?, 1, 0)"
)
INSERT_VALUE = "INSERT INTO value (entry, part, data, checksums) VALUES (?, ?, ?, ?)"
FACTS = (
    "SELECT e.kind, e.size, e.stored_at, e.revision, v.rowid, v.checksums FROM entry e"
    " JOIN value v ON v.entry = e.id AND v.part = 0 WHERE e.namespace = 1 AND e.key = ?"
)
WHOLE = FACTS.replace("v.checksums", "v.checksums, v.data")
PART = (
    "SELECT e.size, v.rowid, v.checksums FROM entry e JOIN value v ON v.entry = e.id"
    " AND v.part = ? WHERE e.namespace = 1 AND e.key = ?"
)


def connect(
    path,
    page=None,
    mmap=8 << 30,
    cache=None,
    order="checksums first",
    secure=False,
    autocheckpoint=None,
    fill=False,
):
    db = sqlite3.connect(path, autocommit=True)
    if page:
        db.execute(f"PRAGMA page_size={page}")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    db.execute("PRAGMA busy_timeout=5000")
    if fill:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
    else:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
    db.execute(f"PRAGMA mmap_size={mmap}")
    db.execute(f"PRAGMA secure_delete={'ON' if secure else 'OFF'}")
    if cache:
        db.execute(f"PRAGMA cache_size={cache}")
    if autocheckpoint:
        db.execute(f"PRAGMA wal_autocheckpoint={autocheckpoint}")
    if page:
        db.executescript(ENTRY + VALUE[order])
    return db


def seed_of(key, size, stored_at=STORED_AT):
    return google_crc32c.value(b"1\0%s\0%d\0%d" % (key.encode(), size, stored_at))


def checksums_of(seed, array, block):
    extend = google_crc32c.extend
    return np.array(
        [extend(seed, array[o : o + block]) for o in range(0, array.size, block)], "<u4"
    ).tobytes()


def store(db, key, data, part=None, block=SMALLEST_BLOCK, used_at=0):
    """Store one value; the caller has begun the transaction."""
    array = np.frombuffer(data, np.uint8)
    seed = seed_of(key, array.size)
    entry = db.execute(INSERT_ENTRY, (key, array.size, STORED_AT, used_at)).lastrowid
    part = part or array.size
    for n, start in enumerate(range(0, array.size, part)):
        piece = array[start : start + part]
        db.execute(INSERT_VALUE, (entry, n, piece, checksums_of(seed, piece, block)))
    return entry


def verify(data, seed, checks, block):
    extend = google_crc32c.extend
    if len(data) <= block:
        if extend(seed, data) != int.from_bytes(checks[:4], "little"):
            raise ValueError("damaged")
        return
    array = np.frombuffer(data, np.uint8)
    for n, want in enumerate(np.frombuffer(checks, "<u4").tolist()):
        if extend(seed, array[n * block : (n + 1) * block]) != want:
            raise ValueError("damaged")


def read_select(db, key, block=None, known=None):
    _, size, at, _, _, checks, data = db.execute(WHOLE, (key,)).fetchone()
    if block:
        verify(data, seed_of(key, size, at), known or checks, block)
    return data


def read_blob(db, key, block=None, known=None):
    db.execute("BEGIN")
    try:
        _, size, at, _, rowid, checks = db.execute(FACTS, (key,)).fetchone()
        with db.blobopen("value", "data", rowid, readonly=True) as blob:
            data = blob.read()
    finally:
        db.execute("COMMIT")
    if block:
        verify(data, seed_of(key, size, at), known or checks, block)
    return data


def read_blob_stepwise(db, key, block=None, known=None):
    """Read block by block into one array, checking each block while it is in the CPU cache."""
    extend = google_crc32c.extend
    db.execute("BEGIN")
    try:
        _, size, at, _, rowid, checks = db.execute(FACTS, (key,)).fetchone()
        seed = seed_of(key, size, at)
        out = np.empty(size, np.uint8)
        wanted = np.frombuffer(known or checks, "<u4").tolist()
        with db.blobopen("value", "data", rowid, readonly=True) as blob:
            for n, want in enumerate(wanted):
                piece = blob.read(block)
                if extend(seed, piece) != want:
                    raise ValueError("damaged")
                out[n * block : n * block + len(piece)] = np.frombuffer(piece, np.uint8)
    finally:
        db.execute("COMMIT")
    return out


def read_case(db, key, threshold, block):
    """One SELECT for small values; large ones go on with blobopen in the same snapshot."""
    db.execute("BEGIN")
    try:
        _, size, at, _, rowid, checks, data = db.execute(
            WHOLE.replace("v.data", f"CASE WHEN e.size <= {threshold} THEN v.data END"), (key,)
        ).fetchone()
        if data is None:
            with db.blobopen("value", "data", rowid, readonly=True) as blob:
                data = blob.read()
    finally:
        db.execute("COMMIT")
    verify(data, seed_of(key, size, at), checks, block)
    return data


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def in_turn(tasks, rounds, budget=0.02, most=40):
    """tasks: {label: iterator-free callable taking n}; medians of per-round medians, in us."""
    found = {label: [] for label in tasks}
    labels = list(tasks)
    gc.disable()
    for number in range(rounds):
        random.Random(number).shuffle(labels)
        for label in labels:
            call, times, n, end = tasks[label], [], 0, time.perf_counter() + budget
            call(n)
            while n < most and (n < 3 or time.perf_counter() < end):
                n += 1
                start = time.perf_counter_ns()
                call(n)
                times.append(time.perf_counter_ns() - start)
            found[label].append(statistics.median(times) / 1000)
    gc.enable()
    return {label: statistics.median(v) for label, v in found.items()}


def name(size):
    if size % MIB == 0:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size % KIB == 0 else f"{size // 1000} kB"


def table(title, head, rows):
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print(
            "| "
            + " | ".join(
                x if isinstance(x, str) else (f"{x:.2f}" if x < 10 else f"{x:.0f}") for x in row
            )
            + " |",
            flush=True,
        )


# --- sections ---------------------------------------------------------------------------------


def section_read(folder, options, results):
    rng = np.random.default_rng(1)
    sizes = (1000, 2000, 64 * KIB, 100_000, 256 * KIB, MIB, 2 * MIB, 8 * MIB)
    copies = {s: 64 if s <= 2000 else max(4, min(48, 32 * MIB // s)) for s in sizes}
    files, known, paths = {}, {}, {}
    bulk = {(s, n): rng.bytes(s) for s in sizes for n in range(copies[s])}
    for (s, n), data in bulk.items():
        files[s, n] = folder / f"file-{s}-{n}"
        files[s, n].write_bytes(data)
        array, seed = np.frombuffer(data, np.uint8), seed_of(f"{s}/{n}", s)
        for block in BLOCKS:
            known[s, n, block] = checksums_of(seed, array, block)
    for page in options.pages:
        for order in VALUE:
            paths[page, order] = folder / f"read-{page}-{order[:4]}.db"
            db = connect(paths[page, order], page, order=order, fill=True)
            db.execute("BEGIN")
            for n in range(64):  # the sizes mixed, as they would come
                for s in sizes:
                    if n < copies[s]:
                        store(db, f"{s}/{n}", bulk[s, n])
            db.execute("COMMIT")
            db.close()
    bulk.clear()
    plain = sqlite3.connect(folder / "plain.db", autocommit=True)
    plain.execute("PRAGMA journal_mode=WAL")
    plain.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB)")
    plain.executemany(
        "INSERT INTO kv VALUES (?, ?)",
        [(f"2000/{n}", files[2000, n].read_bytes()) for n in range(64)],
    )
    floor = {
        "bare SELECT 2 kB": lambda n: plain.execute(
            "SELECT value FROM kv WHERE key = ?", (f"2000/{n % 64}",)
        ).fetchone()
    }

    configs = [
        (p, m, c, "checksums first")
        for p in options.pages
        for m in (0, 8 << 30)
        for c in (None, -16384)
    ]
    configs += [(p, 8 << 30, None, "data first") for p in options.pages]
    dbs = {cfg: connect(paths[cfg[0], cfg[3]], mmap=cfg[1], cache=cfg[2]) for cfg in configs}
    everything = {}
    for s in sizes:
        count = copies[s]
        tasks = {"file": lambda n, s=s, c=count: read_file(files[s, n % c])}
        if s == 2000:
            tasks |= floor
        for cfg, db in dbs.items():
            main = cfg[2] is None and cfg[3] == "checksums first" and cfg[1]
            for method in (read_select, read_blob, read_blob_stepwise):
                for block in (None, *BLOCKS):
                    if method is read_blob_stepwise and (not block or s <= block):
                        continue
                    if block and block > SMALLEST_BLOCK and (s <= SMALLEST_BLOCK or not main):
                        continue  # other block sizes only in the main configuration

                    def call(n, db=db, s=s, c=count, m=method, b=block):
                        m(db, f"{s}/{n % c}", b, known.get((s, n % c, b)))

                    tasks[cfg, method.__name__, block] = call
            if main:
                tasks[cfg, "read_case", SMALLEST_BLOCK] = lambda n, db=db, s=s, c=count: read_case(
                    db, f"{s}/{n % c}", 100_000, SMALLEST_BLOCK
                )
        everything[s] = in_turn(tasks, options.rounds, options.budget)

    for db in dbs.values():
        db.close()
    for mmap, cache, order in [
        (8 << 30, None, "checksums first"),
        (8 << 30, -16384, "checksums first"),
        (0, None, "checksums first"),
        (0, -16384, "checksums first"),
        (8 << 30, None, "data first"),
    ]:
        rows = []
        for s in sizes:
            got = everything[s]
            for method in ("read_select", "read_blob", "read_blob_stepwise"):
                for block in (None, SMALLEST_BLOCK):
                    cells = [
                        got.get(((p, mmap, cache, order), method, block)) for p in options.pages
                    ]
                    if cells[0] is not None:
                        rows.append(
                            [
                                name(s),
                                method[5:],
                                "64 KiB" if block else "none",
                                got["file"],
                                *cells,
                                min(cells) / got["file"],
                            ]
                        )
        table(
            f"whole read, mmap {'on' if mmap else 'off'}, cache_size {cache or 'default'}, {order}",
            ["size", "method", "checked", "open().read()", *map(str, options.pages), "best/open"],
            rows,
        )
    rows = []
    for s in sizes[3:]:
        got = everything[s]
        for method in ("read_select", "read_blob", "read_blob_stepwise", "read_case"):
            for block in BLOCKS:
                cells = [
                    got.get(((p, 8 << 30, None, "checksums first"), method, block))
                    for p in options.pages
                ]
                if cells[0] is not None:
                    rows.append(
                        [
                            name(s),
                            method[5:],
                            name(block),
                            got["file"],
                            *cells,
                            min(cells) / got["file"],
                        ]
                    )
    table(
        "block sizes, mmap on",
        ["size", "method", "block", "open().read()", *map(str, options.pages), "best/open"],
        rows,
    )
    bare = everything[2000]["bare SELECT 2 kB"]
    rows = []
    for m, b in (
        ("read_select", None),
        ("read_select", SMALLEST_BLOCK),
        ("read_case", SMALLEST_BLOCK),
        ("read_blob", SMALLEST_BLOCK),
    ):
        cells = [
            everything[2000][(p, 8 << 30, None, "checksums first"), m, b] for p in options.pages
        ]
        rows.append([m[5:], "yes" if b else "no", bare, *cells, min(cells) / bare])
    table(
        "2 kB against a bare SELECT, mmap on",
        ["method", "checked", "bare", *map(str, options.pages), "best/bare"],
        rows,
    )
    results["read"] = {str(s): {str(k): v for k, v in got.items()} for s, got in everything.items()}


def section_insert(folder, options, results):
    rng = np.random.default_rng(2)
    rows = []
    for size in (1000, 64 * KIB, 256 * KIB, MIB):
        pool = [rng.bytes(size) for _ in range(8)]
        for full in (False, True):
            dbs, oldest = {}, {}
            for page in options.pages:
                path = folder / f"insert-{size}-{full}-{page}.db"
                db = connect(path, page, fill=True)
                db.execute("BEGIN")
                count = (options.held * MIB // size) if full else 1
                if size == 1000:
                    count = min(count, options.held * 200)
                for n in range(count):
                    store(db, f"c/{random.Random(n).random()}", pool[n % 8], used_at=n)
                db.execute("COMMIT")
                db.close()
                variants = {"default": dict(), "16 MiB": dict(autocheckpoint=16 * MIB // page)}
                if full:
                    variants["16 MiB, secure_delete"] = dict(
                        secure=True, autocheckpoint=16 * MIB // page
                    )
                for label, extra in variants.items():
                    copy = folder / f"{path.stem}-{len(dbs)}.db"
                    shutil.copyfile(path, copy)
                    dbs[page, label] = connect(copy, **extra), copy
                    oldest[page, label] = 0
                path.unlink()
            os.sync()  # the copies must not be written back while the inserts are timed
            times = {k: [] for k in dbs}
            serial = 10**9
            for number in range(options.rounds):
                order = list(dbs)
                random.Random(number).shuffle(order)
                for key in order:
                    db, _ = dbs[key]
                    # enough bytes per round for the checkpoints to show in the mean
                    for _ in range(max(12, min(60, 24 * MIB // size))):
                        serial += 1
                        data = pool[serial % 8]
                        start = time.perf_counter_ns()
                        db.execute("BEGIN IMMEDIATE")
                        if full:
                            (old,) = db.execute(
                                "SELECT id FROM entry WHERE kind='value' ORDER BY used_at LIMIT 1"
                            ).fetchone()
                            db.execute("DELETE FROM value WHERE entry = ?", (old,))
                            db.execute("DELETE FROM entry WHERE id = ?", (old,))
                        store(db, f"c/{serial}", data, used_at=serial)
                        db.execute("COMMIT")
                        times[key].append((time.perf_counter_ns() - start) / 1000)
            for label in dict.fromkeys(k[1] for k in dbs):
                wal = [os.path.getsize(f"{dbs[p, label][1]}-wal") / MIB for p in options.pages]
                med = [statistics.median(times[p, label]) for p in options.pages]
                mean = [statistics.mean(times[p, label]) for p in options.pages]
                worst = [
                    sorted(times[p, label])[int(len(times[p, label]) * 0.99)] for p in options.pages
                ]
                rows += [
                    [name(size), "full" if full else "new", label, kind, *cells]
                    for kind, cells in (
                        ("median", med),
                        ("mean", mean),
                        ("p99", worst),
                        ("wal MiB", wal),
                    )
                ]
            for db, copy in dbs.values():
                db.close()
                copy.unlink()
    table(
        "insert in a transaction of its own",
        ["size", "file", "checkpoint", "figure", *map(str, options.pages)],
        rows,
    )
    results["insert"] = rows


def read_parts(db, key, part, block, piece=None):
    """A whole value of several parts into one array, every block checked."""
    extend = google_crc32c.extend
    db.execute("BEGIN")
    try:
        entry, size, at = db.execute(
            "SELECT id, size, stored_at FROM entry WHERE namespace = 1 AND key = ?", (key,)
        ).fetchone()
        seed, out = seed_of(key, size, at), np.empty(size, np.uint8)
        position = 0
        for rowid, checks in db.execute(
            "SELECT rowid, checksums FROM value WHERE entry = ? ORDER BY part", (entry,)
        ).fetchall():
            with db.blobopen("value", "data", rowid, readonly=True) as blob:
                for want in np.frombuffer(checks, "<u4").tolist():
                    data = blob.read(block)
                    if extend(seed, data) != want:
                        raise ValueError("damaged")
                    out[position : position + len(data)] = np.frombuffer(data, np.uint8)
                    position += len(data)
    finally:
        db.execute("COMMIT")
    return out


def read_range(db, key, offset, length, part, block):
    """A range inside one part, checking every block that it touches."""
    extend = google_crc32c.extend
    number, inside = divmod(offset, part)
    db.execute("BEGIN")
    try:
        size, rowid, checks = db.execute(PART, (number, key)).fetchone()
        seed = seed_of(key, size)
        first, last = inside // block, (inside + length - 1) // block
        with db.blobopen("value", "data", rowid, readonly=True) as blob:
            blob.seek(first * block)
            data = blob.read((last - first + 1) * block)
    finally:
        db.execute("COMMIT")
    array = np.frombuffer(data, np.uint8)
    for n in range(first, last + 1):
        start = (n - first) * block
        if extend(seed, array[start : start + block]) != int.from_bytes(
            checks[4 * n : 4 * n + 4], "little"
        ):
            raise ValueError("damaged")
    start = inside - first * block
    return data[start : start + length]


def section_parts(folder, options, results):
    rng = np.random.default_rng(3)
    parts, length = (MIB, 4 * MIB, 16 * MIB, 64 * MIB), 64 * KIB
    whole = (2 * MIB, 8 * MIB, 64 * MIB)
    big = np.frombuffer(rng.bytes(options.large * MIB), np.uint8)
    for s in whole:
        (folder / f"whole-{s}").write_bytes(big[:s].tobytes())
    rows_whole, rows_range = [], []
    for page in options.pages:
        for order in VALUE if page in (8192, 32768) else ["checksums first"]:
            tasks = {("file", s): lambda n, s=s: read_file(folder / f"whole-{s}") for s in whole}
            ranges, held, paths = {}, [], []
            for block in (64 * KIB, 256 * KIB):
                if order == "data first" and block != 64 * KIB:
                    continue
                for part in parts:
                    path = folder / f"parts-{page}-{part}-{block}-{order[:4]}.db"
                    paths.append(path)
                    db = connect(path, page, order=order, fill=True)
                    db.execute("BEGIN")
                    for s in whole:
                        store(db, f"w/{s}", big[:s], part, block)
                    for n in range(16):
                        store(db, f"one/{n}", big[n * MIB : (n + 1) * MIB], part, block)
                    store(db, "big", big, part, block)
                    db.execute("COMMIT")
                    db.close()
                    for mmap in (0, 8 << 30):
                        db = connect(path, mmap=mmap)
                        held.append(db)
                        if mmap and order == "checksums first":
                            for s in whole:
                                if part <= s or part == MIB:
                                    tasks["parts", s, part, block] = (
                                        lambda n, db=db, s=s, p=part, b=block: read_parts(
                                            db, f"w/{s}", p, b
                                        )
                                    )
                        places = {"first": 0, "middle": part // 2, "end": part - length}
                        if part == parts[0]:
                            for where, o in (
                                ("first", 0),
                                ("middle", MIB // 2),
                                ("end", MIB - length),
                            ):
                                ranges["1 MiB value", block, mmap, where] = (
                                    lambda n, db=db, o=o, b=block: read_range(
                                        db, f"one/{n % 16}", o, length, MIB, b
                                    )
                                )
                        for where, o in places.items():
                            ranges[part, block, mmap, where] = (
                                lambda n, db=db, o=o, p=part, b=block: (
                                    # another part each time, so that no page cache flatters it
                                    read_range(
                                        db, "big", n * 7 % (big.size // p) * p + o, length, p, b
                                    )
                                )
                            )
            got = (
                in_turn(tasks, options.rounds, options.budget * 2, 10)
                if order == "checksums first"
                else {}
            )
            for s in whole:
                for block in (64 * KIB, 256 * KIB):
                    cells = [got.get(("parts", s, p, block)) for p in parts]
                    if cells[0]:
                        rows_whole.append(
                            [
                                str(page),
                                name(s),
                                name(block),
                                got["file", s],
                                *["-" if c is None else c for c in cells],
                                min(c for c in cells if c) / got["file", s],
                            ]
                        )
            got = in_turn(ranges, options.rounds, options.budget)
            for mmap in (0, 8 << 30):
                for block in (64 * KIB, 256 * KIB):
                    for which in ("1 MiB value", *parts):
                        if (which, block, mmap, "first") in got:
                            cells = [got[which, block, mmap, w] for w in ("first", "middle", "end")]
                            base = [
                                got["1 MiB value", block, mmap, w]
                                for w in ("first", "middle", "end")
                            ]
                            rows_range.append(
                                [
                                    str(page),
                                    order,
                                    "on" if mmap else "off",
                                    name(block),
                                    which if isinstance(which, str) else name(which),
                                    *cells,
                                    max(cells) / statistics.mean(base),
                                ]
                            )
            for db in held:
                db.close()
            for path in paths:
                path.unlink()
    table(
        "whole reads of values in parts, mmap on, checked",
        [
            "page",
            "value",
            "block",
            "open().read()",
            *[f"part {name(p)}" for p in parts],
            "best/open",
        ],
        rows_whole,
    )
    table(
        f"64 KiB out of a value of {options.large} MiB, checked",
        [
            "page",
            "columns",
            "mmap",
            "block",
            "part",
            "first",
            "middle",
            "end",
            "worst / 1 MiB value",
        ],
        rows_range,
    )
    results["parts"] = {"whole": rows_whole, "range": rows_range}


def section_overhead(folder, options, results):
    rows = []
    for size, count in (
        (1000, 10_000),
        (10_000, 10_000),
        (64_000, 10_000),
        (64 * KIB, 10_000),
        (300_000, 1500),
        (MIB, 400),
        (4 * MIB, 100),
    ):
        count = max(50, count // options.thin)
        for spread in (0, 0.25):
            cells = []
            for page in options.pages:
                path = folder / "overhead.db"
                db = connect(path, page, fill=True)
                draw, total = random.Random(7), 0
                db.execute("BEGIN")
                for n in range(count):
                    s = int(size * draw.uniform(1 - spread, 1 + spread))
                    total += s
                    entry = db.execute(
                        INSERT_ENTRY, (f"group/array/c/{draw.getrandbits(40)}", s, STORED_AT, n)
                    ).lastrowid
                    db.execute(
                        "INSERT INTO value (entry, part, data, checksums) VALUES (?, 0, zeroblob(?), ?)",
                        (entry, s, bytes(4 * -(-s // SMALLEST_BLOCK))),
                    )
                db.execute("COMMIT")
                cells.append(f"{db.execute('PRAGMA page_count').fetchone()[0] * page / total:.3f}")
                db.close()
                path.unlink()
            rows.append([name(size), str(count), "+-25 %" if spread else "exact", *cells])
    table(
        "file size / bytes of values", ["size", "values", "sizes", *map(str, options.pages)], rows
    )
    results["overhead"] = rows


def section_worn(folder, options, results):
    """Files after eviction: scattered pages, deletes without reuse, and bytes written per insert."""
    rng = np.random.default_rng(4)
    length, parts = 64 * KIB, (MIB, 4 * MIB, 16 * MIB)
    data = rng.bytes(16 * MIB)
    reads, deletes, traffic, dbs = {}, {}, {}, []
    for page in options.pages:
        path = folder / f"worn-{page}.db"
        db = connect(path, page, fill=True)
        draw = random.Random(5)
        db.execute("BEGIN")
        for n in range(options.held * 10):
            store(db, f"old/{n}", data[: draw.randrange(20_000, 200_000)], used_at=n)
        db.execute("COMMIT")
        gone = [(i,) for i in range(1, options.held * 10 + 1) if draw.random() < 0.7]
        draw.shuffle(gone)  # in no order, so the free list is in none either
        db.execute("BEGIN")
        db.executemany("DELETE FROM value WHERE entry = ?", gone)
        db.executemany("DELETE FROM entry WHERE id = ?", gone)
        for n in range(16):
            store(db, f"one/{n}", data[n * MIB : (n + 1) * MIB])
        for part in parts:
            for n in range(max(1, options.held // 4 * MIB // (4 * part)) if part < 16 * MIB else 2):
                store(db, f"{part}/{n}", data[:part], part)
        db.execute("COMMIT")
        db.close()
        for mmap in (0, 8 << 30):
            db = connect(path, mmap=mmap)
            dbs.append(db)
            for method in (read_select, read_blob):
                reads[page, mmap, f"whole 1 MiB, {method.__name__[5:]}"] = (
                    lambda n, db=db, m=method: m(db, f"one/{n * 7 % 16}", SMALLEST_BLOCK)
                )
            for part in parts:
                count = db.execute(
                    "SELECT count(*) FROM entry WHERE key GLOB ?", (f"{part}/*",)
                ).fetchone()[0]
                for where, o in (("first", 0), ("end", part - length)):
                    reads[page, mmap, f"64 KiB of part {name(part)}, {where}"] = (
                        lambda n, db=db, p=part, o=o, c=count: read_range(
                            db, f"{p}/{n % c}", o, length, p, SMALLEST_BLOCK
                        )
                    )
        copies = {}
        for secure in (False, True):
            copy = folder / f"delete-{page}-{secure}.db"
            shutil.copyfile(path, copy)
            copies[secure] = connect(copy, secure=secure, autocheckpoint=1_000_000), copy, []
        os.sync()
        olds = db.execute("SELECT id FROM entry WHERE key GLOB 'old/*'").fetchall()
        for number, (old,) in enumerate(olds[: 20 * options.rounds]):
            for secure in (False, True) if number % 2 else (True, False):
                worn, copy, times = copies[secure]
                start = time.perf_counter_ns()
                worn.execute("BEGIN IMMEDIATE")
                worn.execute("DELETE FROM value WHERE entry = ?", (old,))
                worn.execute("DELETE FROM entry WHERE id = ?", (old,))
                worn.execute("COMMIT")
                times.append((time.perf_counter_ns() - start) / 1000)
        for secure, (worn, copy, times) in copies.items():
            deletes[page, secure, "us"] = statistics.median(times)
            deletes[page, secure, "KiB logged"] = os.path.getsize(f"{copy}-wal") / len(times) / KIB
            if not secure:
                for size in (1000, 64 * KIB, MIB):
                    worn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    for n in range(20):
                        worn.execute("BEGIN IMMEDIATE")
                        store(worn, f"new/{size}/{draw.random()}", data[:size], used_at=10**9 + n)
                        worn.execute("COMMIT")
                    traffic[page, size] = os.path.getsize(f"{copy}-wal") / 20 / KIB
            worn.close()
            copy.unlink()
    got = in_turn(reads, options.rounds, options.budget)
    labels = dict.fromkeys(k[2] for k in reads)
    table(
        "reads from a file with scattered free pages, us",
        ["read", "mmap", *map(str, options.pages)],
        [
            [label, "on" if mmap else "off", *[got[p, mmap, label] for p in options.pages]]
            for label in labels
            for mmap in (0, 8 << 30)
        ],
    )
    table(
        "deleting one value of about 110 kB in its own transaction",
        ["figure", "secure_delete", *map(str, options.pages)],
        [
            [unit, "on" if x else "off", *[deletes[p, x, unit] for p in options.pages]]
            for unit in ("us", "KiB logged")
            for x in (False, True)
        ],
    )
    table(
        "KiB written to the log per insert",
        ["size", *map(str, options.pages)],
        [[name(x), *[traffic[p, x] for p in options.pages]] for x in (1000, 64 * KIB, MIB)],
    )
    for db in dbs:
        db.close()
    results["worn"] = {str(k): v for k, v in (got | deletes | traffic).items()}


SECTIONS = {
    "read": section_read,
    "insert": section_insert,
    "parts": section_parts,
    "worn": section_worn,
    "overhead": section_overhead,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all page sizes, full volumes")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS))
    parser.add_argument("--pages", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to put the files (default: a temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    options.pages = options.pages or (PAGES if options.full else (4096, 32768))
    options.budget = 0.02 if options.full else 0.005
    options.held = 256 if options.full else 32
    options.large = 512 if options.full else 128
    options.thin = 1 if options.full else 20
    results = {}
    print(
        f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, crc32c: {google_crc32c.implementation}"
    )
    for section in options.only:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="format-sizes-") as folder:
            start = time.perf_counter()
            SECTIONS[section](Path(folder), options, results)
            print(f"\n({section}: {time.perf_counter() - start:.0f} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
