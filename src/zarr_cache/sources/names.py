"""Whose keys these are: a name for a source that outlives the process and tells no secret."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from zarr.abc.store import Store
from zarr.storage import (
    FsspecStore,
    GpuMemoryStore,
    LocalStore,
    LoggingStore,
    ManagedMemoryStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
    ZipStore,
)
from zarr.storage._fsspec import ALLOWED_EXCEPTIONS

from zarr_cache.core import private
from zarr_cache.sources import file_systems, object_stores, urls

if TYPE_CHECKING:
    from collections.abc import Callable


type Naming[S] = Callable[[S], str | Store | None]


_registered: dict[type, Naming[Any]] = {}


FIRST_SNAPSHOT = "1CECHNKREP0F1RSTCMT0"


"""The one that every Icechunk repository begins with. All others have ids of 96 random bits."""


def register_namespace[S](store_type: type[S], name: Naming[S]) -> None:
    """Let sources of a class that is not known here have a name that outlives the process.

    A source of a class that is not known gets a name that no other source has, and what is kept of
    it is of no use to the next process. Whoever knows better says so, before such a source is given
    to a `CacheStore`::

        register_namespace(LakeStore, lambda store: f"lake://{store.table}@{store.version}")
        register_namespace(TracingStore, lambda store: store.wrapped)

    Parameters
    ----------
    store_type
        The class. It holds for subclasses, too, but for those that have been registered themselves:
        a subclass whose values are others says so by a name of its own. May also be a class of
        fsspec file systems; then what is named is the root, and ``FsspecStore`` adds its path.
    name
        Is given the source, and returns one of three. A text: the name under which the values of
        its keys are kept. Two sources may have the same only if every key has the same bytes in
        both, today and after a restart. **It is written to the cache file and shown to people: no
        user info, token, key or signature may be in it.** A store: that one has the same keys with
        the same bytes, and is named instead. None: this source does not outlive the process.

    Raises
    ------
    TypeError
        `store_type` is no class, or `name` no function.

    See Also
    --------
    CacheStore : its parameter ``namespace`` names a single source.
    """
    if not isinstance(store_type, type):
        raise TypeError(f"store_type must be a class, got {store_type!r}")
    if not callable(name):
        raise TypeError(f"name must be a function of the source, got {name!r}")
    _registered[store_type] = name


def name_of(source: Store) -> str:
    """A name for the keys of `source`, the same in every process that reads the same data.

    A source whose identity does not outlive the process (``MemoryStore``, a class that is not
    known here) gets a name that no other source has, in this process or another, and keeps it as
    long as it lives: see `zarr_cache.private`.

    Only wrappers that are known to change nothing have the name of what they wrap. Of any other, a
    reader could not tell whether the bytes kept were those from before or after it decrypted,
    decompressed or moved them. For the same reason a subclass of a class that is known is not:
    ``class Encrypted(LocalStore)`` has the path of the folder and other bytes. `register_namespace`
    and ``CacheStore(namespace=...)`` are the ways out.

    Raises
    ------
    TypeError, ValueError
        A function given to `register_namespace` returned what is not a name.
    """
    named, name = _named(source)
    return name or private.name_of(named, *_identity(named))


def folder_of(source: Any) -> Path | None:
    """The folder of a local source, as it was given; None if it is none."""
    named, name = _named(source)
    if type(named) is LocalStore:
        return Path(named.root)
    if type(named) is FsspecStore and name is not None and name.startswith("file:"):
        return Path(named.path)
    return None


def reads_urls(source: Any) -> bool:
    """Whether the source reads a key as the end of a URL, as fsspec does, and obstore does not.

    ``a#b`` is then the key ``a`` to it, and ``a%20b`` is ``a b``.
    """
    named, name = _named(source)
    is_http = name is not None and name.startswith(("http://", "https://"))
    return is_http and type(named) is FsspecStore


def _named(source: Any) -> tuple[Any, str | None]:
    """The store that is named, which may be one that `source` wraps, and its name if it has one."""
    response = _answer(source)
    return _named(response) if isinstance(response, Store) else (source, response)


def _answer(source: Any) -> str | Store | None:
    cls = type(source)
    known = _KNOWN.get(cls) or _KNOWN_BY_NAME.get(urls.class_name(cls))
    naming = _registered_for(cls, is_known=known is not None) or known
    return naming(source) if naming else None


def _registered_for(cls: type, *, is_known: bool) -> Naming[Any] | None:
    """What was registered for the class or, unless that is known here, its nearest base."""
    classes = cls.__mro__[:1] if is_known else cls.__mro__
    nearest = next((each for each in classes if each in _registered), None)
    return partial(_checked, nearest) if nearest else None


def _checked(cls: type, source: object) -> str | Store | None:
    response = _registered[cls](source)
    says = f"the name registered for {cls.__qualname__}"
    if isinstance(response, str):
        if not response or private.is_private(response):
            raise ValueError(
                f"{says} is {response!r}: it must not be empty or begin with {private.PREFIX!r}; "
                "return None for a source that does not outlive the process"
            )
        return response
    if response is source:
        raise ValueError(f"{says} is the source itself, not its name or what it wraps")
    if response is None or isinstance(response, Store):
        return response
    raise TypeError(f"{says} must be a text, a store or None, got {type(response).__qualname__}")


def _identity(source: Any) -> tuple[object, str]:
    """The object, and the part of it, by which this process knows the keys of a source.

    Two views of one MemoryStore are two objects, and one dictionary.
    """
    while _KNOWN.get(type(source)) is _wrapped:
        source = _wrapped(source)
    match source:
        case ManagedMemoryStore() if type(source) is ManagedMemoryStore:
            return source._store_dict, source.path  # noqa: SLF001 - what its views share
        case MemoryStore() if type(source) in {GpuMemoryStore, MemoryStore}:
            return source._store_dict, ""  # noqa: SLF001 - the same
        case FsspecStore() if type(source) is FsspecStore:
            file_system = getattr(source.fs, "sync_fs", source.fs)
            kind = urls.class_name(type(file_system))
            is_memory = kind == "fsspec.implementations.memory.MemoryFileSystem"
            # All of fsspec's file systems in memory are one.
            return type(file_system) if is_memory else file_system, source.path
        case ObjectStore() if type(source) is ObjectStore:
            return source.store, ""
    return source, ""


def _wrapped(source: Any) -> Store:
    store: Store = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return store


def _of_cache_store(source: Any) -> str | None:
    # Not the name of what it caches: both may keep their answers in one file, and a fetch of the
    # outer one would wait for itself there.
    return None if private.is_private(source.namespace) else f"cached:{source.namespace}"


def _of_fsspec(source: FsspecStore) -> str | None:
    name = _of_file_system(source.fs, source.path)
    allowed = set(source.allowed_exceptions)
    if name is None or allowed == set(ALLOWED_EXCEPTIONS):
        return name
    # What is an error to others, such as a 403, is an absent key to this one.
    return f"{name} absent by {' '.join(sorted(map(urls.class_name, allowed)))}"


def _of_file_system(file_system: Any, path: str) -> str | None:
    cls = type(file_system)
    known = file_systems.FILE_SYSTEMS.get(urls.class_name(cls))
    registered = _registered_for(cls, is_known=known is not None)
    if registered is None:
        return known(file_system, path, _of_file_system) if known else None
    root = registered(file_system)
    if isinstance(root, Store):
        root = name_of(root)
    return root and f"{root.rstrip('/')}/{quote(path.strip('/'))}"


def _of_icechunk(source: Any) -> str | None:
    """The snapshot that a read-only session reads, and where its virtual chunks are.

    The id of a snapshot is random, and its content never changes, so a copy of the repository has
    the same answers. A session that may be written to holds what nobody has committed yet. Virtual
    chunks lie elsewhere: their places are of the configuration, which two copies may have others.
    """
    session = source.session
    if not session.read_only or session.snapshot_id == FIRST_SNAPSHOT:
        return None
    containers = session.config.virtual_chunk_containers or {}
    places = [_of_container(container) for container in containers.values()]
    if None in places:
        return None
    return " with ".join([f"icechunk:{session.snapshot_id}", *sorted(map(str, places))])


def _of_container(container: Any) -> str | None:
    """Where the chunks of a prefix are, or None if that is not to be told."""
    prefix = urls.of_endpoint(container.url_prefix)
    options = getattr(container.store, "_0", None)
    match type(container.store).__name__:
        case "S3" | "S3Compatible" | "Tigris":
            endpoint = getattr(options, "endpoint_url", None)
            where = urls.of_endpoint(endpoint) if endpoint else "s3"
        case "LocalFileSystem":
            prefix, where = "file", Path(str(options)).resolve().as_uri()
        case "Gcs" | "Http" if not options:
            where = "default"
        case _:
            where = None
    return f"{container.name or ''}={prefix} at {where}" if prefix and where else None


_KNOWN: dict[type, Naming[Any]] = {
    FsspecStore: _of_fsspec,
    LocalStore: lambda source: Path(source.root).resolve().as_uri(),
    LoggingStore: _wrapped,
    ObjectStore: lambda source: object_stores.of_object_store(source.store),
    WrapperStore: _wrapped,
    ZipStore: lambda source: f"zip:{Path(source.path).resolve().as_uri()}",
}


# Classes of modules that are not loaded for their sake.
_KNOWN_BY_NAME: dict[str, Naming[Any]] = {
    "icechunk.store.IcechunkStore": _of_icechunk,
    "zarr.experimental.cache_store.CacheStore": _wrapped,
    "zarr.testing.store.LatencyStore": _wrapped,
    "zarr_cache.CacheStore": _of_cache_store,
    "zarr_cache.SqliteStore": lambda source: f"sqlite:{source.path.as_uri()}",
}
