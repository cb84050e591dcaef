"""``zarr-cache compact``."""

from pathlib import Path

from zarr_cache.cli.file import existing, opened_to_write, size_of
from zarr_cache.cli.options import CacheFile, Json
from zarr_cache.cli.terminal import print_json, say
from zarr_cache.core.sizes import format_size
from zarr_cache.disk.paths import data_file_of, wal_of
from zarr_cache.index import upkeep
from zarr_cache.index.upkeep import checkpoint, give_back, space


def compact(cache_file: CacheFile = None, *, as_json: Json = False) -> None:
    """Give free space in the file back to the disk.

    Moves large values from the end of the data file to the front. Works in short steps, so that
    other processes can write meanwhile. Migrates a file of an older release first.
    """
    path = existing(cache_file)
    before = _bytes_on_disk(path)
    with opened_to_write(path) as store:
        now_ns = store.database.clock().now_ns
        while store.database.run(upkeep.move_last, now_ns()):
            pass
        store.database.run(upkeep.cut)
        can_shrink = store.database.run(space).can_shrink
        while can_shrink and store.database.run(give_back):
            pass
        is_written_back = store.database.run(checkpoint)
        # Measured before closing, as it is on the disk while other processes use the file.
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
        say("the file was made without incremental auto-vacuum and cannot shrink: start a new one")
    if not is_written_back:
        say("another process is reading: the file shrinks when it has finished")


def _bytes_on_disk(path: Path) -> int:
    """Bytes of the file, its data file and its WAL."""
    return sum(map(size_of, (path, data_file_of(path), wal_of(path))))
