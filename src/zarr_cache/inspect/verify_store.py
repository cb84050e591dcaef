"""Verifying another store that holds cached values, against the index of them in memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zarr_cache.core.ages import EVER
from zarr_cache.core.flow import call_async, run
from zarr_cache.inspect.problem import Problem
from zarr_cache.inspect.verify import find_damage, next_values, verify_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import Store

    from zarr_cache.backend.store_cache import StoreCache


def verify_store(
    cache: StoreCache, store: Store, namespace: str, *, repair: bool = False
) -> Iterator[Problem]:
    """Yield the problems of the index, of the values in the store, and of both together."""
    run(cache.ensure_listed(namespace))
    run_operation = cache.database.run
    yield from find_damage(run_operation)
    yield from verify_rows(run_operation, has_bytes=False, repair=repair)
    after = 0
    while rows := run_operation(next_values, after):
        for _, name, key in rows:
            found = run(cache.lookup(name, key, None, EVER))
            if found.is_damaged:
                if repair:
                    run(cache.discard(found))
                expected = f"the {found.size} bytes that were written"
                yield Problem("bytes", "others, or none", expected, name, key, is_repaired=repair)
        after = rows[-1][0]
    if store.supports_listing:
        yield from _verify_listed(cache, store, namespace, repair=repair)


def _verify_listed(
    cache: StoreCache, store: Store, namespace: str, *, repair: bool
) -> Iterator[Problem]:
    """Yield the values in the store that are not in the index."""
    # Listed twice: a value is written to the store shortly before it is in the index.
    unknown = _unknown(cache, store)
    for key in sorted(unknown and unknown & _unknown(cache, store)):
        if repair:
            run(call_async(store, partial(_delete, key=key)))
        yield Problem("orphan", "a value", "a key of the index", namespace, key, is_repaired=repair)


def _unknown(cache: StoreCache, store: Store) -> set[str]:
    listed = run(call_async(store, _listed))
    return {key for key in listed if not cache.has_value(key)}


async def _listed(store: Store) -> list[str]:
    return [key async for key in store.list()]


async def _delete(store: Store, key: str) -> None:
    await store.delete(key)
