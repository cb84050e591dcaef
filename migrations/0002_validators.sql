-- 0002: which version of a value an entry has, and when the source last said that it still has it.
--
-- The rows of earlier files get neither: their age counts from stored_at, and their checksum stays right.

-- What identifies the version at the source: an ETag, for example, after the kind of validator. NULL: not
-- known. All ranges of a key have the same one.
ALTER TABLE entry ADD COLUMN validator TEXT;
-- When the source last said that it has this version. NULL: not since stored_at. An entry is as old as the
-- later of the two.
ALTER TABLE entry ADD COLUMN confirmed_at INTEGER;

-- Stale entries that have no validator expire. About those that have one, the source is asked, and does not
-- send what it has not changed.
DROP INDEX entry_by_age;
CREATE INDEX entry_by_age ON entry (namespace, kind, validator IS NULL, stored_at);
