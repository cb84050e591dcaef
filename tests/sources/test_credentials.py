"""Credentials are never in a name, which is written to the file and shown to users."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import obstore.store
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import FsspecStore, LoggingStore, ObjectStore, StorePath

from tests.fakes import STRESS
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

# As keys and tokens are: in base 64, and with the characters that a URL must quote.
TOKEN = st.text("ABCDEFGHijklmnop0123456789+/=-_.~!$&@:%", min_size=6, max_size=40)
SECRETS = TOKEN.map(lambda token: f"Zq{token}qZ")

# Parameters that carry a secret, unknown ones among them.
PARAMETERS = st.sampled_from([
    "token", "sig", "Signature", "X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential",
    "X-Goog-Signature", "api_key", "apikey", "access_token", "password", "subscription-key", "jwt",
    "pass", "key", "code", "who-knows", "hmac", "Policy", "se",
])  # fmt: skip
QUERIES = st.lists(PARAMETERS, max_size=4)


def url(scheme: str, secret: str, names: list[str]) -> str:
    """A URL with the secret everywhere that a URL has a place for one."""
    hidden = quote(secret, safe="")
    query = "&".join(f"{name}={hidden}" for name in names)
    return f"{scheme}://user:{hidden}@host.org:8443/data.zarr?{query}"


def http(secret: str, names: list[str]) -> Store:
    options = {
        "headers": {"Authorization": f"Bearer {secret}", "X-Other": secret},
        "client_kwargs": {"headers": {"X-Api-Key": secret}},
        "params": {"token": secret},
    }
    return FsspecStore.from_url(url("https", secret, names), options, read_only=True)


def plain_http(secret: str, names: list[str]) -> Store:
    return LoggingStore(FsspecStore.from_url(url("https", secret, names), read_only=True))


def http_of_obstore(secret: str, names: list[str]) -> Store:
    return ObjectStore(obstore.store.HTTPStore.from_url(url("https", secret, names)))


def s3_of_fsspec(secret: str, names: list[str]) -> Store:
    file_system = s3fs.S3FileSystem(
        key=secret,
        secret=secret,
        token=secret,
        endpoint_url=url("https", secret, names),
        client_kwargs={"aws_session_token": secret},
        s3_additional_kwargs={"SSECustomerKey": secret},
        asynchronous=True,
        skip_instance_cache=True,
    )
    return FsspecStore(file_system, path="bucket/data.zarr")


def s3_of_obstore(secret: str, names: list[str]) -> Store:
    return ObjectStore(
        obstore.store.S3Store(
            "bucket",
            prefix="data.zarr",
            access_key_id=secret,
            secret_access_key=secret,
            token=secret,
            endpoint=url("https", secret, names),
        )
    )


def azure_of_obstore(secret: str, names: list[str]) -> Store:
    return ObjectStore(
        obstore.store.AzureStore(
            container_name="box",
            account_name="account",
            client_secret=secret,
            client_id=secret,
            tenant_id=secret,
            sas_key=f"sv=2024&sig={quote(secret, safe='')}",
            endpoint=url("https", secret, names),
        )
    )


def google_of_obstore(secret: str, names: list[str]) -> Store:
    key = {
        "gcs_base_url": url("https", secret, names),
        "disable_oauth": True,
        "client_email": secret,
        "private_key": secret,
        "private_key_id": secret,
    }
    return ObjectStore(obstore.store.GCSStore("bucket", service_account_key=json.dumps(key)))


SOURCES: list[Callable[[str, list[str]], Store]] = [
    http,
    plain_http,
    http_of_obstore,
    s3_of_fsspec,
    s3_of_obstore,
    azure_of_obstore,
    google_of_obstore,
]


def assert_untold(secret: str, text: str) -> None:
    """Neither the secret is in the text, nor how a URL writes it, in whatever case."""
    for written in {secret, quote(secret), quote(secret, safe="")}:
        assert written.lower() not in text.lower()
    assert "zq" not in text.lower()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@settings(max_examples=25 * STRESS)
@given(secret=SECRETS, names=QUERIES)
def test_a_secret_is_never_in_a_name(
    source: Callable[[str, list[str]], Store], secret: str, names: list[str]
) -> None:
    assert_untold(secret, name_of(source(secret, names)))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_a_secret_is_not_in_what_a_cache_reports(
    source: Callable[[str, list[str]], Store], path: Path
) -> None:
    store = CacheStore(source("Zqhush", ["token"]), cache_store=SqliteStore(path))

    for said in (repr(store), str(store), str(store.cache_info()), repr(StorePath(store, "a"))):
        assert_untold("Zqhush", said)
