"""``zarr-cache verify`` and ``zarr-cache compact``."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from zarr_cache.cli.file import existing, opened_to_read, opened_to_write, size_of
from zarr_cache.cli.options import CacheFile, Json
from zarr_cache.cli.terminal import count, print_json, say
from zarr_cache.core.sizes import format_size
from zarr_cache.disk.paths import data_file_of, wal_of
from zarr_cache.index import upkeep
from zarr_cache.index.upkeep import checkpoint, give_back, space
from zarr_cache.inspect import verify as verification
from zarr_cache.inspect.problem import Problem, run_on


def verify(
    cache_file: CacheFile = None,
    *,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Delete wrong entries, or replace a damaged database.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read the whole file and check it: bytes, checksums, totals, free space.

    Exits with 1 if there is a problem that is not repaired.
    """
    path = existing(cache_file)
    problems: list[Problem] = []
    with contextlib.ExitStack() as stack:
        if repair:
            found = stack.enter_context(opened_to_write(path)).verify(repair=True)
        else:
            connection = stack.enter_context(opened_to_read(path))
            found = verification.verify(run_on(connection, path))
        for problem in found:
            problems.append(problem)
            if not as_json:
                say(str(problem))
    left = sum(not problem.is_repaired for problem in problems)
    if as_json:
        print_json({"path": str(path), "problems": [_as_json(each) for each in problems]})
    elif problems:
        say(f"{path}: {count(len(problems), 'problem')}, {left} not repaired")
    else:
        say(f"{path}: no problem found")
    if left:
        raise typer.Exit(1)


def _as_json(problem: Problem) -> dict[str, object]:
    return {
        "what": problem.what,
        "namespace": problem.namespace,
        "key": problem.key,
        "found": str(problem.found),
        "expected": str(problem.expected),
        "is_repaired": problem.is_repaired,
    }


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
