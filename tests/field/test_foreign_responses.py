"""What a gateway or a login page sends in place of a value is returned, and never cached.

Seen in https://github.com/NeuroTechX/moabb/issues/1141 and
https://github.com/nsidc/earthaccess/issues/307: such a page was kept, and the data set stayed
broken until the cache was cleared.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import buffer, cached_keys, cached_ranges, read, read_ranges, restart, values
from tests.freshness.origins import HttpOrigin, caching, over_http, version
from tests.sources.http_server import through_fsspec, through_obstore
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.sources.response_check import is_foreign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes import HeldTime

CHUNK, METADATA = "array/c/0", "array/zarr.json"
DOCUMENT = json.dumps({"zarr_format": 3, "node_type": "group"}).encode()
PAGE = b"<!DOCTYPE html>\n<html><body>Please log in to GuestWiFi</body></html>".ljust(4096)
PART, NEXT = RangeByteRequest(0, 100), RangeByteRequest(100, 200)
AGE = 10

PAGES = {
    "doctype": b"<!doctype html>\n<title>Log in",
    "upper case": b"<!DOCTYPE HTML PUBLIC '-//W3C//DTD HTML 4.01//EN'>",
    "html": b"<html>\r\n<head><title>502 Bad Gateway</title></head>",
    "with a language": b'<html\n lang="en">',
    "blanks first": b"\r\n\t  <html>",
    "byte order mark": b"\xef\xbb\xbf<!doctype html>",
    "comment": b"<!-- proxy --><html>",
    "XHTML": b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML">',
    "head": b"<head><meta http-equiv=refresh>",
    "script": b"<script>location='/login'</script>",
    "body": b"<BODY>Sign in</BODY>",
    "cut after the first tag": b"<html>",
    "cut in the first tag": b"<!DOCTY",
}


@pytest.fixture(params=[through_obstore, through_fsspec], ids=["obstore", "fsspec"])
def http(request: pytest.FixtureRequest) -> Iterator[HttpOrigin]:
    """Values of an HTTP server, through each client of it."""
    with over_http(request.param, asks_first=request.param is through_fsspec) as origin:
        origin.copy({CHUNK: version(1), METADATA: DOCUMENT})
        yield origin


READS: dict[str, Any] = {
    "metadata": (METADATA, lambda store: sync(read(store, METADATA))),
    "value": (CHUNK, lambda store: sync(read(store, CHUNK))),
    "range": (CHUNK, lambda store: sync(read(store, CHUNK, PART))),
    "range in the middle": (CHUNK, lambda store: sync(read(store, CHUNK, NEXT))),
    "end": (CHUNK, lambda store: sync(read(store, CHUNK, SuffixByteRequest(100)))),
    "all from an offset": (CHUNK, lambda store: sync(read(store, CHUNK, OffsetByteRequest(3996)))),
    "ranges": (CHUNK, lambda store: sync(read_ranges(store, CHUNK, [PART]))[0]),
    "all by ranges": (CHUNK, lambda store: sync(read_ranges(store, CHUNK, [None]))[0]),
    "ranges of one request": (
        CHUNK,
        lambda store: b"".join(
            found or b"" for found in sync(read_ranges(store, CHUNK, [PART, NEXT]))
        ),
    ),
}
each_read = pytest.mark.parametrize(("key", "ask"), READS.values(), ids=READS)


def outcome(ask: Any, store: Any) -> Any:
    """What a read gives, or that it fails: obstore refuses a response that ignores the range."""
    try:
        return ask(store)
    except Exception as error:  # noqa: BLE001 - whatever the client raises, with the cache and without
        return type(error)


@pytest.mark.pairs
@each_read
@pytest.mark.parametrize("is_persisted", [False, True], ids=["in memory", "persisted"])
@pytest.mark.parametrize("length", [100, 200, 4096])
def test_a_page_is_returned_as_without_the_cache_and_gone_when_the_source_is_back(
    http: HttpOrigin, path: Path, key: str, ask: Any, is_persisted: bool, length: int
) -> None:
    cache = caching(http, path, persist_ranges=is_persisted)
    http.server.page = PAGE[:length]
    assert outcome(ask, cache) == outcome(ask, http.source)
    cache.flush()
    assert cached_keys(path) == set()
    assert cached_ranges(path) == []
    http.server.page = None

    value = DOCUMENT if key == METADATA else version(1)
    assert set(ask(cache)) <= set(value)
    restart(cache)
    again = caching(http, path, persist_ranges=is_persisted)
    assert set(ask(again)) <= set(value)
    restart(again)


@pytest.mark.parametrize("ask", [ask for _, ask in READS.values()], ids=READS)
def test_what_is_cached_stays_cached(
    http: HttpOrigin, path: Path, held_time: HeldTime, ask: Any
) -> None:
    cache = caching(http, path, persist_ranges=True, max_age_seconds=AGE)
    value = ask(cache)
    held_time.step(AGE + 1)
    http.server.page = PAGE
    outcome(ask, cache)
    http.server.page = None
    held_time.step(AGE + 1)

    assert ask(cache) == value
    restart(cache)


def test_a_page_in_place_of_a_stale_value_leaves_it_for_readers_that_are_offline(
    http: HttpOrigin, path: Path, held_time: HeldTime
) -> None:
    cache = caching(http, path, max_age_seconds=AGE)
    for key in (CHUNK, METADATA):
        sync(read(cache, key))
    held_time.step(AGE + 1)
    http.server.page = PAGE
    assert [sync(read(cache, key)) for key in (CHUNK, METADATA)] == [PAGE, PAGE]
    restart(cache)
    offline = caching(http, path, offline=True)

    assert [sync(read(offline, key)) for key in (CHUNK, METADATA)] == [version(1), DOCUMENT]
    restart(offline)


def test_a_reader_that_was_given_a_page_reads_on(http: HttpOrigin, path: Path) -> None:
    cache = caching(http, path)
    http.server.page = PAGE
    assert sync(read_ranges(cache, CHUNK, [None])) == [PAGE]
    http.server.page = None

    assert sync(read_ranges(cache, CHUNK, [PART])) == [version(1)[:100]]
    restart(cache)


def test_one_line_is_logged(http: HttpOrigin, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = caching(http, path)
    http.server.page = PAGE
    for key in (CHUNK, METADATA, CHUNK):
        sync(read(cache, key))

    (line,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
    assert line.getMessage() == (
        "changing: what the source sent for 'array/c/0' is an HTML page, as from a login page or a "
        "gateway; it is returned and not cached"
    )
    restart(cache)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_an_html_page_is_recognised_by_its_first_bytes(page: bytes) -> None:
    assert is_foreign(CHUNK, None, buffer(page))
    assert is_foreign(CHUNK, RangeByteRequest(0, len(page)), buffer(page))
    assert is_foreign(METADATA, None, buffer(page))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<",
        b"<ht",
        b"<p >",
        b"<bytes>",
        b"<htmlx>",
        b"<?xml version='1.0'?><svg>",
        b"\x28\xb5\x2f\xfd<html>",
        bytes(100),
    ],
)
def test_other_bytes_are_not_taken_for_a_page(data: bytes) -> None:
    assert not is_foreign(CHUNK, None, buffer(data))


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("zarr.json", b""),
        ("zarr.json", b"\x28\xb5\x2f\xfd"),
        ("zarr.json", b"upstream connect error"),
        ("zarr.json", DOCUMENT[:-1]),
        ("zarr.json", b'{"message": "Forbidden"}'),
        ("zarr.json", b"[" * 100_000),
        ("zarr.json", b"null"),
        (".zarray", b'{"error": 1}'),
        (".zgroup", b'{"detail": "Not authenticated"}'),
        (".zmetadata", b'{"zarr_format": 2}'),
        (".zattrs", b"[]"),
    ],
)
def test_what_cannot_be_metadata_of_zarr_is_foreign(name: str, document: bytes) -> None:
    assert is_foreign(f"array/{name}", None, buffer(document))
    assert is_foreign(name, None, buffer(document))


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("zarr.json", DOCUMENT),
        (".zarray", b'{"zarr_format": 2}'),
        (".zgroup", b'{"zarr_format": 2}'),
        (".zmetadata", b'{"metadata": {}, "zarr_consolidated_format": 1}'),
        (".zattrs", b"{}"),
        (".zgroup", b"{}"),
        (".zattrs", b'{"a": NaN}'),
        ("c/0", b"{"),
    ],
)
def test_metadata_of_zarr_and_chunks_are_not(name: str, document: bytes) -> None:
    assert not is_foreign(f"array/{name}", None, buffer(document))


def test_a_range_of_metadata_need_not_be_json() -> None:
    assert not is_foreign(METADATA, RangeByteRequest(0, 5), buffer(b'{"zar'))


def test_metadata_that_is_half_written_is_read_again(path: Path, tmp_path: Path) -> None:
    source = LocalStore(tmp_path / "source", read_only=True)
    file = tmp_path / "source" / "zarr.json"
    file.parent.mkdir()
    file.write_bytes(DOCUMENT[:10])
    cache = CacheStore(source, cache_store=SqliteStore(path))
    assert cache.get_sync("zarr.json") == buffer(DOCUMENT[:10])
    file.write_bytes(DOCUMENT)

    assert cache.get_sync("zarr.json") == buffer(DOCUMENT)
    restart(cache)


def test_what_the_user_writes_is_cached_whatever_it_is(path: Path) -> None:
    source = MemoryStore()
    cache = CacheStore(source, cache_store=SqliteStore(path), namespace="written")
    cache.set_sync(CHUNK, buffer(PAGE))
    cache.flush()

    assert cached_keys(path) == {CHUNK}


@pytest.mark.parametrize("compressors", ["auto", None], ids=["compressed", "raw"])
def test_an_array_is_read_once_the_login_is_over(
    http: HttpOrigin, path: Path, compressors: Any
) -> None:
    source = MemoryStore()
    zarr.create_array(
        source, name="a", shape=(64,), chunks=(64,), dtype="u1", compressors=compressors
    )[:] = 7
    http.copy({key: value.to_bytes() for key, value in source._store_dict.items()})
    cache = caching(http, path)
    array = zarr.open_array(cache, path="a", mode="r")
    http.server.page = PAGE[:64]
    outcome(values, array)
    http.server.page = None

    assert set(values(array)) == {7}
    restart(cache)
    again = caching(http, path)
    assert set(values(zarr.open_array(again, path="a", mode="r"))) == {7}
    restart(again)
