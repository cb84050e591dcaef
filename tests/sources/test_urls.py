"""URLs of remote sources: all that distinguishes two of them, and no credentials."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import fsspec
import obstore.store
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from zarr_cache.core.private import is_private
from zarr_cache.sources import urls
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from pathlib import Path

HTTP = "https://example.org/data.zarr"


def named(url: str, **options: Any) -> str:
    """The name of a URL that fsspec reads."""
    return name_of(FsspecStore.from_url(url, storage_options=options, read_only=True))


def s3(**options: Any) -> str:
    """The name of a bucket that obstore reads."""
    return name_of(ObjectStore(obstore.store.S3Store("bucket", prefix="data", **options)))


def azure(**options: Any) -> str:
    """The name of a container that obstore reads."""
    store = obstore.store.AzureStore(container_name="box", prefix="data", **options)
    return name_of(ObjectStore(store))


def gcs(**options: Any) -> str:
    """The name of a bucket of Google's that obstore reads."""
    return name_of(ObjectStore(obstore.store.GCSStore("bucket", prefix="data", **options)))


@pytest.fixture(autouse=True)
def _nothing_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


# URLs


SECRETS = ["token", "sig", "X-Goog-Signature", "api_key", "password"]
SAS = "sv=2024-11-04&sr=c&st=2026-01-01&se=2026-02-01&sp=rl&spr=https&sig=abc%3D"


@pytest.mark.parametrize(
    "url",
    [
        "https://Example.org/data.zarr/?version=1&token=abc&X-Amz-Signature=def",
        *(f"{HTTP}?version=1&{secret}=hush" for secret in SECRETS),
        f"{HTTP}?{SAS}&version=1",
    ],
)
def test_a_url_is_named_without_secrets(url: str) -> None:
    assert urls.of_url(url) == f"{HTTP}?version=1"


def test_a_url_is_named_with_its_user_and_without_the_password() -> None:
    assert (
        urls.of_url("https://user:pw@Example.org/data.zarr") == "https://user@example.org/data.zarr"
    )


# Of the first ones, each parameter may be a choice and may be a secret.
@pytest.mark.parametrize(
    "url",
    [
        *(f"{HTTP}?{query}" for query in ("file=a", "dataset_key=a", "sp=a", "a", "version=1&b=2")),
        f"{HTTP}#part",
        *("https://user:pass/word@h/p", "https://[::1/p", "data.zarr", ""),
    ],
)
def test_a_url_that_names_no_one_thing_makes_no_name(url: str) -> None:
    with pytest.raises(urls.NoNameError):
        urls.of_url(url)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://user:pw@h:9000/minio/?token=abc#d", "http://h:9000/minio"),
        ("user:pw@h:9000", "//h:9000"),
        ("https://[::1]:9000", "https://[::1]:9000"),
        ("https://user:pass/word@h", None),
    ],
)
def test_an_endpoint_is_a_scheme_a_host_a_port_and_a_path(
    endpoint: str, expected: str | None
) -> None:
    assert urls.of_endpoint(endpoint) == expected


# fsspec


@pytest.mark.parametrize(
    ("options", "is_named"),
    [
        ({"headers": {"Authorization": "Bearer abc"}}, True),
        ({"client_kwargs": {"headers": {"User-Agent": "me"}}}, True),
        ({"headers": {"X-Dataset": "a"}}, False),
        ({"client_kwargs": {"headers": {"Host": "other.org"}}}, False),
        ({"params": {"file": "a"}}, False),
    ],
)
def test_what_else_chooses_a_value_of_a_url_makes_it_private(
    options: dict[str, Any], is_named: bool
) -> None:
    assert is_private(named(HTTP, **options)) is not is_named


