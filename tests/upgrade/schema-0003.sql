-- index entry_by_age of entry
CREATE INDEX entry_by_age ON entry (namespace, kind, validator IS NULL, stored_at)

-- index entry_by_use of entry
CREATE INDEX entry_by_use ON entry (ordered_as, used_at)

-- index extent_by_offset of extent
CREATE UNIQUE INDEX extent_by_offset ON extent (offset)

-- index free_extent_by_length of free_extent
CREATE INDEX free_extent_by_length ON free_extent (length, offset)

-- index sqlite_autoindex_entry_1 of entry
-- made by SQLite itself

-- index sqlite_autoindex_namespace_1 of namespace
-- made by SQLite itself

-- index sqlite_autoindex_value_1 of value
-- made by SQLite itself

-- table counter of counter
CREATE TABLE counter (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,           -- of the last write
    fence    INTEGER NOT NULL            -- the fence of a new namespace
) STRICT

-- table data_file of data_file
CREATE TABLE data_file (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    identity BLOB    NOT NULL CHECK (length(identity) = 16),  -- random; also in the file's header
    length   INTEGER NOT NULL CHECK (length >= 4096)          -- the end of its last extent
) STRICT

-- table entry of entry
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
    ordered_as       TEXT    GENERATED ALWAYS AS (CASE kind WHEN 'range' THEN 'value' ELSE kind END), validator TEXT, confirmed_at INTEGER,
    -- Also how a range is found: of those that begin at a byte or before it, the last one reaches
    -- furthest.
    UNIQUE (namespace, key, start)
) STRICT

-- table extent of extent
CREATE TABLE extent (
    entry  INTEGER NOT NULL,             -- its id; until it is admitted, the negative id of the reservation
    start  INTEGER NOT NULL CHECK (start >= 0),      -- its first byte, in the value
    offset INTEGER NOT NULL CHECK (offset >= 4096),  -- its first byte, in the data file
    length INTEGER NOT NULL CHECK (length > 0),
    PRIMARY KEY (entry, start)
) STRICT, WITHOUT ROWID

-- table free_extent of free_extent
CREATE TABLE free_extent (
    offset INTEGER PRIMARY KEY,
    length INTEGER NOT NULL CHECK (length > 0)
) STRICT

-- table namespace of namespace
CREATE TABLE namespace (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    fence          INTEGER NOT NULL DEFAULT 0,  -- responses of an earlier revision are refused
    removals       INTEGER NOT NULL DEFAULT 0 CHECK (removals >= 0),  -- of folders of the source, in progress
    removals_since INTEGER,                     -- when the first of them began: nothing is admitted meanwhile
    CHECK ((removals = 0) = (removals_since IS NULL))
) STRICT

-- table reservation of reservation
CREATE TABLE reservation (
    id    INTEGER PRIMARY KEY CHECK (id > 0),  -- random: no id is used twice
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    owner INTEGER NOT NULL,              -- the byte of the data file that its process has locked
    until INTEGER NOT NULL               -- end of the lease
) STRICT

-- table reuse of reuse
CREATE TABLE reuse (
    bucket       INTEGER PRIMARY KEY,  -- eight for each power of two; the last, 496: not before, or too long ago
    reads        REAL NOT NULL,
    bytes        REAL NOT NULL,
    recent_bytes REAL NOT NULL,        -- those of late
    least        REAL,                 -- the least size, in bytes, that a read in it needs; NULL in the last
    most         REAL                  -- the largest
) STRICT

-- table sampling of sampling
CREATE TABLE sampling (
    id             INTEGER PRIMARY KEY CHECK (id = 1),
    keeps          INTEGER NOT NULL DEFAULT 0 CHECK (keeps IN (0, 1)),  -- when_full="auto" evicts nothing
    misses         INTEGER NOT NULL DEFAULT 0,  -- since keeps was last another
    missed_bytes   INTEGER NOT NULL DEFAULT 0,  -- and since evicting was last as good
    round_bytes    INTEGER NOT NULL DEFAULT 0,  -- read since what is kept was last judged
    round_served   INTEGER NOT NULL DEFAULT 0,  -- bytes of them from the cache
    round_expected INTEGER NOT NULL DEFAULT 0,  -- bytes of them that should have been
    halvings       INTEGER NOT NULL DEFAULT 0 CHECK (halvings BETWEEN 0 AND 31),  -- one key in 2 to this power
    max_size       INTEGER,                     -- the budget at the last read; NULL if there is none
    reads          REAL    NOT NULL DEFAULT 0,  -- all of them, sampled or not
    bytes          REAL    NOT NULL DEFAULT 0,
    recent_reads   REAL    NOT NULL DEFAULT 0,  -- of the sampled keys, of late
    recent_bytes   REAL    NOT NULL DEFAULT 0,  -- of all keys, of late
    recent_served  REAL    NOT NULL DEFAULT 0,  -- bytes of them from the cache
    -- The sampled values and ranges, the least recently used first, 16 bytes each, little-endian: the hash of
    -- the key and the range (an integer), the size (a float of 32 bits), and how many sampled reads ago it
    -- was used (an integer without sign).
    sampled        BLOB    NOT NULL DEFAULT x''
) STRICT

-- table statistics of statistics
CREATE TABLE statistics (
    namespace     INTEGER PRIMARY KEY REFERENCES namespace (id),
    hits          INTEGER NOT NULL DEFAULT 0,
    misses        INTEGER NOT NULL DEFAULT 0,
    bytes_served  INTEGER NOT NULL DEFAULT 0,  -- from the cache
    bytes_fetched INTEGER NOT NULL DEFAULT 0,  -- from the source
    evictions     INTEGER NOT NULL DEFAULT 0,
    expirations   INTEGER NOT NULL DEFAULT 0
) STRICT

