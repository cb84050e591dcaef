"""The settings of a view: the parameters that the user gave to a CacheStore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from zarr_cache.core.ages import Age


WhenFull = Literal["evict", "keep", "auto"]
"""What makes room for a response when the budget is used up: see `CacheStore`."""


class Settings(NamedTuple):
    """The parameters of `CacheStore` of the same names."""

    max_age_seconds: Age
    max_size: int | None
    cache_set_data: bool
    max_age_absent_seconds: Age
    persist_ranges: bool
    max_memory: int | None
    max_age_metadata_seconds: Age = None
    stale_if_error_seconds: float = 0
    offline: bool = False
    when_full: WhenFull = "evict"