@pytest.mark.parametrize(
    ("header", "is_named"), [("Authorization", True), ("X-Dataset", False), ("Host", False)]
)
def test_a_header_of_obstore_that_chooses_a_value_of_a_url_makes_it_private(
    header: str, is_named: bool
) -> None:
    options: Any = {"default_headers": {header: "a"}}
    store = obstore.store.HTTPStore(HTTP, client_options=options)

    assert is_private(name_of(ObjectStore(store))) is not is_named


def test_characters_of_a_key_are_no_parts_of_a_url() -> None:
    names = {named(f"s3://bucket/{key}", anon=True) for key in ("a", "a#1", "a?version=1", "a%231")}

    assert names == {
        "s3://bucket/a",
        "s3://bucket/a%231",
        "s3://bucket/a%3Fversion%3D1",
        "s3://bucket/a%25231",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "http://user:pw@host:9000"},
        {"client_kwargs": {"endpoint_url": "http://host:9000/"}},
    ],
)
def test_a_bucket_of_s3fs_is_named_with_its_endpoint(options: dict[str, Any]) -> None:
    assert named("s3://bucket/data", **options) == "s3://bucket/data at http://host:9000"


def test_an_endpoint_of_the_environment_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:9000")

    assert named("s3://bucket/data") == s3() == "s3://bucket/data at http://host:9000"


def test_an_endpoint_of_a_profile_is_one(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[profile mine]\nendpoint_url = http://host:9000\naws_secret_access_key = hush\n"
    )

    assert named("s3://bucket/data", profile="mine") == "s3://bucket/data at http://host:9000"


def test_a_profile_that_does_not_exist_makes_the_name_private() -> None:
    assert is_private(named("s3://bucket/data", profile="nobody"))


def test_a_bucket_of_another_partition_is_another() -> None:
    regions = ["eu-west-1", "cn-north-1", "us-gov-west-1", "us-isob-east-1"]
    of_obstore = [s3(region=region) for region in regions]
    of_s3fs = [named("s3://bucket/data", client_kwargs={"region_name": each}) for each in regions]
    by_default = [s3(config={"aws_default_region": region}) for region in regions]

    assert of_obstore == by_default == of_s3fs
    assert of_obstore == [
        "s3://bucket/data",
        "s3://bucket/data at aws-cn",
        "s3://bucket/data at aws-us-gov",
        "s3://bucket/data at aws-iso-b",
    ]


def test_a_sync_file_system_is_named_through_its_async_wrapper(tmp_path: Path) -> None:
    wrapped = AsyncFileSystemWrapper(fsspec.filesystem("file"), asynchronous=True)

    assert name_of(FsspecStore(wrapped, path=str(tmp_path))) == name_of(LocalStore(tmp_path))


def test_a_folder_of_a_file_system_is_named_by_where_it_is() -> None:
    https = fsspec.filesystem("https", asynchronous=True)
    below = DirFileSystem("https://example.org", https, asynchronous=True)

    assert name_of(FsspecStore(below, path="/data.zarr")) == HTTP
    assert name_of(FsspecStore(below, path="")) == "https://example.org"


@pytest.mark.filterwarnings("ignore:fs .* was not created with `asynchronous=True`")
@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_a_cache_of_fsspec_has_the_name_of_what_it_caches(cache: str) -> None:
    assert named(f"{cache}::{HTTP}") == named(HTTP)


@pytest.mark.filterwarnings("ignore:fs .* was not created with `asynchronous=True`")
def test_a_cache_of_fsspec_that_decompresses_has_a_name_of_its_own() -> None:
    name = named(f"simplecache::{HTTP}", simplecache={"compression": "gzip"})

    assert is_private(name)


def test_an_archive_is_named_by_where_it_lies_and_where_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/zarr.json", "{}")
    uri = (tmp_path / "a.zip").as_uri()

    assert named(f"zip://::{uri}") == f"zip:{uri}"
    assert named(f"zip://in::{uri}") == f"zip:{uri}!/in"


class FakeGcs(AsyncFileSystem):  # type: ignore[misc] # fsspec ships no types
    """What `place` reads of gcsfs, which tests do without: it would look for credentials."""

    cachable = False
    _location = "https://storage.googleapis.com"


