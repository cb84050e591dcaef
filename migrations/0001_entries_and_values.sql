-- 0001: what is cached, its size and age, the order of eviction, and the bytes themselves.
--
-- Times are integers: nanoseconds since the Unix epoch, as PersistentClock gives them.
-- Sizes and offsets are bytes. Facts and bytes are in separate tables: a scan of the facts reads no bytes.
-- Triggers keep the totals, the removal of bytes, the free space of the data file and the fence of a
-- namespace, so that an edit in the sqlite3 shell leaves them correct.

-- One for each source: its name, without credentials. The name of what SqliteStore stores is empty.
CREATE TABLE namespace (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    fence          INTEGER NOT NULL DEFAULT 0,  -- responses of an earlier revision are refused
    removals       INTEGER NOT NULL DEFAULT 0 CHECK (removals >= 0),  -- of folders of the source, in progress
    removals_since INTEGER,                     -- when the first of them began: nothing is admitted meanwhile
    CHECK ((removals = 0) = (removals_since IS NULL))
) STRICT;

-- One row. Each write that this file records gets the next revision. The first revision is the time, in
-- nanoseconds, at which the file was created: those of an earlier file of the same name are lower.
CREATE TABLE counter (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,           -- of the last write
    fence    INTEGER NOT NULL            -- the fence of a new namespace
) STRICT;
INSERT INTO counter (id, revision, fence)
SELECT 1, now, now
FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000000 AS now);

-- What is known of one key of one namespace, or, of kind range, some bytes of its value.
--   stored     a value that was written with SqliteStore: never evicted, never expired
--   value      a value of the source
--   absent     the source has no such key
--   tombstone  no value: the key was written, and responses of an earlier revision are refused
--   range      the bytes [start, stop) of a value of the source; of a key, none lies inside another
CREATE TABLE entry (
    id               INTEGER PRIMARY KEY,
    namespace        INTEGER NOT NULL REFERENCES namespace (id),
    key              TEXT    NOT NULL,
    kind             TEXT    NOT NULL
                     CHECK (kind IN ('stored', 'value', 'absent', 'tombstone', 'range')),
    -- Of a range: its first byte, or -2 if it is the end of a value of unknown size. Otherwise -1.
    start            INTEGER NOT NULL DEFAULT -1
                     CHECK (start >= -2 AND (start = -1) = (kind <> 'range')),
    -- Of a range: the byte after its last, or NULL if the value ends there.
    stop             INTEGER CHECK (stop IS NULL OR start >= 0 AND stop = start + size),
    size             INTEGER NOT NULL CHECK (size >= 0),
    stored_at        INTEGER NOT NULL,   -- when the source was read; of a write in flight, when it began
    used_at          INTEGER NOT NULL,   -- last use
    revision         INTEGER NOT NULL,   -- counter.revision of the last write to the key; range: 0
    writes_in_flight INTEGER NOT NULL DEFAULT 0 CHECK (writes_in_flight >= 0),  -- to the source
    checksum         INTEGER NOT NULL,   -- XXH3 of the facts, see checksum.py
    -- Values and ranges share one order of use.
    ordered_as       TEXT    GENERATED ALWAYS AS (CASE kind WHEN 'range' THEN 'value' ELSE kind END),
    -- Also how a range is found: of those that begin at a byte or before it, the last one reaches
    -- furthest.
    UNIQUE (namespace, key, start)
) STRICT;
-- The order of eviction: eviction reads only the rows that it removes.
CREATE INDEX entry_by_use ON entry (ordered_as, used_at);
-- Stale entries.
CREATE INDEX entry_by_age ON entry (namespace, kind, stored_at);

-- The bytes of an entry, unchanged, in parts numbered from 0. All parts but the last have the same
-- length. An entry of size 0 has no parts. The bytes of a large value are in the data file: its parts
-- here have checksums only.
CREATE TABLE value (
    entry     INTEGER NOT NULL REFERENCES entry (id),
    part      INTEGER NOT NULL CHECK (part >= 0),
    checksums BLOB    NOT NULL,          -- XXH3 of each block of bytes, 8 bytes each, big-endian
    data      BLOB    NOT NULL,          -- empty if the bytes are in the data file
    PRIMARY KEY (entry, part)
) STRICT;

