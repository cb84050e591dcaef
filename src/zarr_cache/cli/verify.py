"""``zarr-cache verify``."""

import contextlib
from typing import Annotated

import typer

from zarr_cache.cli.file import existing, opened_to_read, opened_to_write
from zarr_cache.cli.options import CacheFile, Json
from zarr_cache.cli.terminal import count, print_json, say
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
