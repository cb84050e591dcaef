"""Sources that have one address and are not one: viewers on this machine, and users of one URL.

And what is said of a source whose values end with the process.
"""

from __future__ import annotations

import base64
import copy
import logging
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import fsspec
import icechunk
import obstore.store
import pytest
import zarr
from aiohttp.helpers import netrc_from_env
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner
from zarr.abc.store import Store
from zarr.storage import (
    FsspecStore,
    LocalStore,
    LoggingStore,
    ManagedMemoryStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
)

from tests.sources.http_server import in_thread, serving, through_fsspec, through_obstore
from zarr_cache import CacheStore, SqliteStore, register_namespace
from zarr_cache.cli import app
from zarr_cache.core.private import is_private
from zarr_cache.flows import naming
from zarr_cache.sources import names, urls
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.sources.http_server import VersionedServer

LOOPBACK = [
    "localhost",
    "LocalHost:8000",
    "localhost.",
    "viewer.localhost",
    "localhost.localdomain",
    "ip6-localhost",
    "127.0.0.1:80",
    "127.0.0.1.",
    "127.1",
    "127.255.3.4",
    "0x7f000001",
    "2130706433",
    "0.0.0.0",  # noqa: S104 - nothing is bound to it
    "0",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]",
    "[::1%25lo]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:0.0.0.0]",
    "alice:pw@localhost:8000",
    "a@b:pw@127.0.0.1",
]

ELSEWHERE = [
    "example.org",
    "localhost.example.org",
    "notlocalhost",
    "127.0.0.1.example.org",
    "128.0.0.1",
    "10.0.0.1:8000",
    "192.168.0.1",
    "[2001:db8::1]",
    "[::ffff:10.0.0.1]",
    "localhost@example.org",
]


class Renaming(WrapperStore[Store]):
    """A wrapper of a user: what it does to the bytes is not known."""


class Mine(LocalStore):
    """A store of a user."""


class MyMemory(MemoryStore):
    """A store of a user, in memory."""


class MyFileSystem(AsyncFileSystem):  # type: ignore[misc] # fsspec ships no types
    """A file system of a user."""

    protocol = "mine"
    cachable = False


@pytest.fixture(autouse=True)
def _nothing_was_logged_and_what_is_registered_ends_with_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(naming, "_logged", {})
    monkeypatch.setattr(names, "_registered", dict(names._registered))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package has logged at WARNING and above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("zarr_cache.") and record.levelno >= logging.WARNING
    ]


def over_fsspec(url: str, **options: Any) -> Store:
    return FsspecStore.from_url(url, storage_options=options, read_only=True)


def over_obstore(url: str, **client_options: Any) -> Store:
    options: Any = {"allow_http": True, **client_options}
    return ObjectStore(obstore.store.HTTPStore(url, client_options=options), read_only=True)


# Servers of this machine: https://github.com/ome/ome-zarr-py/issues/285, a viewer that serves now
# this folder and now that one at http://localhost:8000, was read as the first one for ever.


def read_now(store: Store, key: str) -> bytes:
    found: Any = store
    return bytes(found.get_sync(key).to_bytes())


CHILD = """
import asyncio, sys
from zarr.storage import FsspecStore
from zarr.core.buffer import default_buffer_prototype
from zarr_cache import CacheStore, SqliteStore

async def main(url, path, namespace=None):
    source = FsspecStore.from_url(url, read_only=True, storage_options={"asynchronous": True})
    with CacheStore(source, cache_store=SqliteStore(path), namespace=namespace) as store:
        print((await store.get("key", default_buffer_prototype())).to_bytes().decode())
    await (await source.fs.set_session()).close()

asyncio.run(main(*sys.argv[1:]))
"""


