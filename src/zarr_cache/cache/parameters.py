"""Checks of the parameters of a CacheStore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.storage import WrapperStore

from zarr_cache.backend.registry import file_cache_of, store_cache_of
from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.core import ages, private, sizes
from zarr_cache.flows.settings import Settings
from zarr_cache.flows.view import SourceView
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from zarr_cache.backend.value_cache import ValueCache
    from zarr_cache.core.ages import Age
    from zarr_cache.flows.settings import WhenFull


def check_cache_store(cache_store: Store, *, persist_ranges: object, offline: object) -> None:
    """Refuse a store in which nothing can be cached, and ranges in a store that is no file.

    Raises
    ------
    ValueError
        It does not support deletes, or is read-only; or `persist_ranges` is true, and it is no
        `SqliteStore`.
    TypeError
        `persist_ranges` or `offline` is neither true nor false.
    """
    if not cache_store.supports_deletes:
        msg = (
            f"The provided cache store {cache_store} does not support deletes. "
            "The cache_store must support deletes for CacheStore to function properly."
        )
        raise ValueError(msg)
    if cache_store.read_only:
        raise ValueError(
            f"cache_store {class_of(cache_store)} is read-only, so nothing can be cached in it: "
            "pass a writable store. To serve a cache file and leave it unchanged, remove the write "
            "permission of the file"
        )
    for name, flag in (("persist_ranges", persist_ranges), ("offline", offline)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")
    if persist_ranges and not isinstance(cache_store, SqliteStore):
        raise ValueError(
            "persist_ranges=True keeps byte ranges in a cache file, and cache_store is "
            f"{class_of(cache_store)}: pass a SqliteStore, or persist_ranges=False to keep them in "
            "memory"
        )


def settings_of(
    *,
    max_age_seconds: Age,
    max_age_metadata_seconds: Age,
    stale_if_error_seconds: float,
    offline: bool,
    max_size: int | str | None,
    when_full: WhenFull,
    cache_set_data: bool,
    max_age_absent_seconds: Age,
    persist_ranges: bool,
    max_memory: int | str | None,
) -> Settings:
    """The parameters of `CacheStore` of these names, checked.

    Raises
    ------
    ValueError
        An age or a size is invalid, or `when_full` is another string.
    TypeError
        One of them has another type.
    """
    return Settings(
        max_age_seconds=ages.checked("max_age_seconds", max_age_seconds),
        max_age_metadata_seconds=ages.checked("max_age_metadata_seconds", max_age_metadata_seconds),
        stale_if_error_seconds=ages.seconds("stale_if_error_seconds", stale_if_error_seconds),
        offline=offline,
        max_size=sizes.checked("max_size", max_size),
        when_full=_checked_when_full(when_full),
        cache_set_data=cache_set_data,
        max_age_absent_seconds=ages.checked("max_age_absent_seconds", max_age_absent_seconds),
        persist_ranges=persist_ranges,
        max_memory=sizes.checked("max_memory", max_memory),
    )


def _checked_when_full(when_full: object) -> WhenFull:
    expected = f"when_full must be 'evict', 'keep' or 'auto', got {when_full!r}"
    match when_full:
        case "evict" | "keep" | "auto":
            return when_full
        case str():
            raise ValueError(expected)
        case _:
            raise TypeError(expected)


def given(**settings: int | None) -> dict[str, int]:
    """The settings that the caller gave; the source has defaults for the others."""
    return {name: each for name, each in settings.items() if each is not None}


def checked_namespace(namespace: object) -> str | None:
    """`namespace`, if a user may choose it.

    Raises
    ------
    ValueError
        It is reserved.
    TypeError
        It is neither a string nor None.
    """
    if namespace is not None and not isinstance(namespace, str):
        raise TypeError(f"namespace must be a string or None, got {namespace!r}")
    if namespace == "":
        raise ValueError(
            "namespace must not be empty: the empty one holds what SqliteStore itself stores"
        )
    if namespace is not None and private.is_private(namespace):
        raise ValueError(
            f"namespace must not begin with {private.PREFIX!r}, which marks names that end with "
            f"the process, got {namespace!r}"
        )
    return namespace


def cache_in(cache_store: Store) -> ValueCache:
    """The cache of this process in `cache_store`, shared by all CacheStores that use it."""
    if isinstance(cache_store, SqliteStore):
        return file_cache_of(cache_store.database)
    return store_cache_of(cache_store, name_of)


def refuse_itself(source: Store, values: ValueCache, namespace: str) -> None:
    """Refuse a CacheStore as the source that has the same keys in the same cache.

    Raises
    ------
    ValueError
        A fetch of the outer CacheStore would wait for itself in the inner one.
    """
    while isinstance(source, WrapperStore):
        inner = getattr(source, "_view", None)
        if isinstance(inner, SourceView) and (inner.values, inner.namespace) == (values, namespace):
            raise ValueError(
                f"namespace {namespace!r} is that of the CacheStore that is the source here, "
                "in the same file: pass another one, or None"
            )
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps


def class_of(store: Store) -> str:
    """The class of a store in brackets: a store's own ``str`` may hold a URL with a token."""
    return f"<{type(store).__name__}>"
