"""Warming goes on where a request fails, and is not complete where it has found nothing.

A run over a whole archive met one object that the server could not send, ended there, and ended
there again each time it was repeated: https://github.com/dandi/dandisets/issues/145.
"""

from __future__ import annotations

import asyncio
import errno
import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner
from zarr.api.asynchronous import open_array
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import CountingStore, HeldStore, VersionedReader, buffer
from tests.sources.http_server import serving, through_fsspec
from tests.warming.arrays import rows, sharded
from zarr_cache import (
    CacheStore,
    OfflineError,
    SqliteStore,
    WarmReport,
    coverage,
    revalidate,
    warm,
    warm_async,
)
from zarr_cache.cli import app
from zarr_cache.core.errors import FileFullError
from zarr_cache.warming.warm import warm_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.fakes import Call
    from tests.sources.http_server import VersionedServer

URL = "https://example.org/c/17?token=s3cr3t"


class BadStore(CountingStore):
    """A source that fails for some keys, each time.

    Attributes
    ----------
    errors
        The error of each key that it cannot send.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.errors: dict[str, Exception] = {}

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        if key in self.errors:
            self.count(method, key)
            raise self.errors[key]
        return await super()._ask(method, key, call)


class Opened(NamedTuple):
    """A source that can fail, a CacheStore over it, and the array "a/b" of so many chunks."""

    source: BadStore
    store: CacheStore
    array: zarr.Array[Any]


def bad(path: Path, chunks: int = 200, memory: MemoryStore | None = None) -> Opened:
    source = BadStore(memory or rows(chunks))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    return Opened(source, store, zarr.open_array(store, path="a/b", mode="r"))


def chunks(*numbers: int) -> list[str]:
    return [f"a/b/c/{number}/0" for number in numbers]


class StatusError(Exception):
    """As aiohttp's ClientResponseError: it has a status, and its message is a URL."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='', url='{URL}'")
        self.status = status


ERRORS = [
    (StatusError(500), "StatusError, HTTP status 500"),
    (StatusError(403), "StatusError, HTTP status 403"),
    (TimeoutError(), "TimeoutError"),
    (PermissionError(errno.EACCES, URL), "PermissionError, Permission denied"),
    (OSError(URL), "OSError"),
    (ValueError(URL), "ValueError"),
    # aiohttp and fsspec raise such errors, too, of a connection that breaks off.
    (AttributeError("'NoneType' object has no attribute 'transport'"), "AttributeError"),
]


# One of many fails


@pytest.mark.parametrize(("error", "described"), ERRORS, ids=lambda each: type(each).__name__)
def test_all_others_are_fetched_and_the_one_that_failed_is_listed(
    path: Path, error: Exception, described: str
) -> None:
    source, _, array = bad(path)
    source.errors["a/b/c/17/0"] = error

    report = warm(array)
    again = warm(array)

    assert int(coverage(array).sum()) == 199
    assert (report.fetched, report.left, report.failed) == (199, 1, 1)
    assert [(each.key, each.error) for each in report.failures] == [("a/b/c/17/0", described)]
    assert (report.stopped, report.is_complete) == ("failed", False)
    assert (again.cached, again.failed) == (199, 1)


@pytest.mark.parametrize("error", [each for each, _ in ERRORS], ids=lambda each: repr(type(each)))
def test_no_message_of_an_error_is_reported_since_it_may_have_a_token(
    path: Path, error: Exception
) -> None:
    source, _, array = bad(path)
    source.errors["a/b/c/17/0"] = error

    report = warm(array)

    assert "s3cr3t" not in f"{report} {report!r}"
    assert str(report).endswith(f"1 request failed: {report.failures[0]}")


def test_metadata_that_fails_is_listed_and_the_chunks_are_fetched(path: Path) -> None:
    source, _, array = bad(path, 5)
    source.errors["a/zarr.json"] = StatusError(403)

    report = warm(array)

    assert (report.fetched, report.left, report.stopped) == (5, 0, None)
    assert [each.key for each in report.failures] == ["a/zarr.json"]
    assert not report.is_complete


