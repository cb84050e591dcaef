"""``zarr-cache compact``."""

from pathlib import Path

from zarr_cache.cli.file import data_bytes, existing, opened_to_write, wal_bytes
from zarr_cache.cli.options import CacheFile, Json
from zarr_cache.cli.terminal import print_json, say
from zarr_cache.core.sizes import format_size
from zarr_cache.index import space as index_space
from zarr_cache.index.space import give_back, space, write_back


def compact(cache_file: CacheFile = None, *, as_json: Json = False) -> None:
    """Give the space of what was removed back to the disk.

    Large values at the end of the data file are moved to the front. In short steps, so that others
    may go on writing. An older file is brought up to date first.
    """
    path = existing(cache_file)
    before = _bytes_on_disk(path)
    with opened_to_write(path) as store:
        now_ns = store.database.clock().now_ns
        while store.database.run(index_space.move_last, now_ns()):
            pass
        store.database.run(index_space.cut)
        can_shrink = store.database.run(space).can_shrink
        while can_shrink and store.database.run(give_back):
            pass
        is_written_back = store.database.run(write_back)
        # Before the store is closed: what a disk has of the file while others use it.
        after = _bytes_on_disk(path)
    if as_json:
        print_json(
            {
                "path": str(path),
                "before_bytes": before,
                "after_bytes": after,
                "can_shrink": can_shrink,
                "is_log_written_back": is_written_back,
            }
        )
        return
    say(f"{path}: {format_size(before)} before, {format_size(after)} now")
    if not can_shrink:
        say("it was made without incremental auto-vacuum and cannot shrink: begin another")
    if not is_written_back:
        say("another process uses it: the file is cut when that has done with what it reads")


def _bytes_on_disk(path: Path) -> int:
    """Bytes of the file, its data file and its log."""
    return path.stat().st_size + data_bytes(path) + wal_bytes(path)