def in_new_process(*arguments: object) -> tuple[str, str]:
    """What a process of its own reads through the cache, and what it says on stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ended.stdout.strip(), ended.stderr.strip()


@pytest.fixture
def viewer() -> Iterator[VersionedServer]:
    """A viewer of this machine, that serves one thing."""
    with serving() as server:
        server.put("key", b"one")
        yield server


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_of_this_machine_has_no_lasting_name(scheme: str, host: str) -> None:
    with pytest.raises(urls.LoopbackError) as raised:
        urls.of_url(f"{scheme}://{host}/data.zarr")

    assert str(raised.value).startswith(f"{scheme}://{host.rpartition('@')[2].lower()} is on this ")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_server_of_another_machine_has_one(host: str) -> None:
    assert not urls.is_loopback(host.rpartition("@")[2].partition(":8000")[0].strip("[]"))


@pytest.mark.parametrize("through", [through_fsspec, through_obstore])
def test_what_a_viewer_serves_now_is_read_and_not_what_it_served_before(
    through: Callable[[str], AbstractContextManager[Store]], viewer: VersionedServer, path: Path
) -> None:
    """In one process, while the first source is still there."""
    with through(viewer.url) as first, through(viewer.url) as second:
        before = CacheStore(first, cache_store=SqliteStore(path))
        assert read_now(before, "key") == b"one"
        viewer.put("key", b"two")
        after = CacheStore(second, cache_store=SqliteStore(path))

        assert read_now(after, "key") == b"two"
        assert after.namespace != before.namespace


@pytest.mark.parametrize("options", [{}, {"headers": {"X-Dataset": "a"}}])
def test_two_stores_of_one_file_system_of_fsspec_are_two_viewers(
    options: dict[str, Any], viewer: VersionedServer, path: Path
) -> None:
    """Of fsspec there is one file system for equal options, which must not make two sources one."""
    with through_fsspec(viewer.url, **options) as first:
        assert isinstance(first, FsspecStore)
        second = FsspecStore(first.fs, path=first.path, read_only=True)
        assert read_now(CacheStore(first, cache_store=SqliteStore(path)), "key") == b"one"
        viewer.put("key", b"two")

        assert read_now(CacheStore(second, cache_store=SqliteStore(path)), "key") == b"two"


def test_the_next_process_reads_what_the_viewer_serves_then(
    viewer: VersionedServer, path: Path
) -> None:
    before, said = in_new_process(viewer.url, path)
    viewer.put("key", b"two")
    after, _ = in_new_process(viewer.url, path)

    assert (before, after) == ("one", "two")
    assert said == (
        f"FsspecStore of fsspec.implementations.http.HTTPFileSystem: {viewer.url} is on this "
        "machine, where the address may be another server's later. What is cached of it is removed "
        "when this process ends; to keep it, pass namespace= to the CacheStore (--namespace to a "
        "command), or use register_namespace"
    )


def test_what_a_viewer_serves_is_kept_under_a_name_that_the_user_gives(
    viewer: VersionedServer, path: Path
) -> None:
    in_new_process(viewer.url, path, "one")
    viewer.put("key", b"two")
    viewer.reset()

    assert in_new_process(viewer.url, path, "one") == ("one", "")
    assert viewer.by_method() == {}
    assert in_new_process(viewer.url, path, "two") == ("two", "")


def _zip_over_http(url: str, folder: Path) -> Store:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("zarr.json", "{}")
    archive_file_system = fsspec.filesystem("zip", fo=str(folder / "a.zip"))
    # As zip::http:// opens it, without a request.
    archive_file_system.of = fsspec.open(f"{url}/a.zip")
    return FsspecStore(AsyncFileSystemWrapper(archive_file_system, asynchronous=True), path="")


def _folder_over_http(url: str, _: Path) -> Store:
    http = fsspec.filesystem("http", asynchronous=True)
    return FsspecStore(DirFileSystem(url, http, asynchronous=True), path="data.zarr")


def _virtual_chunks_over_http(url: str, folder: Path) -> Store:
    return snapshot(folder, f"{url}/", icechunk.http_store())


def snapshot(folder: Path, prefix: str, chunks: icechunk.ObjectStoreConfig.Http) -> Store:
    """A snapshot of a repository with a container of virtual chunks."""
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, chunks))
    storage = icechunk.local_filesystem_storage(str(folder / "repository"))
    repository = icechunk.Repository.open_or_create(storage, config=config)
    session = repository.writable_session("main")
    zarr.create_group(session.store, overwrite=True)
    session.commit("a group")
    store: Store = repository.readonly_session("main").store
    return store


STACKS: dict[str, Callable[[str, Path], Store]] = {
    "fsspec": lambda url, _: over_fsspec(url),
    "obstore": lambda url, _: over_obstore(url),
    "a log around it": lambda url, _: LoggingStore(over_fsspec(url)),
    "a view of it": lambda url, _: over_fsspec(url).with_read_only(read_only=True),
    "simplecache": lambda url, _: over_fsspec(f"simplecache::{url}/data.zarr"),
    "filecache": lambda url, _: over_fsspec(f"filecache::{url}/data.zarr"),
    "blockcache": lambda url, _: over_fsspec(f"blockcache::{url}/data.zarr"),
    "an archive": _zip_over_http,
    "a folder": _folder_over_http,
    "icechunk": _virtual_chunks_over_http,
}


@pytest.mark.filterwarnings("ignore:fs .* was not created with `asynchronous=True`")
@pytest.mark.parametrize("stack", STACKS.values(), ids=list(STACKS))
def test_whatever_reads_through_a_server_of_this_machine_has_no_lasting_name(
    stack: Callable[[str, Path], Store], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (tmp_path / name for name in ("here", "there"))
    here.mkdir()
    there.mkdir()
    source = stack("http://localhost:8000", here)
    CacheStore(source, cache_store=MemoryStore())

    assert is_private(name_of(source))
    assert len(lines(caplog)) == 1
    assert "http://localhost:8000 is on this machine" in lines(caplog)[0]
    assert not is_private(name_of(stack("http://example.org", there)))


def test_a_bucket_of_a_server_of_this_machine_keeps_its_name() -> None:
    of_obstore = obstore.store.S3Store(
        "bucket", endpoint="http://localhost:9000", skip_signature=True
    )
    of_s3fs = over_fsspec("s3://bucket", endpoint_url="http://localhost:9000", anon=True)

    assert name_of(ObjectStore(of_obstore)) == name_of(of_s3fs)
    assert name_of(of_s3fs) == "s3://bucket at http://localhost:9000"


def test_a_registered_name_is_that_of_a_server_of_this_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    register_namespace(FsspecStore, lambda _: "volume:7")

    store = CacheStore(over_fsspec("http://localhost:8000"), cache_store=MemoryStore())

    assert store.namespace == "volume:7"
    assert lines(caplog) == []


@pytest.mark.parametrize("character", "#%?")
def test_a_key_that_is_part_of_a_url_to_fsspec_is_not_kept_under_a_given_name_either(
    character: str, viewer: VersionedServer, path: Path
) -> None:
    """For obstore it is another value, and both may have the name."""
    key = f"a{character}20b"
    viewer.put(key, b"of obstore")
    viewer.put("a", b"of fsspec")
    viewer.put("a b", b"of fsspec")
    with through_fsspec(viewer.url) as fsspecs, through_obstore(viewer.url) as obstores:
        first = CacheStore(fsspecs, cache_store=SqliteStore(path), namespace="mine")
        second = CacheStore(obstores, cache_store=SqliteStore(path), namespace="mine")

        assert read_now(first, key) == b"of fsspec"
        assert read_now(second, key) == b"of obstore"


class SourceArray:
    """An array of one chunk, that a server serves."""

    chunk = "c/0"

    def __init__(self, folder: Path, server: VersionedServer) -> None:
        zarr.create_array(folder, shape=(10,), chunks=(10,), dtype="i4")[:] = 7
        for file in folder.rglob("*"):
            if file.is_file():
                server.put(file.relative_to(folder).as_posix(), file.read_bytes())


def test_the_commands_name_what_a_server_of_this_machine_serves(
    viewer: VersionedServer, tmp_path: Path, path: Path
) -> None:
    array = SourceArray(tmp_path / "a.zarr", viewer)
    named = ["--namespace", "one", "--cache-file", str(path)]
    warmed = CliRunner().invoke(app, ["warm", viewer.url, *named])
    viewer.reset()
    mapped = CliRunner().invoke(app, ["map", viewer.url, *named])
    explained = CliRunner().invoke(app, ["explain", array.chunk, *named])
    revalidated = CliRunner().invoke(app, ["revalidate", viewer.url, *named])
    shown = CliRunner().invoke(app, ["demo", "--url", viewer.url, *named])

    assert [each.exit_code for each in (warmed, mapped, explained, revalidated, shown)] == [0] * 5
    assert "1 of 1 chunk cached" in mapped.output
    assert "in one" in explained.output


def test_a_command_without_a_name_says_that_nothing_is_kept_of_a_server_of_this_machine(
    viewer: VersionedServer, tmp_path: Path, path: Path
) -> None:
    SourceArray(tmp_path / "a.zarr", viewer)
    command = [sys.executable, "-m", "zarr_cache", "warm", viewer.url, "--cache-file", str(path)]

    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    assert "--namespace to a command" in ended.stderr
    assert ended.stderr.count("\n") == 1


# Users of one URL: what alice may read was served to bob, in whose process it was a hit.

HTTP = "https://example.org/data.zarr"


def basic(user: str, password: str = "pw") -> str:  # noqa: S107 - no secret
    """The value of a header of Basic authentication."""
    return f"bAsIc {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def basic_auth(user: str, password: str = "pw") -> aiohttp.BasicAuth:  # noqa: S107 - the same
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return aiohttp.BasicAuth(user, password)


def with_user_info(url: str, info: str) -> str:
    return url.replace("://", f"://{info}@")


LOGINS: dict[str, Callable[[str, str], Store]] = {
    "fsspec, URL": lambda url, user: over_fsspec(with_user_info(url, f"{user}:pw")),
    "fsspec, header": lambda url, user: over_fsspec(url, headers={"AUTHORIZATION": basic(user)}),
    "fsspec, header of the session": lambda url, user: over_fsspec(
        url, client_kwargs={"headers": [("authorization", basic(user))]}
    ),
    "fsspec, auth": lambda url, user: over_fsspec(url, auth=basic_auth(user)),
    "fsspec, auth of the session": lambda url, user: over_fsspec(
        url, client_kwargs={"auth": basic_auth(user)}
    ),
    "fsspec, cached": lambda url, user: over_fsspec(
        f"simplecache::{with_user_info(url, f'{user}:pw')}"
    ),
    "obstore, URL": lambda url, user: over_obstore(with_user_info(url, f"{user}:pw")),
    "obstore, header": lambda url, user: over_obstore(
        url, default_headers={"Authorization": basic(user)}
    ),
    "obstore, bytes of a header": lambda url, user: over_obstore(
        url, default_headers={"authorization": basic(user).encode()}
    ),
}


@pytest.mark.filterwarnings("ignore:fs .* was not created with `asynchronous=True`")
@pytest.mark.parametrize("login", LOGINS.values(), ids=list(LOGINS))
def test_a_user_is_part_of_the_name_and_the_password_is_not(
    login: Callable[[str, str], Store],
) -> None:
    alice, bob = (name_of(login(HTTP, user)) for user in ("alice", "bob"))

    assert alice == "https://alice@example.org/data.zarr"
    assert bob == "https://bob@example.org/data.zarr"


def test_a_user_of_virtual_chunks_is_part_of_the_name_of_a_snapshot(tmp_path: Path) -> None:
    found = set()
    for user in ("alice", "bob"):
        chunks = icechunk.http_store(headers={"authorization": basic(user)})
        found |= {name_of(snapshot(tmp_path / user, f"{HTTP}/", chunks)).partition(" ")[2]}

    assert found == {
        f"with =https://{user}@example.org/data.zarr at default" for user in ("alice", "bob")
    }


@pytest.mark.parametrize("user", ["al@ice", "al/ice", "al ice", "al%40ice", "ünal", "a+b"])
def test_a_user_has_one_name_in_a_url_and_in_a_header(user: str) -> None:
    of_url = name_of(over_fsspec(with_user_info(HTTP, f"{quote(user, safe='')}:p%40w")))
    of_header = name_of(over_fsspec(HTTP, headers={"Authorization": basic(user)}))

    assert of_url == of_header == f"https://{quote(user, safe='')}@example.org/data.zarr"


def test_an_at_sign_that_a_url_leaves_as_it_is_is_part_of_the_user() -> None:
    assert urls.of_url("https://al@ice:pw@example.org") == "https://al%40ice@example.org"


TOKENS: dict[str, Callable[[], Store]] = {
    "a user alone": lambda: over_fsspec(with_user_info(HTTP, "hush")),
    "an empty password": lambda: over_fsspec(with_user_info(HTTP, "hush:")),
    "x-oauth-basic": lambda: over_fsspec(with_user_info(HTTP, "hush:X-OAuth-Basic")),
    "api_token": lambda: over_fsspec(with_user_info(HTTP, "hush:api_token")),
    "a password alone": lambda: over_obstore(with_user_info(HTTP, ":hush")),
    "a user alone, obstore": lambda: over_obstore(with_user_info(HTTP, "hush")),
    "an empty password in a header": lambda: over_fsspec(
        HTTP, headers={"Authorization": basic("hush", "")}
    ),
    "an empty password in auth": lambda: over_fsspec(HTTP, auth=basic_auth("hush", "")),
    "no Base64": lambda: over_fsspec(HTTP, headers={"Authorization": "Basic hush"}),
    "no colon": lambda: over_obstore(
        HTTP, default_headers={"Authorization": f"Basic {base64.b64encode(b'hush').decode()}"}
    ),
    "nothing": lambda: over_obstore(HTTP, default_headers={"Authorization": "Basic"}),
    "two users": lambda: over_fsspec(
        with_user_info(HTTP, "alice:hush"), headers={"Authorization": basic("bob")}
    ),
    "two headers": lambda: over_fsspec(
        HTTP,
        headers={"Authorization": basic("alice")},
        client_kwargs={"headers": {"authorization": basic("bob")}},
    ),
    "an object that is no Basic one": lambda: over_fsspec(HTTP, auth=object()),
    "middlewares": lambda: over_fsspec(
        HTTP, client_kwargs={"middlewares": (aiohttp.DigestAuthMiddleware("alice", "hush"),)}
    ),
}


@pytest.mark.parametrize("store", TOKENS.values(), ids=list(TOKENS))
def test_what_may_be_a_token_makes_no_name_and_is_in_no_file_and_no_line(
    store: Callable[[], Store], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CacheStore(store(), cache_store=SqliteStore(path)) as cached:
        cached._view.values.flush()

        assert is_private(cached.namespace)
        assert "hush" not in repr(cached)
    assert len(lines(caplog)) == 1
    assert "namespace=" in lines(caplog)[0]
    assert "hush" not in lines(caplog)[0]
    assert not any(b"hush" in file.read_bytes() for file in path.parent.glob("cache.sqlite*"))


@pytest.mark.parametrize(
    "header", ["Bearer abc", "Token abc", "Negotiate abc", 'Digest username="alice"']
)
def test_a_token_is_no_part_of_a_name(header: str) -> None:
    with_token = over_fsspec(HTTP, headers={"Authorization": header})

    assert name_of(with_token) == name_of(over_obstore(HTTP)) == HTTP


def test_a_user_of_a_proxy_is_none_of_the_source() -> None:
    headers = {"Proxy-Authorization": basic("alice")}

    assert name_of(over_fsspec(HTTP, headers=headers)) == HTTP


def test_a_user_of_the_netrc_file_is_one_where_the_client_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine example.org login alice password hush\n")
    monkeypatch.setenv("NETRC", str(file))
    trusting = {"trust_env": True}

    assert name_of(over_fsspec(HTTP)) == HTTP
    assert name_of(over_fsspec(HTTP, client_kwargs=trusting)) == with_user_info(HTTP, "alice")
    # Of another host; and where aiohttp does not ask the file.
    assert name_of(over_fsspec("https://h/a", client_kwargs=trusting)) == "https://h/a"
    by_url = over_fsspec(with_user_info(HTTP, "bob:pw"), client_kwargs=trusting)
    by_token = over_fsspec(HTTP, client_kwargs=trusting, headers={"Authorization": "Bearer a"})
    assert name_of(by_url) == with_user_info(HTTP, "bob")
    assert name_of(by_token) == HTTP
    file.write_text("no netrc file")
    assert name_of(over_fsspec(HTTP, client_kwargs=trusting)) == HTTP


def test_a_user_of_the_netrc_file_in_the_home_folder_is_the_one_that_the_client_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, user in ((".netrc", "alice"), ("_netrc", "bob")):
        (tmp_path / name).write_text(f"machine example.org login {user} password hush\n")
    monkeypatch.delenv("NETRC", raising=False)
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    of_client = netrc_from_env()
    assert of_client is not None
    sent = of_client.authenticators("example.org")
    assert sent is not None

    found = name_of(over_fsspec(HTTP, client_kwargs={"trust_env": True}))

    assert found == with_user_info(HTTP, sent[0])


class _Who(BaseHTTPRequestHandler):
    """Tells each user who that is: what it serves at one URL depends on the user."""

    def do_GET(self) -> None:
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        assert scheme.lower() == "basic"
        user = base64.b64decode(credentials).partition(b":")[0]
        self.send_response(200)
        self.send_header("Content-Length", str(len(user)))
        self.end_headers()
        self.wfile.write(user)

    def do_HEAD(self) -> None:
        self.send_error(405)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


# obstore sends no user of a URL, and the caches of fsspec read in a thread of their own.
SENT = {
    name: login for name, login in LOGINS.items() if name not in {"obstore, URL", "fsspec, cached"}
}


@pytest.mark.filterwarnings("ignore:The 'auth' parameter:DeprecationWarning")
@pytest.mark.parametrize("login", SENT.values(), ids=list(SENT))
def test_each_user_reads_what_the_source_has_for_that_user(
    login: Callable[[str, str], Store], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server stands for one of another machine.
    monkeypatch.setattr(urls, "is_loopback", lambda _: False)
    with in_thread(ThreadingHTTPServer(("127.0.0.1", 0), _Who)) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        for user in ("alice", "bob", "alice"):
            with CacheStore(login(url, user), cache_store=SqliteStore(path)) as store:
                found = store.get_sync("key")

                assert found is not None
                assert found.to_bytes() == user.encode()


# What is said of a source whose values end with the process. Users of references of kerchunk and of
# classes of their own read everything again in each process, and nobody told them.

TOLD: dict[str, tuple[Callable[[Path], Store], str]] = {
    "a wrapper": (
        lambda folder: Renaming(LocalStore(folder)),
        "Renaming: zarr-cache cannot tell what it reads",
    ),
    "a subclass": (Mine, "Mine: zarr-cache cannot tell what it reads"),
    "a file system": (
        lambda _: FsspecStore(MyFileSystem(asynchronous=True), path="/a"),
        "MyFileSystem: zarr-cache cannot tell what it reads",
    ),
    "a parameter": (
        lambda _: over_fsspec(f"{HTTP}?file=hush"),
        "HTTPFileSystem: a parameter of its URL may choose other values, or be a secret",
    ),
    "a header": (
        lambda _: over_obstore(HTTP, default_headers={"X-Dataset": "hush"}),
        "ObjectStore of obstore.store.HTTPStore: a header that its client sends may choose",
    ),
    "parameters": (
        lambda _: over_fsspec(HTTP, params={"file": "hush"}),
        "HTTPFileSystem: its client changes the requests",
    ),
    "a relative folder": (
        lambda _: ObjectStore(obstore.store.LocalStore()),
        "ObjectStore of obstore.store.LocalStore: zarr-cache cannot tell",
    ),
}


@pytest.mark.parametrize(("make", "says"), TOLD.values(), ids=list(TOLD))
def test_a_private_name_is_logged_once_with_what_to_pass(
    make: Callable[[Path], Store], says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make(tmp_path)
    stores = [CacheStore(source, cache_store=MemoryStore()) for _ in range(2)]
    stores[0].with_read_only(read_only=True)
    copy.copy(stores[0])

    (line,) = lines(caplog)
    assert says in line
    assert "hush" not in line
    assert line.endswith(naming.ADVICE)
    assert caplog.records[-1].levelno == logging.WARNING


def test_two_sources_are_two_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources = [Mine(tmp_path), Mine(tmp_path)]
    for source in sources:
        CacheStore(source, cache_store=MemoryStore())

    assert len(lines(caplog)) == 2


def test_a_viewer_that_is_opened_again_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "a", "b"):
        CacheStore(over_fsspec(f"http://localhost:8000/{name}"), cache_store=MemoryStore())

    assert len(lines(caplog)) == 2


def test_a_copy_of_a_pickle_is_not_logged_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CacheStore(Mine(tmp_path), cache_store=MemoryStore())
    caplog.clear()
    pickle.loads(pickle.dumps(store))  # noqa: S301 - our own

    assert lines(caplog) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_does_not_log_the_source_of_its_parent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, new = Mine(tmp_path), Mine(tmp_path)
    CacheStore(known, cache_store=MemoryStore())
    logged: list[str] = []
    monkeypatch.setattr(naming.logger, "warning", lambda *_: logged.append("a line"))

    child = os.fork()
    if child == 0:
        CacheStore(known, cache_store=MemoryStore())
        of_known = len(logged)
        CacheStore(new, cache_store=MemoryStore())
        os._exit(10 * of_known + len(logged))

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def _registered_as_private(folder: Path) -> Store:
    register_namespace(Mine, lambda _: None)
    return Mine(folder)


def _registered_file_system(_: Path) -> Store:
    register_namespace(MyFileSystem, lambda _: None)
    return FsspecStore(MyFileSystem(asynchronous=True), path="/a")


SILENT: dict[str, Callable[[Path], Store]] = {
    "memory": lambda _: MemoryStore(),
    "managed memory": lambda _: ManagedMemoryStore(),
    "memory of a user": lambda _: MyMemory(),
    "memory below a wrapper": lambda _: Renaming(LoggingStore(MemoryStore())),
    "memory of fsspec": lambda _: over_fsspec("memory://a"),
    "memory of fsspec below a folder": lambda _: FsspecStore(
        AsyncFileSystemWrapper(DirFileSystem("/a", MemoryFileSystem()), asynchronous=True), path=""
    ),
    "memory of obstore": lambda _: ObjectStore(obstore.store.MemoryStore()),
    "a folder": LocalStore,
    "a cache over a cache": lambda _: CacheStore(MemoryStore(), cache_store=MemoryStore()),
    "what the user has registered as private": _registered_as_private,
    "a file system that is registered as private": _registered_file_system,
}


@pytest.mark.parametrize("make", SILENT.values(), ids=list(SILENT))
def test_nothing_is_said_of_memory_nor_of_what_the_user_named(
    make: Callable[[Path], Store], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CacheStore(make(tmp_path), cache_store=MemoryStore())
    CacheStore(Renaming(LocalStore(tmp_path)), cache_store=MemoryStore(), namespace="mine")

    assert lines(caplog) == []


def test_a_cache_over_a_cache_of_an_unknown_source_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = CacheStore(Mine(tmp_path), cache_store=MemoryStore())
    CacheStore(inner, cache_store=MemoryStore())

    assert len(lines(caplog)) == 1


def test_the_line_of_a_writable_session_says_to_open_one_that_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a name, changes that are discarded later would be cached for ever."""
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    CacheStore(repository.writable_session("main").store, cache_store=MemoryStore())

    (line,) = lines(caplog)
    assert line == (
        "icechunk.store.IcechunkStore: its session is writable, and holds changes that are not "
        "committed. What is cached of it is removed when this process ends; read with a session of "
        "repository.readonly_session()"
    )
