"""Repair of a cache file: wrong entries are removed, and a damaged file is replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from zarr_cache.core.errors import CacheError, FileDamagedError
from zarr_cache.disk.paths import file_id_of
from zarr_cache.inspect import verify
from zarr_cache.inspect.problem import Problem
from zarr_cache.inspect.rescue import copy_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.file_database import FileDatabase
    from zarr_cache.inspect.problem import Run


def repair(
    database: FileDatabase, run: Run, put: Callable[[str, ByteArray], None]
) -> Iterator[Problem]:
    """Yield each problem of the file, as `SqliteStore.verify` does, after it is repaired.

    Parameters
    ----------
    run
        Runs an operation on the file.
    put
        Stores a value in the new file, unless the key is there.
    """
    file_id = file_id_of(database.path)
    try:
        damage = verify.find_damage(run)
        if not damage:
            yield from verify.verify_rows(run, repair=True)
            return
        error = FileDamagedError(f"{database.path}: {damage[0]}")
        error.file_id = file_id
    except FileDamagedError as refused:
        damage, error = [Problem("file", str(refused), "a cache file")], refused
    try:
        quarantined = database.quarantine_with_stored(error)
    except CacheError:
        yield from damage
        raise
    if quarantined is None:
        # Another process was first: the file there now is a new one.
        yield from damage
        return
    # All values are copied before the first problem is yielded: the caller may stop iterating.
    not_copied = list(copy_stored(quarantined, put))
    replaced = Problem(
        "file", f"a damaged one, which is now {quarantined}", "another, which is created"
    )
    for problem in (*damage, replaced):
        yield replace(problem, is_repaired=True)
    yield from not_copied
