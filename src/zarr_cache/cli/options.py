"""Options that several commands have, and the parsing of sizes and ages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from zarr_cache.core.sizes import parse_size
from zarr_cache.disk.paths import VARIABLE

_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}

_AGE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.ASCII)


def parse_size_option(text: str) -> int:
    """Bytes of a size such as ``"20 GiB"``."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def parse_age(text: str) -> float:
    """Seconds of an age such as ``"7 d"``."""
    match = _AGE.fullmatch(text)
    if match is None or match[2] not in _SECONDS:
        raise typer.BadParameter(
            f"{text!r} is not an age; expected seconds, or an age such as '90 s', '30 min' or '7 d'"
        )
    return float(match[1]) * _SECONDS[match[2]]


CacheFile = Annotated[
    Path | None,
    typer.Option(
        "--cache-file",
        "-f",
        envvar=VARIABLE,
        help="The cache file. By default the one in your cache folder.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Namespace = Annotated[str | None, typer.Option(help="Only this source, as `info` names it.")]
SourceNamespace = Annotated[
    str | None,
    typer.Option(
        help="The name under which the source is cached, if a `CacheStore` was given one. By "
        "default the source's own. A server of this machine (localhost) has none that lasts."
    ),
]
SourceUrl = Annotated[
    str, typer.Argument(help="A Zarr: a URL that obstore or fsspec reads, or a folder.")
]
Prefix = Annotated[str, typer.Option(help="Only keys that begin with this.")]
MaxSize = Annotated[
    int | None,
    typer.Option(
        parser=parse_size_option,
        metavar="SIZE",
        help="The budget to compare with: it is a setting of a CacheStore, not of the file.",
    ),
]
MaxAge = Annotated[
    float | None,
    typer.Option(
        parser=parse_age, metavar="AGE", help="Older values count as stale, for example '7 d'."
    ),
]
ToSize = Annotated[
    int | None,
    typer.Option(
        parser=parse_size_option,
        metavar="SIZE",
        help="Evict the least recently used until values and ranges have at most this many bytes.",
    ),
]
OlderThan = Annotated[
    float | None,
    typer.Option(
        parser=parse_age, metavar="AGE", help="Only what was fetched at least this long ago."
    ),
]
UnusedFor = Annotated[
    float | None,
    typer.Option(
        parser=parse_age, metavar="AGE", help="Only what has not been used for this long."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Report what would be removed, and remove nothing.")
]