class FakeAzure(AsyncFileSystem):  # type: ignore[misc] # the same
    """What `place` reads of adlfs, for the same reason."""

    cachable = False
    account_url = "https://acc.blob.core.windows.net"


def pretended(cls: type[AsyncFileSystem], name: str, **facts: str) -> AsyncFileSystem:
    """A file system of a subclass that has the name of another class."""
    module, _, qualname = name.rpartition(".")
    facts = {"__module__": module, "__qualname__": qualname, **facts}
    return type(qualname, (cls,), facts)(asynchronous=True)


def test_a_bucket_of_gcsfs_is_named_as_that_of_obstore() -> None:
    file_system = pretended(FakeGcs, "gcsfs.core.GCSFileSystem")

    assert name_of(FsspecStore(file_system, path="bucket/data")) == gcs() == "gs://bucket/data"


def test_an_emulator_of_gcsfs_is_named_with_its_endpoint() -> None:
    at_home = pretended(FakeGcs, "gcsfs.core.GCSFileSystem", _location="http://u:p@localhost:4443")

    name = name_of(FsspecStore(at_home, path="bucket/data"))

    assert name == "gs://bucket/data at http://localhost:4443"


def test_a_container_of_adlfs_is_named_as_that_of_obstore() -> None:
    file_system = pretended(FakeAzure, "adlfs.spec.AzureBlobFileSystem")

    name = name_of(FsspecStore(file_system, path="box/data"))

    assert name == azure(account_name="acc")
    assert name == "az://box/data at https://acc.blob.core.windows.net"


# obstore


def test_two_endpoints_with_one_bucket_are_two_sources() -> None:
    names = {s3(endpoint=f"https://{host}.example.org") for host in "ab"}

    assert len(names) == 2


def test_a_bucket_is_named_without_its_keys() -> None:
    with_keys = s3(access_key_id="AKIA", secret_access_key="hush", token="hush")  # noqa: S106

    assert with_keys == s3() == "s3://bucket/data"


def test_an_obstore_url_is_named_without_password_and_secrets() -> None:
    store = obstore.store.HTTPStore.from_url("https://user:pw@example.org/data.zarr?sig=abc")

    assert name_of(ObjectStore(store)) == "https://user@example.org/data.zarr"


def test_two_accounts_with_one_container_are_two_sources() -> None:
    assert azure(account_name="a", sas_key="sv=1&sig=hush") != azure(account_name="b")


def test_an_account_of_the_environment_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "a")

    assert azure() == azure(account_name="a")


def test_a_container_of_an_emulator_has_a_name_of_its_own() -> None:
    assert is_private(azure(account_name="a", use_emulator=True))


def test_an_endpoint_in_a_key_of_google_is_one(tmp_path: Path) -> None:
    key = json.dumps(
        {
            "gcs_base_url": "http://localhost:4443",
            "disable_oauth": True,
            "client_email": "",
            "private_key": "hush",
            "private_key_id": "",
        }
    )
    (tmp_path / "key.json").write_text(key)
    names = {gcs(service_account_key=key), gcs(service_account=str(tmp_path / "key.json"))}

    assert names == {"gs://bucket/data at http://localhost:4443"}


def test_an_obstore_without_a_folder_has_a_name_of_its_own() -> None:
    assert is_private(name_of(ObjectStore(obstore.store.LocalStore())))


def test_a_folder_that_obstore_came_to_by_a_path_that_may_lead_elsewhere_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "b/a"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    stores = [obstore.store.LocalStore(each) for each in ("a", link, tmp_path / "a")]
    # obstore reads the same folder for as long as the store lives.
    link.unlink()
    link.symlink_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    relative, linked, direct = [name_of(ObjectStore(store)) for store in stores]

    assert is_private(relative)
    assert is_private(linked)
    assert direct == (tmp_path / "a").as_uri()
