-- 0001: what is kept, how large and how old it is, who goes next, and the bytes themselves.
--
-- Times are integers: nanoseconds since the Unix epoch as PersistentClock tells them.
-- Sizes and places are bytes. Facts and bytes are apart, so that walking the facts never reads bytes.
-- Totals, the removal of bytes, the free space of the data file and the fence of a namespace are kept
-- by triggers, so that an edit in the sqlite3 shell leaves them right.

-- Whose keys these are: the name of a source without credentials, or of a hierarchy kept here.
CREATE TABLE namespace (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    fence          INTEGER NOT NULL DEFAULT 0,  -- answers asked for at a revision before this one are refused
    removals       INTEGER NOT NULL DEFAULT 0 CHECK (removals >= 0),  -- of folders of the source, under way
    removals_since INTEGER,                     -- when the first of them began: nothing is kept meanwhile
    CHECK ((removals = 0) = (removals_since IS NULL))
) STRICT;

-- One row. Revisions count the writes that this file has seen. They begin at the time of its making
-- in nanoseconds, so that those of a file that was in its place before are less than all of its own.
CREATE TABLE counter (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,           -- of the last write
    fence    INTEGER NOT NULL            -- what a new namespace begins with
) STRICT;
INSERT INTO counter (id, revision, fence)
SELECT 1, now, now
FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000000 AS now);

-- What is known about one key of one namespace.
--   stored  bytes that somebody put here with SqliteStore: never evicted, never expired
--   value   bytes of a source, kept to save a request
--   absent  the source has no such key
--   fence   a write passed by: nothing is known, and what was asked for before it is refused
CREATE TABLE entry (
    id        INTEGER PRIMARY KEY,
    namespace INTEGER NOT NULL REFERENCES namespace (id),
    key       TEXT    NOT NULL,
    kind      TEXT    NOT NULL CHECK (kind IN ('stored', 'value', 'absent', 'fence')),
    size      INTEGER NOT NULL CHECK (size >= 0),
    stored_at INTEGER NOT NULL,          -- when the source was asked
    used_at   INTEGER NOT NULL,          -- last use
    revision  INTEGER NOT NULL,          -- counter.revision of the last write to the key
    writers   INTEGER NOT NULL DEFAULT 0 CHECK (writers >= 0),  -- writes to the source under way
    checksum  INTEGER NOT NULL,          -- XXH3 of the facts, see checksum.py
    UNIQUE (namespace, key)
) STRICT;
-- Who goes next. Covering, so that eviction reads no row it does not remove.
CREATE INDEX entry_by_use ON entry (kind, used_at, id, size);
-- What is stale.
CREATE INDEX entry_by_age ON entry (namespace, kind, stored_at);

-- The bytes of an entry, raw as the source gave them, in parts numbered from 0. All parts but the
-- last have the same length. An entry of size 0 has none. The bytes of a large value of a source are
-- in the data file, and the parts of that value have checksums only.
CREATE TABLE value (
    entry     INTEGER NOT NULL REFERENCES entry (id),
    part      INTEGER NOT NULL CHECK (part >= 0),
    checksums BLOB    NOT NULL,          -- XXH3 of each block of bytes, 8 bytes each, big-endian
    data      BLOB    NOT NULL,          -- empty where the bytes are in the data file
    PRIMARY KEY (entry, part)
) STRICT;

-- The data file: the bytes of large values, in a file of the same name with "-data" at its end. One
-- row. Space is given out and taken back in extents that begin and end at multiples of 4096.
CREATE TABLE data_file (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    identity BLOB    NOT NULL CHECK (length(identity) = 16),  -- random; also in the file's header
    length   INTEGER NOT NULL CHECK (length >= 4096)          -- where its last extent ends
) STRICT;
INSERT INTO data_file (id, identity, length) VALUES (1, randomblob(16), 4096);

