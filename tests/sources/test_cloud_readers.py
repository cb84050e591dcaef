"""What is read of gcsfs and adlfs, which tests do without: they would look for credentials."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from tests.sources.reading import DATA, KEY, data_of, fetch, listed, version
from zarr_cache.sources.readers import reader_of
from zarr_cache.sources.source_reader import ChangedError

if TYPE_CHECKING:
    from collections.abc import Callable

MODIFIED = datetime(2024, 1, 1, tzinfo=UTC)


class FakeCloud:
    """One object, and a listing of it that is kept as those file systems keep theirs."""

    async_impl = asynchronous = True

    def __init__(self, facts: Callable[[int], dict[str, Any]], *, refreshes: bool) -> None:
        self.facts, self.refreshes, self.number = facts, refreshes, 1
        self.kept: dict[str, Any] | None = None

    def info(self) -> dict[str, Any]:
        size = len(DATA)
        return {"name": f"bucket/x/{KEY}", "type": "file", "size": size, **self.facts(self.number)}

    async def _info(self, path: str, *, refresh: bool = False) -> dict[str, Any]:
        assert path == f"bucket/x/{KEY}"
        assert self.refreshes or not refresh
        return self.info() if self.kept is None or refresh else self.kept

    async def _find(self, path: str, *, detail: bool) -> dict[str, Any]:
        assert detail
        assert path == "bucket/x/group"
        self.kept = self.info()
        folder: dict[str, Any] = {"name": "bucket/x/group/empty", "type": "directory", "size": 0}
        return {each["name"]: each for each in (self.kept, folder)}

    async def _cat_file(self, _path: str) -> bytes:
        return DATA

    def _strip_protocol(self, path: str) -> str:
        return path

    def invalidate_cache(self, path: str | None = None) -> None:
        assert path in {None, f"bucket/x/{KEY}"}
        self.kept = None


class GCSFileSystem(FakeCloud):
    """By the fields of https://cloud.google.com/storage/docs/json_api/v1/objects#resource."""

    def __init__(self) -> None:
        super().__init__(
            lambda number: {"generation": f"17{number}", "etag": "CKih16=", "mtime": MODIFIED},
            refreshes=False,
        )


class AzureBlobFileSystem(FakeCloud):
    """By adlfs's FORWARDED_BLOB_PROPERTIES."""

    def __init__(self) -> None:
        super().__init__(
            lambda number: {"etag": f"0x8D{number}", "last_modified": MODIFIED}, refreshes=True
        )


CLASSES = {
    "gcsfs.core.GCSFileSystem": (GCSFileSystem, "g171"),
    "gcsfs.extended_gcsfs.ExtendedGcsFileSystem": (GCSFileSystem, "g171"),
    "adlfs.spec.AzureBlobFileSystem": (AzureBlobFileSystem, '"0x8D1"'),
}


def store_of(name: str) -> tuple[FsspecStore, FakeCloud, str]:
    """A store of a class that has the name, and the validator of its first version."""
    base, validator = CLASSES[name]
    module, _, qualified = name.rpartition(".")
    file_system = type(qualified, (base,), {"__module__": module, "__qualname__": qualified})()
    source: Any = FsspecStore(file_system, path="bucket/x", read_only=True)
    return source, file_system, validator


each_class = pytest.mark.parametrize("name", CLASSES)


@each_class
def test_a_fetch_has_the_bytes_and_the_validator(name: str) -> None:
    source, file_system, validator = store_of(name)
    fetched = fetch(source)
    same = fetch(source, unless=validator)
    file_system.number = 2

    assert (data_of(fetched), fetched.validator) == (DATA, validator)
    assert same.is_unchanged
    assert version(source) not in {None, validator}
    with pytest.raises(ChangedError):
        fetch(source, only=validator)


@each_class
def test_a_listing_tells_the_validators_and_does_not_answer_later(name: str) -> None:
    source, file_system, validator = store_of(name)
    found = listed(source, "group/")
    assert file_system.kept is None
    sync(file_system._find("bucket/x/group", detail=True))
    file_system.number = 2

    assert found == {KEY: (KEY, validator, len(DATA), int(MODIFIED.timestamp()) * 10**9)}
    assert version(source) not in {None, validator}


@each_class
def test_a_folder_has_no_validator(name: str) -> None:
    source, file_system, _ = store_of(name)
    facts = file_system.facts
    file_system.facts = lambda number: facts(number) | {"type": "directory"}

    assert version(source) is None


@each_class
def test_a_subclass_has_no_reader(name: str) -> None:
    _, file_system, _ = store_of(name)
    own: Any = type("Own", (type(file_system),), {"__module__": __name__})()

    assert reader_of(FsspecStore(own, path="bucket/x")) is None
