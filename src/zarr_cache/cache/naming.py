"""The name of a source in the cache, and a line of the log if it ends with the process."""

from __future__ import annotations

import contextlib
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from zarr_cache.cache.parameters import checked_namespace
from zarr_cache.sources.names import name_of, why_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import Store

logger = logging.getLogger(__name__)

ADVICE = (
    "to keep it, pass namespace= to the CacheStore (--namespace to a command), or use "
    "register_namespace"
)
"""What a user does who wants the cached values of a source to outlive the process."""

# What was logged: locations of sources, and private names without the token of the process. A child
# of a fork has another token, and the sources of its parent.
_logged: dict[str, object] = {}

_is_copying: ContextVar[bool] = ContextVar("_is_copying", default=False)


def namespace_of(source: Store, given: str | None) -> str:
    """The namespace that the user gave, or else the source's own name.

    If that is private, and the source is not one in memory, one line of the log says why, and what
    to do: once for each source.

    Raises
    ------
    ValueError, TypeError
        The given one is reserved or no string, or a registered function returned what cannot be a
        name.
    """
    given = checked_namespace(given)
    if given is not None:
        return given
    name = name_of(source)
    why = None if _is_copying.get() else why_private(source)
    if why is not None and _is_first(why.location or name.rpartition(":")[2]):
        logger.warning(
            "%s. What is cached of it is removed when this process ends; %s",
            why,
            why.advice or ADVICE,
        )
    return name


def _is_first(key: str) -> bool:
    mark = object()
    return _logged.setdefault(key, mark) is mark  # one step: of two threads, one is the first


@contextlib.contextmanager
def copying() -> Iterator[None]:
    """Log nothing of the sources that are named meanwhile: where they were made, it was logged."""
    token = _is_copying.set(True)
    try:
        yield
    finally:
        _is_copying.reset(token)
