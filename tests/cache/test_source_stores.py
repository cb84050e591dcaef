"""Which client reads a URL, under which name it is cached, and what is said of a wrong one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from zarr_cache.cache.source_stores import source_store, without_secrets
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from pathlib import Path


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def no_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "obstore", "obstore.store", "obstore.exceptions")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket/data.zarr", {}),
        ("S3://bucket/data.zarr", {}),
        ("s3://bucket/data.zarr", {"skip_signature": True, "region": "eu-west-1"}),
        ("s3://bucket/data.zarr", {"client_options": {"timeout": "10s"}}),
        ("gs://bucket/data.zarr", {}),
        ("abfs://container@account.dfs.core.windows.net/", {}),
        ("https://example.org/data.zarr", {"retry_config": {"max_retries": 1}}),
        ("https://bucket.s3.us-west-2.amazonaws.com/data.zarr", {}),
    ],
)
def test_obstore_reads_what_it_knows(url: str, options: dict[str, Any]) -> None:
    assert isinstance(source_store(url, options), ObjectStore)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket/data.zarr", {"anon": True}),
        ("s3://bucket/data.zarr", {"client_options": {"nonsense": 1}}),
        ("s3://bucket/folder//data.zarr", {}),
        ("https://example.org/data.zarr", {"headers": {"Accept": "*/*"}}),
        ("memory://data.zarr", {}),
    ],
)
def test_fsspec_reads_what_obstore_refuses(url: str, options: dict[str, Any]) -> None:
    assert isinstance(source_store(url, options), FsspecStore)


def test_a_server_of_a_cloud_is_read_over_http() -> None:
    store: Any = source_store("https://bucket.s3.us-west-2.amazonaws.com/data.zarr")

    assert type(store.store).__name__ == "HTTPStore"


@pytest.mark.parametrize(
    ("url", "options", "is_allowed"),
    [
        ("http://example.org/data.zarr", {}, True),
        ("https://example.org/data.zarr", {}, False),
        ("s3://bucket/data.zarr", {"endpoint": "http://127.0.0.1:9000"}, True),
        ("s3://bucket/data.zarr", {"endpoint": "https://127.0.0.1:9000"}, False),
        ("http://example.org/data.zarr", {"client_options": {"allow_http": "false"}}, False),
    ],
)
def test_obstore_reads_without_encryption_only_what_was_named_so(
    url: str, options: dict[str, Any], is_allowed: bool
) -> None:
    store: Any = source_store(url, options)
    found = (store.store.client_options or {}).get("allow_http", "false")

    assert found == ("true" if is_allowed else "false")


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/data.zarr",
        "s3://bucket",
        "s3://bucket/a b%20c#d?e+f.zarr/",
        "https://example.org/a b/data.zarr/",
        "https://user:secret@example.org/data.zarr?sig=secret",
    ],
)
def test_both_clients_have_one_name_for_a_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through_obstore = source_store(url)
    without(monkeypatch, "obstore", "obstore.store", "obstore.exceptions")
    through_fsspec = source_store(url)

    assert isinstance(through_obstore, ObjectStore)
    assert isinstance(through_fsspec, FsspecStore)
    assert name_of(through_obstore) == name_of(through_fsspec)
    assert "secret" not in name_of(through_fsspec)


def test_a_client_that_would_read_another_place_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from obstore import store as obstore_store  # noqa: PLC0415 - patched here

    bucket = obstore_store.S3Store("bucket")
    monkeypatch.setattr(obstore_store, "from_url", lambda *_, **__: bucket)

    assert isinstance(source_store("s3://bucket/data.zarr"), FsspecStore)


@pytest.mark.parametrize("end", ["", "/", "//"])
@pytest.mark.parametrize("query", ["", "?sig=a/b/"])
def test_slashes_at_the_end_of_a_path_do_not_count(end: str, query: str) -> None:
    store: Any = source_store(f"https://example.org/data.zarr{end}{query}")

    assert store.store.url == f"https://example.org/data.zarr{query}"


@pytest.mark.usefixtures("no_obstore")
def test_a_scheme_may_be_in_capitals() -> None:
    store = source_store("S3://Bucket/Data.zarr")

    assert name_of(store) == "s3://Bucket/Data.zarr"


def test_a_path_is_the_same_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = source_store("data.zarr")

    assert relative == LocalStore(tmp_path / "data.zarr", read_only=True)


def test_what_only_begins_as_a_url_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert source_store("://data") == LocalStore(tmp_path / ":/data", read_only=True)


def test_a_path_and_a_file_url_are_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20c.zarr"

    for url in (
        folder,
        str(folder),
        folder.as_uri(),
        folder.as_uri().replace("///", "//localhost/"),
    ):
        store = source_store(url)
        assert store == LocalStore(folder, read_only=True)
        assert store.read_only


@pytest.mark.parametrize(
    ("name", "way_out"), [("data.zip", "ZipStore"), ("zarr.json", "pass the folder")]
)
def test_a_file_is_no_zarr(tmp_path: Path, name: str, way_out: str) -> None:
    (tmp_path / name).touch()

    with pytest.raises(ValueError, match=rf"{name} is a file, .*{way_out}"):
        source_store(tmp_path / name)


@pytest.mark.parametrize(
    ("url", "options", "error", "words"),
    [
        ("", {}, ValueError, "url is empty"),
        ("file://data.zarr", {}, ValueError, "'data.zarr' stands where a host does"),
        ("data.zarr", {"anon": True}, TypeError, "data.zarr: storage_options are for"),
        ("s3://", {}, ValueError, "s3://...: the URL names no bucket; expected such as s3:"),
        ("gs:///x?sig=secret", {}, ValueError, "gs://...: the URL names no bucket"),
        ("https:///x", {}, ValueError, "https://...: the URL names no host; expected such as"),
        (
            "nonsense://x:secret@y/?sig=secret",
            {},
            ValueError,
            "nonsense://y: the scheme 'nonsense'",
        ),
        (b"data.zarr", {}, TypeError, "url must be a string or a path, got bytes"),
    ],
)
def test_what_is_no_url_is_refused(
    url: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        source_store(url, options)

    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.usefixtures("no_obstore")
@pytest.mark.parametrize(
    ("url", "missing", "words"),
    [
        (
            "s3://key:secret@bucket/x",
            "s3fs",
            "s3://bucket/x: s3fs is not installed: pip install obstore, or pip install s3fs",
        ),
        (
            "https://user:secret@example.org/x?sig=secret",
            "fsspec.implementations.http",
            "https://example.org/x: 'fsspec[http]' is not installed: pip install obstore, or",
        ),
        (
            "s3://bucket/x",
            "fsspec",
            "s3://bucket/x: fsspec is not installed: pip install obstore, or pip install s3fs",
        ),
        ("ftp://user:secret@example.org/x", "fsspec", "ftp://example.org/x: fsspec is not"),
        ("abfss://a@b/x", "adlfs", "abfss://b/x: adlfs is not installed: pip install obstore, or"),
        ("hf://datasets/x", "huggingface_hub", "hf://datasets/x: Install huggingface_hub"),
    ],
)
def test_what_is_to_be_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, url: str, missing: str, words: str
) -> None:
    loaded: dict[str, Any] = sys.modules["fsspec.registry"]._registry
    for name in list(loaded):
        monkeypatch.delitem(loaded, name)
    without(monkeypatch, missing)

    with pytest.raises(ImportError) as raised:
        source_store(url)

    assert str(raised.value).startswith(words)
    assert "secret" not in str(raised.value)


def test_why_obstore_does_not_read_a_url_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "gcsfs")

    with pytest.raises(ImportError) as raised:
        source_store("gs://bucket/x", {"token": "anon"})

    assert str(raised.value) == (
        "gs://bucket/x: gcsfs is not installed, and obstore does not read it (Configuration key: "
        "'token' is not valid for store 'GCS'): pip install gcsfs, or pass storage_options that "
        "obstore takes"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("zip://data.zarr::https://user:secret@example.org/x.zip?sig=secret", None),
        ("simplecache::s3://bucket/x", "simplecache::s3://bucket/x"),
        ("s3://", "s3://..."),
        ("folder/a::b", "folder/a::b"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, shown: str | None) -> None:
    assert without_secrets(url) == (shown or "zip://data.zarr::https://example.org/x.zip")
