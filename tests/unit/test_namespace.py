"""Names of sources: the same for the same data, different for others, and without secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import obstore.store
import pytest
from zarr.storage import FsspecStore, LocalStore, LoggingStore, MemoryStore, ObjectStore, ZipStore

from zarr_cache import SqliteStore
from zarr_cache.namespace import PRIVATE, name_of, without_credentials

if TYPE_CHECKING:
    from pathlib import Path


def s3(**options: str) -> ObjectStore[obstore.store.S3Store]:
    place = {"bucket": "bucket", "prefix": "data", "region": "eu-west-1", **options}
    return ObjectStore(obstore.store.S3Store(**place))  # type: ignore[arg-type]


def test_a_folder_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")

    assert name_of(LocalStore(tmp_path / "data")) == (tmp_path / "data").as_uri()
    assert name_of(LocalStore(tmp_path / "link")) == (tmp_path / "data").as_uri()


def test_a_wrapper_has_the_name_of_what_it_wraps(tmp_path: Path) -> None:
    source = LocalStore(tmp_path)

    assert name_of(LoggingStore(source)) == name_of(source)


def test_a_read_only_view_has_the_name_of_its_source(tmp_path: Path) -> None:
    source = LocalStore(tmp_path)

    assert name_of(source.with_read_only(read_only=True)) == name_of(source)


def test_stores_of_one_path_and_different_kinds_have_different_names(tmp_path: Path) -> None:
    path = tmp_path / "data"

    names = {name_of(source) for source in (LocalStore(path), ZipStore(path), SqliteStore(path))}

    assert len(names) == 3


def test_a_source_that_does_not_outlive_the_process_has_a_name_of_its_own() -> None:
    source = MemoryStore()

    assert name_of(source).startswith(PRIVATE)
    assert name_of(source) != name_of(MemoryStore())


def test_a_url_is_named_without_user_info_and_secrets() -> None:
    url = "https://user:pw@example.org/data.zarr?version=3&token=abc&X-Amz-Signature=def"
    name = name_of(FsspecStore.from_url(url, read_only=True))

    assert name == "https://example.org/data.zarr?version=3"


def test_two_versions_in_a_query_are_two_sources() -> None:
    names = {
        name_of(FsspecStore.from_url(f"https://example.org/data?version={number}", read_only=True))
        for number in (1, 2)
    }

    assert len(names) == 2


def test_a_file_system_whose_url_does_not_tell_it_from_others_has_a_name_of_its_own() -> None:
    source = FsspecStore.from_url("memory://data", read_only=True)

    assert name_of(source).startswith(PRIVATE)


def test_two_endpoints_with_one_bucket_are_two_sources() -> None:
    names = {name_of(s3(endpoint=f"https://{host}.example.org")) for host in "ab"}

    assert len(names) == 2


def test_a_bucket_is_named_without_its_keys() -> None:
    with_keys = s3(access_key_id="AKIA", secret_access_key="hush")  # noqa: S106 - not a secret

    assert name_of(with_keys) == name_of(s3()) == "S3Store:/bucket/data"


def test_an_obstore_url_is_named_without_user_info_and_secrets() -> None:
    store = obstore.store.HTTPStore.from_url("https://user:pw@example.org/data?sig=abc")

    assert name_of(ObjectStore(store)) == "https://example.org/data"


def test_an_obstore_folder_has_the_name_of_the_folder(tmp_path: Path) -> None:
    store = ObjectStore(obstore.store.LocalStore(tmp_path))

    assert name_of(store) == name_of(LocalStore(tmp_path))


def test_an_obstore_in_memory_has_a_name_of_its_own() -> None:
    assert name_of(ObjectStore(obstore.store.MemoryStore())).startswith(PRIVATE)


@pytest.mark.parametrize("secret", ["token", "sig", "X-Goog-Signature", "api_key", "password"])
def test_a_parameter_that_is_a_secret_is_left_out(secret: str) -> None:
    assert without_credentials(f"https://h/p?a=1&{secret}=hush&b=2") == "https://h/p?a=1&b=2"