-- One row: the data file, which has the bytes of large values. Its name is that of the cache file and
-- "-data". Space is allocated and freed in extents that begin and end at multiples of 4096.
CREATE TABLE data_file (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    identity BLOB    NOT NULL CHECK (length(identity) = 16),  -- random; also in the file's header
    length   INTEGER NOT NULL CHECK (length >= 4096)          -- the end of its last extent
) STRICT;
INSERT INTO data_file (id, identity, length) VALUES (1, randomblob(16), 4096);

-- Space of the data file that is in use. Between extents there is only free space.
CREATE TABLE extent (
    entry  INTEGER NOT NULL,             -- its id; until it is admitted, the negative id of the reservation
    start  INTEGER NOT NULL CHECK (start >= 0),      -- its first byte, in the value
    offset INTEGER NOT NULL CHECK (offset >= 4096),  -- its first byte, in the data file
    length INTEGER NOT NULL CHECK (length > 0),
    PRIMARY KEY (entry, start)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX extent_by_offset ON extent (offset);

-- Space of the data file that is not in use. No two are adjacent, and none is at the end of the file.
CREATE TABLE free_extent (
    offset INTEGER PRIMARY KEY,
    length INTEGER NOT NULL CHECK (length > 0)
) STRICT;
-- Best fit.
CREATE INDEX free_extent_by_length ON free_extent (length, offset);

-- Space that a process has allocated and writes to. It counts for the budget. It is freed when the
-- process has died, which other processes see by its lock, or when the lease has expired, at `until`.
CREATE TABLE reservation (
    id    INTEGER PRIMARY KEY CHECK (id > 0),  -- random: no id is used twice
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    owner INTEGER NOT NULL,              -- the byte of the data file that its process has locked
    until INTEGER NOT NULL               -- end of the lease
) STRICT;

-- Totals of a namespace, and of the file.
CREATE TABLE usage (
    namespace INTEGER NOT NULL REFERENCES namespace (id),
    kind      TEXT    NOT NULL,
    entries   INTEGER NOT NULL DEFAULT 0,
    bytes     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, kind)
) STRICT, WITHOUT ROWID;
CREATE TABLE total (
    kind    TEXT    NOT NULL PRIMARY KEY,
    entries INTEGER NOT NULL DEFAULT 0,
    bytes   INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
INSERT INTO total (kind) VALUES ('stored'), ('value'), ('absent'), ('tombstone'), ('range');

-- Counts since the file was created.
CREATE TABLE statistics (
    namespace     INTEGER PRIMARY KEY REFERENCES namespace (id),
    hits          INTEGER NOT NULL DEFAULT 0,
    misses        INTEGER NOT NULL DEFAULT 0,
    bytes_served  INTEGER NOT NULL DEFAULT 0,  -- from the cache
    bytes_fetched INTEGER NOT NULL DEFAULT 0,  -- from the source
    evictions     INTEGER NOT NULL DEFAULT 0,
    expirations   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TRIGGER namespace_after_insert AFTER INSERT ON namespace BEGIN
    INSERT INTO usage (namespace, kind)
    VALUES
        (new.id, 'stored'),
        (new.id, 'value'),
        (new.id, 'absent'),
        (new.id, 'tombstone'),
        (new.id, 'range');
    INSERT INTO statistics (namespace) VALUES (new.id);
END;
CREATE TRIGGER namespace_before_delete BEFORE DELETE ON namespace BEGIN
    DELETE FROM entry WHERE namespace = old.id;
    DELETE FROM usage WHERE namespace = old.id;
    DELETE FROM statistics WHERE namespace = old.id;
    -- The revisions of the row must outlive it.
    UPDATE counter SET fence = revision;
END;

CREATE TRIGGER entry_after_insert AFTER INSERT ON entry BEGIN
    UPDATE usage SET entries = entries + 1, bytes = bytes + new.size
    WHERE namespace = new.namespace AND kind = new.kind;
END;
CREATE TRIGGER entry_after_delete AFTER DELETE ON entry BEGIN
    UPDATE usage SET entries = entries - 1, bytes = bytes - old.size
    WHERE namespace = old.namespace AND kind = old.kind;
    DELETE FROM value WHERE entry = old.id;
    DELETE FROM extent WHERE entry = old.id;
    -- The revisions of the row must outlive it.
    UPDATE namespace SET fence = old.revision
    WHERE id = old.namespace AND fence < old.revision;
END;
CREATE TRIGGER entry_after_update AFTER UPDATE OF namespace, kind, size ON entry BEGIN
    UPDATE usage SET entries = entries - 1, bytes = bytes - old.size
    WHERE namespace = old.namespace AND kind = old.kind;
    UPDATE usage SET entries = entries + 1, bytes = bytes + new.size
    WHERE namespace = new.namespace AND kind = new.kind;
END;
CREATE TRIGGER reservation_after_delete AFTER DELETE ON reservation BEGIN
    DELETE FROM extent WHERE entry = -old.id;
END;
CREATE TRIGGER extent_after_delete AFTER DELETE ON extent BEGIN
    -- Free it, joined with the free space on either side.
    INSERT INTO free_extent (offset, length)
    SELECT min(offset), sum(length)
    FROM (
        SELECT old.offset AS offset, old.length AS length
        UNION ALL
        SELECT offset, length
        FROM free_extent
        WHERE offset = old.offset + old.length
        UNION ALL
        SELECT offset, length
        FROM (SELECT offset, length FROM free_extent WHERE offset < old.offset ORDER BY offset DESC LIMIT 1)
        WHERE offset + length = old.offset
    )
    WHERE true
    ON CONFLICT (offset) DO UPDATE SET length = excluded.length;
    DELETE FROM free_extent WHERE offset = old.offset + old.length;
    -- Free space at the end of the file is cut off.
    UPDATE data_file
    SET length = (SELECT max(offset) FROM free_extent)
    WHERE length = (SELECT offset + length FROM free_extent ORDER BY offset DESC LIMIT 1);
    DELETE FROM free_extent WHERE offset >= (SELECT length FROM data_file);
END;
CREATE TRIGGER usage_after_update AFTER UPDATE OF entries, bytes ON usage BEGIN
    UPDATE total SET entries = entries + new.entries - old.entries, bytes = bytes + new.bytes - old.bytes
    WHERE kind = new.kind;
END;

-- For people: no joins are needed. Their columns stay.
CREATE VIEW cache_entries AS
SELECT
    namespace.name AS namespace,
    entry.key AS key,
    entry.kind AS kind,
    CASE WHEN entry.start >= 0 THEN entry.start WHEN entry.kind = 'range' THEN -entry.size END AS start,
    CASE WHEN entry.start >= 0 THEN entry.start + entry.size END AS stop,
    CASE
        WHEN entry.size < 1024 THEN format('%d B', entry.size)
        WHEN entry.size < 1048576 THEN format('%.1f KiB', entry.size / 1024.0)
        WHEN entry.size < 1073741824 THEN format('%.1f MiB', entry.size / 1048576.0)
        ELSE format('%.1f GiB', entry.size / 1073741824.0)
    END AS size,
    entry.size AS bytes,
    datetime(entry.stored_at / 1000000000, 'unixepoch', 'localtime') AS stored,
    datetime(entry.used_at / 1000000000, 'unixepoch', 'localtime') AS used
FROM entry
JOIN namespace ON namespace.id = entry.namespace;

CREATE VIEW cache_usage AS
SELECT
    namespace.name AS namespace,
    usage.kind AS kind,
    usage.entries AS entries,
    CASE
        WHEN usage.bytes < 1024 THEN format('%d B', usage.bytes)
        WHEN usage.bytes < 1048576 THEN format('%.1f KiB', usage.bytes / 1024.0)
        WHEN usage.bytes < 1073741824 THEN format('%.1f MiB', usage.bytes / 1048576.0)
        ELSE format('%.1f GiB', usage.bytes / 1073741824.0)
    END AS size,
    usage.bytes AS bytes
FROM usage
JOIN namespace ON namespace.id = usage.namespace
WHERE usage.entries > 0;