def test_the_first_twenty_are_listed_and_all_are_counted(path: Path) -> None:
    source, _, array = bad(path, 100)
    source.errors |= dict.fromkeys(chunks(*range(10, 60)), StatusError(500))

    report = warm(array, max_concurrency=1)

    assert (report.fetched, report.failed, report.left) == (50, 50, 50)
    assert [each.key for each in report.failures] == chunks(*range(10, 30))


def test_a_shard_whose_index_is_broken_is_listed_and_the_others_are_fetched(path: Path) -> None:
    memory = sharded((40, 200), (5, 5), (10, 10))
    memory._store_dict["c/1/3"].as_numpy_array()[-1] ^= 1
    store = CacheStore(memory, cache_store=SqliteStore(path), persist_ranges=True)
    array = zarr.open_array(store, mode="r")

    plan = warm(array, np.s_[:, ::10], dry_run=True)
    report = warm(array, np.s_[:, ::10])

    # One of two columns of inner chunks, of a shard of four.
    assert (report.chunks, report.fetched, report.left) == (160, 158, 2)
    assert [str(each) for each in report.failures] == ["'c/1/3' (ValueError)"]
    assert plan.chunks == 160


@pytest.mark.parametrize("persist_ranges", [False, True])
def test_a_shard_that_fails_is_listed_and_the_others_are_fetched(
    path: Path, persist_ranges: bool
) -> None:
    source = BadStore(sharded((40, 200), (5, 5), (10, 10)))
    source.errors["c/1/3"] = TimeoutError()
    store = CacheStore(
        source, cache_store=SqliteStore(path), namespace="source", persist_ranges=persist_ranges
    )
    array = zarr.open_array(store, mode="r")

    report = warm(array, np.s_[:, ::6])

    assert [str(each) for each in report.failures] == ["'c/1/3' (TimeoutError)"]
    assert report.fetched == report.chunks - report.left


def test_a_dry_run_estimates_what_it_cannot_ask_for(path: Path) -> None:
    source, _, array = bad(path, 10)
    source.errors["a/b/c/7/0"] = StatusError(500)

    plan = warm(array, dry_run=True)

    assert (plan.chunks, plan.sizes_asked, plan.is_exact) == (10, 9, False)
    assert plan.nbytes == 10 * 1000
    assert [each.key for each in plan.failures] == ["a/b/c/7/0"]


# All fail


def test_it_stops_when_the_first_twenty_requests_for_chunks_fail(path: Path) -> None:
    source, _, array = bad(path)
    source.errors |= dict.fromkeys(chunks(*range(200)), StatusError(503))
    source.reset()

    with pytest.raises(StatusError) as failure:
        warm(array, max_concurrency=1)

    assert failure.value.status == 503
    assert failure.value.__notes__ == [
        "0 chunks were fetched before this; warming again continues there"
    ]
    assert len([key for key in source.keys if "/c/" in key]) == 20


def test_it_goes_on_when_one_of_the_first_twenty_did_not_fail(path: Path) -> None:
    source, _, array = bad(path)
    source.errors |= dict.fromkeys(chunks(*range(19), *range(20, 200)), TimeoutError())

    report = warm(array, max_concurrency=1)

    assert (report.fetched, report.failed, report.left) == (1, 199, 199)


def test_fewer_than_twenty_that_all_fail_are_listed(path: Path) -> None:
    source, _, array = bad(path, 3)
    source.errors |= dict.fromkeys(chunks(0, 1, 2), TimeoutError())

    assert warm(array).failed == 3


# What ends a run at once


