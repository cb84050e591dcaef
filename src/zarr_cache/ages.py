"""How old an answer may be."""

from __future__ import annotations

import math
from typing import Literal

from zarr_cache.index import EVER

type Age = float | Literal["infinity"] | None
"""Seconds; ``"infinity"`` or None: for ever."""


def checked(name: str, age: Age) -> Age:
    """`age`, if it is one.

    Raises
    ------
    ValueError
        It is negative, NaN, or another string; the message names it.
    TypeError
        It is neither a number nor a string nor None.
    """
    if age is None or age == "infinity":
        return age
    if isinstance(age, str):
        msg = f"{name} must be a number of seconds, 'infinity' or None, got {age!r}"
        raise ValueError(msg)
    if isinstance(age, bool) or not isinstance(age, int | float):
        msg = f"{name} must be a number of seconds, 'infinity' or None, got {age!r}"
        raise TypeError(msg)
    if math.isnan(age) or age < 0:
        msg = f"{name} must not be negative or NaN, got {age!r}"
        raise ValueError(msg)
    return age


def fresh_after(age: Age, now_ns: int) -> int:
    """The time in nanoseconds after which an answer must have been given to be fresh now."""
    if age is None or age == "infinity" or age == math.inf:
        return EVER
    return max(EVER, now_ns - int(age * 1_000_000_000))


def least(one: Age, other: Age) -> Age:
    """The shorter age."""
    limits = [age for age in (one, other) if age is not None and age != "infinity"]
    return min(limits, default="infinity")