-- Space of the data file that is in use. An extent begins where another ends, or free space does.
CREATE TABLE extent (
    entry  INTEGER NOT NULL,             -- its id; the negative id of a reservation until it is kept
    start  INTEGER NOT NULL CHECK (start >= 0),      -- which byte of the value it begins with
    place  INTEGER NOT NULL CHECK (place >= 4096),   -- where in the data file it begins
    length INTEGER NOT NULL CHECK (length > 0),
    PRIMARY KEY (entry, start)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX extent_by_place ON extent (place);

-- Space of the data file that is not in use. No two touch, and none touches the end of the file.
CREATE TABLE free_extent (
    place  INTEGER PRIMARY KEY,
    length INTEGER NOT NULL CHECK (length > 0)
) STRICT;
-- Best fit.
CREATE INDEX free_extent_by_length ON free_extent (length, place);

-- Space that a process has taken and is writing to. It counts for the budget, and is given back when
-- the writer has died: when nobody holds its lock any more, or at the latest at `until`.
CREATE TABLE reservation (
    id    INTEGER PRIMARY KEY CHECK (id > 0),  -- random: no two have the same, not even in turn
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    owner INTEGER NOT NULL,              -- which byte of the data file its writer has locked
    until INTEGER NOT NULL
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
INSERT INTO total (kind) VALUES ('stored'), ('value'), ('absent'), ('fence');

-- What happened over the life of the file.
CREATE TABLE statistics (
    namespace     INTEGER PRIMARY KEY REFERENCES namespace (id),
    hits          INTEGER NOT NULL DEFAULT 0,
    misses        INTEGER NOT NULL DEFAULT 0,
    bytes_served  INTEGER NOT NULL DEFAULT 0,  -- out of the cache
    bytes_fetched INTEGER NOT NULL DEFAULT 0,  -- from the source
    evictions     INTEGER NOT NULL DEFAULT 0,
    expirations   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TRIGGER namespace_after_insert AFTER INSERT ON namespace BEGIN
    INSERT INTO usage (namespace, kind)
    VALUES (new.id, 'stored'), (new.id, 'value'), (new.id, 'absent'), (new.id, 'fence');
    INSERT INTO statistics (namespace) VALUES (new.id);
END;
CREATE TRIGGER namespace_before_delete BEFORE DELETE ON namespace BEGIN
    DELETE FROM entry WHERE namespace = old.id;
    DELETE FROM usage WHERE namespace = old.id;
    DELETE FROM statistics WHERE namespace = old.id;
    -- What the row knew about writes must outlive it.
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
    -- What the row knew about writes must outlive it.
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
    -- Free, as one with the free space on either side.
    INSERT INTO free_extent (place, length)
    SELECT min(place), sum(length)
    FROM (
        SELECT old.place AS place, old.length AS length
        UNION ALL
        SELECT place, length
        FROM free_extent
        WHERE place = old.place + old.length
        UNION ALL
        SELECT place, length
        FROM (SELECT place, length FROM free_extent WHERE place < old.place ORDER BY place DESC LIMIT 1)
        WHERE place + length = old.place
    )
    WHERE true
    ON CONFLICT (place) DO UPDATE SET length = excluded.length;
    DELETE FROM free_extent WHERE place = old.place + old.length;
    -- At the end of the file it is cut off.
    UPDATE data_file
    SET length = (SELECT max(place) FROM free_extent)
    WHERE length = (SELECT place + length FROM free_extent ORDER BY place DESC LIMIT 1);
    DELETE FROM free_extent WHERE place >= (SELECT length FROM data_file);
END;
CREATE TRIGGER usage_after_update AFTER UPDATE OF entries, bytes ON usage BEGIN
    UPDATE total SET entries = entries + new.entries - old.entries, bytes = bytes + new.bytes - old.bytes
    WHERE kind = new.kind;
END;

-- For people: no joins to know. Columns are kept stable.
CREATE VIEW cache_entries AS
SELECT
    namespace.name AS namespace,
    entry.key AS key,
    entry.kind AS kind,
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