@pytest.mark.parametrize(
    "error",
    [
        FileFullError("the cache is full"),
        OfflineError("a/b/c/0/0", "source"),
        MemoryError(),
        NameError("name 'x' is not defined"),
        ImportError("no codec"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_that_is_not_of_one_key_ends_the_run(path: Path, error: Exception) -> None:
    source, _, array = bad(path)
    source.errors["a/b/c/17/0"] = error

    with pytest.raises(type(error)):
        warm(array)


def test_what_is_not_cached_offline_ends_the_run(path: Path) -> None:
    _, store, array = bad(path)
    warm(array, np.s_[:3])
    store.flush()
    offline = CacheStore(
        MemoryStore(), cache_store=SqliteStore(path), namespace="source", offline=True
    )

    with pytest.raises(OfflineError):
        warm(zarr.open_array(offline, path="a/b", mode="r"))


async def test_a_cancellation_ends_it_at_once_whatever_has_failed(path: Path) -> None:
    source = HeldStore(rows(30))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    array = await open_array(store=store, path="a/b", mode="r")
    await warm_async(array, np.s_[:2])
    gate = source.hold_before("get")
    run = asyncio.create_task(warm_async(array, max_concurrency=1))
    await gate.reached()
    source.reset()

    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await run
    assert source.requests == {}


# revalidate


class BadReader(VersionedReader):
    """A source that cannot tell the version of one key."""

    async def version(self, key: str) -> str | None:
        if key == "a/b/c/1/0":
            raise StatusError(500)
        return await super().version(key)


def test_a_key_whose_version_cannot_be_asked_for_is_listed_and_stays_as_it_is(path: Path) -> None:
    memory = rows(5).with_read_only(read_only=True)
    store = CacheStore(memory, cache_store=SqliteStore(path), namespace="source")
    store._view.reader = BadReader(memory)
    array = zarr.open_array(store, path="a/b", mode="r")
    array[...]
    store.flush()

    report = revalidate(array)

    assert (report.failed, report.changed) == (1, 0)
    assert [str(each) for each in report.failures] == ["'a/b/c/1/0' (StatusError, HTTP status 500)"]
    assert report.unchanged == report.checked - 1
    assert coverage(array).all()


# Groups, where the server lists nothing: a run of them was "0 chunks", and complete.


class Site(NamedTuple):
    """A server of plain HTTP, and the hierarchy that it serves."""

    server: VersionedServer
    memory: MemoryStore
    path: Path

    def publish(self) -> None:
        for key, value in self.memory._store_dict.items():
            self.server.put(key, value.to_bytes())

    def command(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of ``zarr-cache warm``."""
        command = ["warm", self.server.url, "--cache-file", str(self.path), "--namespace", "site"]
        result = CliRunner().invoke(app, [*command, *arguments])
        return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def site(path: Path) -> Iterator[Site]:
    with serving() as server:
        yield Site(server, MemoryStore(), path)


@pytest.fixture
def group(site: Site) -> Iterator[Callable[..., zarr.Group]]:
    """Publishes the hierarchy, and opens it through a CacheStore over HTTP."""
    with through_fsspec(site.server.url) as source:

        def opened(path: str = "", **settings: Any) -> zarr.Group:
            site.publish()
            store = CacheStore(source, cache_store=SqliteStore(site.path), namespace="site")
            return zarr.open_group(store, path=path, mode="r", **settings)

        yield opened


def image(memory: MemoryStore, version: str, path: str = "") -> None:
    """An OME image of two scales, of 16 and 4 chunks."""
    zarr_format: Literal[2, 3] = 3 if version == "0.5" else 2
    multiscales = [{"axes": [{"name": "y"}], "datasets": [{"path": "0"}, {"path": "1"}]}]
    root = zarr.create_group(memory, path=path, zarr_format=zarr_format)
    if version == "0.5":
        root.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    else:
        root.attrs["multiscales"] = multiscales
    for name, length in (("0", 40), ("1", 20)):
        shape = (length, length)
        root.create_array(name, shape=shape, chunks=(10, 10), dtype="u1")[...] = 5


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_the_arrays_of_an_ome_image_are_found_by_its_multiscales(
    site: Site, group: Callable[..., zarr.Group], version: str
) -> None:
    image(site.memory, version)
    opened = group()

    plan = warm(opened, dry_run=True)
    report = warm(opened)
    code, out, _ = site.command("--json")

    assert (plan.chunks, plan.arrays) == (20, ("0", "1"))
    assert (report.fetched, report.arrays, report.is_complete) == (20, ("0", "1"), True)
    assert str(report).endswith("; in 2 arrays: '0', '1'")
    assert (code, json.loads(out)["cached"], json.loads(out)["arrays"]) == (0, 20, ["0", "1"])


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("settings", [{}, {"use_consolidated": False}])
@pytest.mark.parametrize("path_of_group", ["", "deep"])
def test_consolidated_metadata_comes_first_also_that_of_a_group_above(
    site: Site, group: Callable[..., zarr.Group], path_of_group: str, settings: dict[str, Any]
) -> None:
    image(site.memory, "0.5", "deep")
    root = zarr.open_group(site.memory, path="deep")
    root.create_array("labels", shape=4, chunks=2, dtype="u1")[:] = 1
    zarr.consolidate_metadata(site.memory)

    report = warm(group(path_of_group, **settings))

    assert report.arrays == ("deep/0", "deep/1", "deep/labels")
    assert (report.fetched, report.is_complete) == (22, True)


PAGE = b"<html><a href='about.html'>about</a> <a href='../'>up</a></html>"


@pytest.mark.parametrize("page", [None, b"", b"[]", PAGE], ids=["404", "empty", "[]", "a page"])
def test_a_group_in_which_nothing_is_found_is_an_error_that_says_to_name_the_arrays(
    site: Site, group: Callable[..., zarr.Group], page: bytes | None
) -> None:
    zarr.create_group(site.memory).create_array("t", shape=4, dtype="u1")[:] = 1
    if page is not None:
        site.server.put("", page)
    opened = group()

    for dry_run in (False, True):
        with pytest.raises(ValueError, match="name its arrays one by one"):
            warm(opened, dry_run=dry_run)
    code, out, err = site.command()
    by_name, *_ = site.command("--array", "t")

    assert (code, out) == (1, "")
    assert "name its arrays one by one, as with --array" in err
    assert by_name == 0


def test_a_listing_of_links_that_has_the_metadata_of_the_group_is_believed(
    site: Site, group: Callable[..., zarr.Group]
) -> None:
    root = zarr.create_group(site.memory)
    root.create_array("deep/t", shape=4, chunks=2, dtype="u1")[:] = 1
    site.server.put("", b"<a href='zarr.json'>zarr.json</a><a href='deep/'>deep/</a>")
    site.server.put("deep", b"<a href='zarr.json'>zarr.json</a><a href='t/'>t/</a>")

    report = warm(group())

    assert (report.arrays, report.fetched, report.is_complete) == (("deep/t",), 2, True)


def test_a_folder_that_is_listed_as_empty_below_one_that_is_listed_is_a_failure(
    site: Site, group: Callable[..., zarr.Group]
) -> None:
    root = zarr.create_group(site.memory)
    root.create_array("t", shape=4, chunks=2, dtype="u1")[:] = 1
    root.create_group("deep").create_array("unseen", shape=4, dtype="u1")[:] = 1
    site.server.put("", b"<a href='zarr.json'></a><a href='t/'>t/</a><a href='deep/'>deep/</a>")

    report = warm(group())

    assert (report.arrays, report.fetched, report.is_complete) == (("t",), 2, False)
    assert [str(each) for each in report.failures] == ["'deep/zarr.json' (UnlistedError)"]


def test_an_array_that_ome_metadata_names_and_that_is_not_there_is_a_failure(
    site: Site, group: Callable[..., zarr.Group]
) -> None:
    image(site.memory, "0.5")
    sync(site.memory.delete_dir("1"))

    report = warm(group())
    code, out, _ = site.command()

    assert (report.arrays, report.fetched, report.is_complete) == (("0",), 16, False)
    assert [str(each) for each in report.failures] == [
        "'1/zarr.json' (FileNotFoundError, No such file or directory)"
    ]
    assert (code, "1 request failed: '1/zarr.json'" in out) == (1, True)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ome": {"multiscales": 5}},
        {"ome": "0.5", "multiscales": [None, {"datasets": [{"path": 0}, {}, []]}]},
        {"multiscales": {"datasets": []}},
    ],
)
def test_attributes_that_are_no_ome_metadata_name_no_array(
    site: Site, group: Callable[..., zarr.Group], attributes: dict[str, Any]
) -> None:
    zarr.create_group(site.memory, attributes=attributes)

    with pytest.raises(ValueError, match="neither consolidated metadata nor OME multiscales"):
        warm(group())


def test_a_group_that_is_empty_is_not_complete_and_said_to_be_empty(
    tmp_path: Path, path: Path
) -> None:
    folder = tmp_path / "empty.zarr"
    zarr.create_group(LocalStore(folder))
    store = CacheStore(LocalStore(folder, read_only=True), cache_store=SqliteStore(path))
    opened = zarr.open_group(store, mode="r")

    plan, report = warm(opened, dry_run=True), warm(opened)
    results = [
        CliRunner().invoke(app, ["warm", str(folder), "--cache-file", str(path), *more])
        for more in ([], ["--dry-run"])
    ]

    assert (report.chunks, report.arrays, report.is_complete) == (0, (), False)
    assert str(report).endswith("; no array was found in the group")
    assert str(plan).endswith("; no array was found in the group")
    assert [result.exit_code for result in results] == [1, 1]


def test_a_member_whose_metadata_cannot_be_read_is_listed_and_the_others_are_warmed(
    path: Path,
) -> None:
    memory = MemoryStore()
    root = zarr.create_group(memory)
    for number in range(30):
        root.create_array(f"t{number}", shape=2, chunks=2, dtype="u1")[:] = 1
    memory._store_dict["t3/zarr.json"] = buffer(b"<html>not found</html>")
    source = BadStore(memory)
    source.errors["t7/zarr.json"] = StatusError(403)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")

    report = warm(zarr.open_group(store, mode="r"))

    assert (report.fetched, len(report.arrays), report.is_complete) == (28, 28, False)
    assert [str(each) for each in report.failures] == [
        "'t3/zarr.json' (JSONDecodeError)",
        "'t7/zarr.json' (StatusError, HTTP status 403)",
    ]


def test_more_than_twenty_members_may_fail_if_others_can_be_read(path: Path) -> None:
    memory = MemoryStore()
    root = zarr.create_group(memory)
    source = BadStore(memory)
    for number in range(60):
        root.create_array(f"t{number:02}", shape=2, chunks=2, dtype="u1")[:] = 1
        if number % 2:
            source.errors[f"t{number:02}/zarr.json"] = StatusError(403)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")

    report = warm(zarr.open_group(store, mode="r"))

    assert (report.fetched, report.failed, len(report.failures)) == (30, 30, 20)


async def test_a_key_beside_the_metadata_that_fails_is_listed_by_the_command(path: Path) -> None:
    """Servers may refuse keys that are not there, by 403: the command asks for such, too."""
    source = BadStore(rows(5))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    source.errors |= {"a/b/.zarray": StatusError(403), "a/zarr.json": StatusError(403)}
    array = await open_array(store=store, path="a/b", mode="r", zarr_format=3)

    plan = await warm_node(array, dry_run=True, learn_absences=True)
    report = await warm_node(array, learn_absences=True)

    assert sorted(each.key for each in plan.failures) == ["a/b/.zarray"]
    assert sorted(each.key for each in report.failures) == ["a/b/.zarray", "a/zarr.json"]
    assert isinstance(report, WarmReport)
    assert (report.failed, report.chunks, report.left) == (2, 5, 0)
