-- 0003: which reads a cache of another size would have served, from a sample of them.
--
-- The reads of some keys are sampled: those whose hash is low. Each of them stands for as many reads as keys
-- are sampled in one. A read that is long ago counts less and less, so that numbers of reads are fractions.

-- One row.
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
) STRICT;
INSERT INTO sampling (id) VALUES (1);

-- The reads of the sampled keys, by the size that a cache needs to serve them: the bytes that were read since
-- the same bytes were read before, and themselves.
CREATE TABLE reuse (
    bucket       INTEGER PRIMARY KEY,  -- eight for each power of two; the last, 496: not before, or too long ago
    reads        REAL NOT NULL,
    bytes        REAL NOT NULL,
    recent_bytes REAL NOT NULL,        -- those of late
    least        REAL,                 -- the least size, in bytes, that a read in it needs; NULL in the last
    most         REAL                  -- the largest
) STRICT;

-- For people: the part of the bytes that a cache of each size would have served.
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
WHERE reuse.most IS NOT NULL AND sampling.bytes > 0;