-- table total of total
CREATE TABLE total (
    kind    TEXT    NOT NULL PRIMARY KEY,
    entries INTEGER NOT NULL DEFAULT 0,
    bytes   INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID

-- table usage of usage
CREATE TABLE usage (
    namespace INTEGER NOT NULL REFERENCES namespace (id),
    kind      TEXT    NOT NULL,
    entries   INTEGER NOT NULL DEFAULT 0,
    bytes     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, kind)
) STRICT, WITHOUT ROWID

-- table value of value
CREATE TABLE value (
    entry     INTEGER NOT NULL REFERENCES entry (id),
    part      INTEGER NOT NULL CHECK (part >= 0),
    checksums BLOB    NOT NULL,          -- XXH3 of each block of bytes, 8 bytes each, big-endian
    data      BLOB    NOT NULL,          -- empty if the bytes are in the data file
    PRIMARY KEY (entry, part)
) STRICT

-- trigger entry_after_delete of entry
CREATE TRIGGER entry_after_delete AFTER DELETE ON entry BEGIN
    UPDATE usage SET entries = entries - 1, bytes = bytes - old.size
    WHERE namespace = old.namespace AND kind = old.kind;
    DELETE FROM value WHERE entry = old.id;
    DELETE FROM extent WHERE entry = old.id;
    -- The revisions of the row must outlive it.
    UPDATE namespace SET fence = old.revision
    WHERE id = old.namespace AND fence < old.revision;
END

-- trigger entry_after_insert of entry
CREATE TRIGGER entry_after_insert AFTER INSERT ON entry BEGIN
    UPDATE usage SET entries = entries + 1, bytes = bytes + new.size
    WHERE namespace = new.namespace AND kind = new.kind;
END

-- trigger entry_after_update of entry
CREATE TRIGGER entry_after_update AFTER UPDATE OF namespace, kind, size ON entry BEGIN
    UPDATE usage SET entries = entries - 1, bytes = bytes - old.size
    WHERE namespace = old.namespace AND kind = old.kind;
    UPDATE usage SET entries = entries + 1, bytes = bytes + new.size
    WHERE namespace = new.namespace AND kind = new.kind;
END

-- trigger extent_after_delete of extent
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
END

-- trigger namespace_after_insert of namespace
CREATE TRIGGER namespace_after_insert AFTER INSERT ON namespace BEGIN
    INSERT INTO usage (namespace, kind)
    VALUES
        (new.id, 'stored'),
        (new.id, 'value'),
        (new.id, 'absent'),
        (new.id, 'tombstone'),
        (new.id, 'range');
    INSERT INTO statistics (namespace) VALUES (new.id);
END

-- trigger namespace_before_delete of namespace
CREATE TRIGGER namespace_before_delete BEFORE DELETE ON namespace BEGIN
    DELETE FROM entry WHERE namespace = old.id;
    DELETE FROM usage WHERE namespace = old.id;
    DELETE FROM statistics WHERE namespace = old.id;
    -- The revisions of the row must outlive it.
    UPDATE counter SET fence = revision;
END

-- trigger reservation_after_delete of reservation
CREATE TRIGGER reservation_after_delete AFTER DELETE ON reservation BEGIN
    DELETE FROM extent WHERE entry = -old.id;
END

-- trigger usage_after_update of usage
CREATE TRIGGER usage_after_update AFTER UPDATE OF entries, bytes ON usage BEGIN
    UPDATE total SET entries = entries + new.entries - old.entries, bytes = bytes + new.bytes - old.bytes
    WHERE kind = new.kind;
END

-- view cache_entries of cache_entries
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
JOIN namespace ON namespace.id = entry.namespace

-- view cache_usage of cache_usage
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
WHERE usage.entries > 0

-- view hit_rate_by_size of hit_rate_by_size
CREATE VIEW hit_rate_by_size AS
SELECT
    CASE
        WHEN reuse.most < 1024 THEN format('%d B', reuse.most)
        WHEN reuse.most < 1048576 THEN format('%.1f KiB', reuse.most / 1024.0)
        WHEN reuse.most < 1073741824 THEN format('%.1f MiB', reuse.most / 1048576.0)
        ELSE format('%.1f GiB', reuse.most / 1073741824.0)
    END AS size,
    CAST(reuse.most AS INTEGER) AS bytes,
    round(
        max(
            0.0,
            min(
                1.0,
                (
                    -- The sample has more or less than its part of the keys that are read most.
                    sampling.bytes - (SELECT sum(bytes) FROM reuse)
                    + sum(reuse.bytes) OVER (ORDER BY reuse.bucket)
                ) / sampling.bytes
            )
        ),
        3
    ) AS hit_rate
FROM reuse
JOIN sampling ON sampling.id = 1
WHERE reuse.most IS NOT NULL AND sampling.bytes > 0

-- row of counter: (1, 1, 1)
-- row of total: ('absent', 0, 0)
-- row of total: ('range', 0, 0)
-- row of total: ('stored', 0, 0)
-- row of total: ('tombstone', 0, 0)
-- row of total: ('value', 0, 0)
-- row of data_file: (1, 16, 4096)
-- row of sampling: (1, 0, 0, 0, 0, 0, 0, 0, None, 0.0, 0.0, 0.0, 0.0, 0.0, b'')
-- application_id: 1514357041
-- user_version: 3
-- page_size: 4096
-- auto_vacuum: 2
-- encoding: UTF-8
