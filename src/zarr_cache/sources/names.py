"""The name of a source: from the tables, from a registered function, or private to the process."""

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
    ManagedMemoryStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
)
from zarr.storage._fsspec import ALLOWED_EXCEPTIONS

from zarr_cache.core import private
from zarr_cache.sources.file_systems import FILE_SYSTEMS, REFERENCES, local_path
from zarr_cache.sources.urls import LoopbackError, NoNameError, class_name
from zarr_cache.sources.zarr_stores import OPENING, ZARR_STORES, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


type Naming[S] = Callable[[S], str | Store | None]

_HTTP = "fsspec.implementations.http.HTTPFileSystem"

_MEMORY = "fsspec.implementations.memory.MemoryFileSystem"

# Classes of fsspec whose files are those of another file system, and the attribute that holds it.
_ABOVE = {
    "fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper": "sync_fs",
    "fsspec.implementations.cached.CachingFileSystem": "fs",
    "fsspec.implementations.cached.SimpleCacheFileSystem": "fs",
    "fsspec.implementations.cached.WholeFileCacheFileSystem": "fs",
    "fsspec.implementations.dirfs.DirFileSystem": "fs",
}

_registered: dict[type, Naming[Any]] = {}


def register_namespace[S](store_type: type[S], name: Naming[S]) -> None:
    """Give sources of a class a name that outlives the process.

    zarr-cache knows the stores of zarr, fsspec, obstore and Icechunk. A source of any other class
    gets a private name, under which the next process finds nothing; the log says so. Register a
    function for such a class before a source of it is given to a `CacheStore`::

        register_namespace(LakeStore, lambda store: f"lake://{store.table}@{store.version}")
        register_namespace(TracingStore, lambda store: store.wrapped)

    Parameters
    ----------
    store_type
        The class of the sources, or a class of fsspec file systems. Subclasses are included, except
        those that are registered themselves: register a subclass if its values differ. Of a file
        system the function names the root, to which ``FsspecStore`` adds its path.
    name
        A function that is given the source and returns one of:

        - a string: the name under which the values of the source are cached. Two sources may share
          a name only if every key has the same bytes in both, now and after a restart. **The name
          is written to the cache file and shown to users: it must not contain a password, a token,
          a key or a signature.**
        - a store that has the same keys with the same bytes. That store is named instead.
        - None: the source does not outlive the process.

    Raises
    ------
    TypeError
        `store_type` is not a class, or `name` is not a function.

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
    """The name of `source`, the same in every process that reads the same data.

    A source that does not outlive the process (``MemoryStore``, a class that is not known) gets a
    private name, which no other source has in any process, and keeps it as long as it lives: see
    `zarr_cache.core.private`. So does an HTTP server of this machine, since another one may have
    its address later: of it, each store object is a source of its own.

    A wrapper has the name of the store that it wraps only if it is known to change nothing. Any
    other may decrypt, decompress or move the bytes, and cached bytes do not show whether that was
    done. For the same reason a subclass of a known class is not known: ``class
    Encrypted(LocalStore)`` has the path of the folder and other bytes. Users name such sources with
    `register_namespace` or ``CacheStore(namespace=...)``.

    Raises
    ------
    TypeError, ValueError
        A function given to `register_namespace` returned what cannot be a name.
    """
    named, name = _named(source)
    return name or private.name_of(named, *_identity(named))


def open_before_naming(source: Any) -> None:
    """Open the source if it stays what it is once it is open, whatever its path leads to later.

    Raises
    ------
    Exception
        Whatever the source raises when it is opened.
    """
    named = _below_wrappers(source)
    opening = OPENING.get(class_name(type(named)))
    if opening is not None:
        opening(named)


def why_private(source: Store) -> NoNameError | None:
    """Why the name of `source` ends with the process, beginning with its class, for the user.

    None if it has a lasting name, or if the user expects that: it is in memory, a function given to
    `register_namespace` says so, or it is a `CacheStore`, whose own source is the one to name.
    """
    named, name = _named(source)
    if name is not None or _is_in_memory(named) or _is_registered(named):
        return None
    if class_name(type(named)) == "zarr_cache.CacheStore":
        return None
    error = _no_name(named) or NoNameError("zarr-cache cannot tell what it reads")
    return NoNameError(f"{_kind(named)}: {error}", advice=error.advice, location=error.location)


def folder_of(source: Any) -> Path | None:
    """The folder of a local source, as the user named it; None for other sources."""
    named = _below_wrappers(source)
    if type(named) is LocalStore:
        return Path(named.root)
    if type(named) is FsspecStore:
        path = local_path(named.fs, named.path)
        return None if path is None else Path(path)
    return None


def absences_are_doubtful(source: Any) -> bool:
    """Whether the source takes errors for absent keys that say something else, such as a 403.

    Also if a store below it does, whatever wraps it.
    """
    named = _below_wrappers(source)
    while isinstance(named, WrapperStore):
        named = named._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return isinstance(named, FsspecStore) and not set(named.allowed_exceptions) <= set(
        ALLOWED_EXCEPTIONS
    )


def reads_urls(source: Any) -> bool:
    """Whether the source reads a key as the end of a URL, as fsspec does, and obstore does not.

    ``a#b`` is then the key ``a`` to it, and ``a%20b`` is ``a b``.
    """
    named = _below_wrappers(source)
    return any(class_name(type(each)) == _HTTP for each in _file_systems(named))


def is_named_by_content(name: str) -> bool:
    """Whether the name says what the source holds, so that a write would make it untrue."""
    return name.startswith(REFERENCES)


def _named(source: Any) -> tuple[Any, str | None]:
    """The store that is named, `source` or a store below it, and its name; None if it has none."""
    try:
        name = _name_or_store(source)
    except NoNameError:
        return source, None
    return _named(name) if isinstance(name, Store) else (source, name)


def _below_wrappers(source: Any) -> Any:
    """The store that is named, `source` or a store below it: a name may take long to make."""
    cls = type(source)
    known = ZARR_STORES.get(class_name(cls))
    registered = _registered_for(cls, is_known=known is not None)
    if registered is not None:
        found = registered(source)
    else:
        found = wrapped(source) if known is wrapped else None
    return _below_wrappers(found) if isinstance(found, Store) else source


def _no_name(source: Any) -> NoNameError | None:
    """Why the store has no name, if that is more than that it is not known."""
    try:
        _name_or_store(source)
    except NoNameError as error:
        return error
    return None


def _name_or_store(source: Any) -> str | Store | None:
    cls = type(source)
    known = ZARR_STORES.get(class_name(cls))
    registered = _registered_for(cls, is_known=known is not None)
    if registered is not None:
        return registered(source)
    return known(source, _of_file_system) if known else None


def _of_file_system(file_system: Any, path: str) -> str | None:
    cls = type(file_system)
    known = FILE_SYSTEMS.get(class_name(cls))
    registered = _registered_for(cls, is_known=known is not None)
    if registered is None:
        return known(file_system, path, _of_file_system) if known else None
    root = registered(file_system)
    if isinstance(root, Store):
        root = name_of(root)
    return root and f"{root.rstrip('/')}/{quote(path.strip('/'))}"


def _registered_for(cls: type, *, is_known: bool) -> Naming[Any] | None:
    """The function registered for the class or, if no table has the class, for its nearest base."""
    classes = cls.__mro__[:1] if is_known else cls.__mro__
    nearest = next((each for each in classes if each in _registered), None)
    return partial(_checked, nearest) if nearest else None


def _checked(cls: type, source: object) -> str | Store | None:
    """The result of the function registered for `cls`, if it is a valid one."""
    name = _registered[cls](source)
    registered = f"the name registered for {cls.__qualname__}"
    if isinstance(name, str):
        if not name or private.is_private(name):
            raise ValueError(
                f"{registered} is {name!r}: it must not be empty or begin with {private.PREFIX!r}; "
                "return None for a source that does not outlive the process"
            )
        return name
    if name is source:
        raise ValueError(f"{registered} is the source itself, not its name or what it wraps")
    if name is None or isinstance(name, Store):
        return name
    raise TypeError(
        f"{registered} must be a string, a store or None, got {type(name).__qualname__}"
    )


def _identity(source: Any) -> tuple[object, str]:
    """The object, and the part of it, that holds the keys of a source in this process.

    Two views of one MemoryStore are two objects with one dictionary.
    """
    while ZARR_STORES.get(class_name(type(source))) is wrapped:
        source = wrapped(source)
    if isinstance(_no_name(source), LoopbackError):
        return source, ""  # fsspec has one file system for all that it reads at an address
    match source:
        case ManagedMemoryStore() if type(source) is ManagedMemoryStore:
            return source._store_dict, source.path  # noqa: SLF001 - what its views share
        case MemoryStore() if type(source) in {GpuMemoryStore, MemoryStore}:
            return source._store_dict, ""  # noqa: SLF001 - the same
        case FsspecStore() if type(source) is FsspecStore:
            file_system = getattr(source.fs, "sync_fs", source.fs)
            # All of fsspec's file systems in memory are one.
            is_memory = class_name(type(file_system)) == _MEMORY
            return type(file_system) if is_memory else file_system, source.path
        case ObjectStore() if type(source) is ObjectStore:
            return source.store, ""
    return source, ""


def _file_systems(source: Any) -> Iterator[Any]:
    """The file system of an FsspecStore, and those below it that have its files."""
    each = source.fs if type(source) is FsspecStore else None
    while each is not None:
        yield each
        below = _ABOVE.get(class_name(type(each)))
        each = getattr(each, below) if below else None


def _is_in_memory(source: Any) -> bool:
    """Whether the values are in the memory of this process, below whatever wrapper."""
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    if isinstance(source, ObjectStore):
        return type(source.store).__name__ == "MemoryStore"
    return isinstance(source, MemoryStore) or any(
        _MEMORY in map(class_name, type(each).__mro__) for each in _file_systems(source)
    )


def _is_registered(source: Any) -> bool:
    """Whether a registered function has said that the source has no name."""
    return any(
        _registered_for(cls, is_known=class_name(cls) in table) is not None
        for cls, table in [
            (type(source), ZARR_STORES),
            *((type(each), FILE_SYSTEMS) for each in _file_systems(source)),
        ]
    )


def _kind(source: Any) -> str:
    """The class of a source, with the class that it reads through."""
    match source:
        case FsspecStore() if type(source) is FsspecStore:
            below = [class_name(type(each)) for each in _file_systems(source)]
            return " of ".join(["FsspecStore", *below])
        case ObjectStore() if type(source) is ObjectStore:
            return f"ObjectStore of {class_name(type(source.store))}"
    return class_name(type(source))
