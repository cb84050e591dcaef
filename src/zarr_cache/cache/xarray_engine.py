"""xarray's engine ``"zarr_cache"``: its own Zarr engine over `open_store`."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from xarray.backends import BackendEntrypoint, ZarrBackendEntrypoint

from zarr_cache.cache.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from xarray import Dataset, DataTree

    from zarr_cache.cache.store import CacheStore

OPTIONS = frozenset(inspect.signature(open_store).parameters) - {"url"}


class ZarrCacheEntrypoint(BackendEntrypoint):
    """``xarray.open_dataset(url, engine="zarr_cache", max_size="20 GiB")``.

    Options of `open_store` go to it, and all others to xarray's own Zarr engine. The store is
    closed with the dataset.
    """

    description = "Open Zarr through a persistent cache"
    open_dataset_parameters: ClassVar[tuple[str, ...] | None] = (
        *list(inspect.signature(ZarrBackendEntrypoint.open_dataset).parameters)[1:],
        *sorted(OPTIONS - {"storage_options"}),
    )
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:  # noqa: ARG002 - xarray's signature
        """False: a file on the disk is written only if the engine is named."""
        return False

    def open_dataset(self, filename_or_obj: Any, **options: Any) -> Dataset:
        """The dataset at a URL or path; for `xarray.open_dataset`."""
        store, others = _opened(filename_or_obj, options)
        dataset = _with(store, ZarrBackendEntrypoint().open_dataset, others)
        dataset.set_close(_closing(dataset._close, store))  # noqa: SLF001 - set_close sets it
        return dataset

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> DataTree:
        """The tree of groups at a URL or path; for `xarray.open_datatree`."""
        store, others = _opened(filename_or_obj, options)
        tree = _with(store, ZarrBackendEntrypoint().open_datatree, others)
        tree.set_close(_closing(tree._close, store))  # noqa: SLF001 - set_close sets it
        return tree

    def open_groups_as_dict(self, filename_or_obj: Any, **options: Any) -> dict[str, Dataset]:
        """The groups at a URL or path by their paths; for `xarray.open_groups`."""
        store, others = _opened(filename_or_obj, options)
        groups = _with(store, ZarrBackendEntrypoint().open_groups_as_dict, others)
        for dataset in groups.values():
            dataset.set_close(_closing(dataset._close, store))  # noqa: SLF001 - set_close sets it
        return groups


def _opened(url: Any, options: dict[str, Any]) -> tuple[CacheStore, dict[str, Any]]:
    """The store, and the options that are xarray's."""
    if "max_size" not in options:
        raise TypeError(
            'engine="zarr_cache" needs max_size, the most bytes that are cached: pass '
            'max_size="20 GiB", or max_size=None for no limit'
        )
    own = {name: value for name, value in options.items() if name in OPTIONS}
    others = {name: value for name, value in options.items() if name not in OPTIONS}
    return open_store(url, **own), others


def _with[T](store: CacheStore, open_: Callable[..., T], options: dict[str, Any]) -> T:
    try:
        return open_(store, **options)
    except BaseException:
        store.close()
        raise


def _closing(close: Callable[[], None] | None, store: CacheStore) -> Callable[[], None]:
    # A partial, which can be pickled with the dataset.
    return partial(_close_both, close, store)


def _close_both(close: Callable[[], None] | None, store: CacheStore) -> None:
    if close is not None:
        close()
    store.close()
