"""Naming a source, with a line of the log if its name ends with the process."""

from __future__ import annotations

import contextlib
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from zarr_cache.core.private import is_private
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


def name_source(source: Store) -> str:
    """The source's own name.

    If that is private, and the source is not one in memory, one line of the log says why, and what
    to do: once for each source.

    Raises
    ------
    ValueError, TypeError
        A registered function returned what cannot be a name.
    """
    name = name_of(source)
    why = why_private(source) if is_private(name) and not _is_copying.get() else None
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
