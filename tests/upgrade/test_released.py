"""What was released never changes: scripts, the schemas that they make, and kept files.

A file that users have was made by the scripts of their release, and the newer scripts begin where
these end. A change of the schema is a new script in ``migrations/``.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes import open_file
from tests.systems import needs_data_file
from tests.upgrade.kept import (
    RELEASES,
    SUMS,
    kept_data_file,
    kept_file,
    kept_schema,
    unpack,
)
from zarr_cache import SqliteStore
from zarr_cache.file import migrate
from zarr_cache.sampling import stored

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection
    from zarr_cache.sampling.sample import Sample

ROOT = Path(__file__).parents[2]

FROZEN = {
    name: digest for digest, name in map(str.split, SUMS.read_text(encoding="utf-8").splitlines())
}
"""SHA-256 by path."""


def changed(name: str, data: bytes) -> str | None:
    """A sentence on what is wrong with the bytes of that file; None if they are as released."""
    if hashlib.sha256(data).hexdigest() == FROZEN[name]:
        return None
    if hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest() == FROZEN[name]:
        return (
            f"{name}: its lines end with CRLF, those of the release with LF: see .gitattributes, "
            "and check it out again"
        )
    return (
        f"{name} is not what was released. A released migration never changes, nor what is kept "
        f"of it: put it back (git log -- {name}), and write a new one"
    )


def read_sample(connection: Connection) -> Sample:
    with connection.reading():
        return stored.read(connection)


@pytest.mark.parametrize("name", FROZEN)
def test_what_was_released_is_the_same_byte_for_byte(name: str) -> None:
    assert changed(name, (ROOT / name).read_bytes()) is None


def test_a_changed_migration_and_other_line_endings_are_told_apart() -> None:
    name = "migrations/0001_entries_and_values.sql"
    data = (ROOT / name).read_bytes()

    assert "write a new one" in str(changed(name, data + b"-- more\n"))
    assert "LF" in str(changed(name, data.replace(b"\n", b"\r\n")))


def test_every_script_up_to_the_newest_release_is_frozen_with_what_is_kept_of_it() -> None:
    released = max(RELEASES.values())
    kept = [
        path.relative_to(ROOT).as_posix()
        for number in range(1, released + 1)
        for path in (kept_file(number), kept_data_file(number), kept_schema(number))
    ]
    scripts = sorted(path.name for path in (ROOT / "migrations").glob("*.sql"))[:released]

    assert sorted(FROZEN) == sorted([*kept, *(f"migrations/{name}" for name in scripts)])


def test_the_version_of_the_project_is_among_the_releases() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]

    # One that is in the making is not: it ends in .dev0.
    assert RELEASES.get(version) == (None if ".dev" in version else migrate.newest())


@needs_data_file
def test_the_file_of_a_release_has_every_kind_of_entry(path: Path) -> None:
    unpack(RELEASES["0.1.0"], path)
    with open_file(path) as db:
        kinds = {kind for (kind,) in db.execute("SELECT DISTINCT kind FROM entry")}

    assert kinds == {"absent", "range", "stored", "tombstone", "value"}


@needs_data_file
def test_the_sample_of_reads_in_the_file_of_a_release_is_read(path: Path) -> None:
    unpack(RELEASES["0.1.0"], path)
    sample = SqliteStore(path).database.run(read_sample)
    sizes, rates = sample.rates()

    # One that cannot be read is begun anew, without a word.
    assert round(sample.reads) == 12
    assert sizes
    assert 0 < max(rates) < 1
