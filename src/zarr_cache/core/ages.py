"""How old a response may be."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

EVER, NEVER = -(2**63), 2**63 - 1

type Age = float | Literal["infinity"] | None
"""Seconds; ``"infinity"`` or None: for ever."""


def checked(name: str, age: object) -> Age:
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
    expected = f"{name} must be a number of seconds, 'infinity' or None, got {age!r}"
    if isinstance(age, str):
        # As zarr's CacheStore, whose callers may look for the words.
        raise ValueError(f"{name} string value must be 'infinity': {expected}")  # noqa: TRY004
    if not isinstance(age, Real):
        raise TypeError(expected)
    try:
        seconds = float(age)
    except OverflowError as error:
        raise ValueError(f"{name} is longer than can be counted; for ever is 'infinity'") from error
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{name} must not be negative or NaN, got {age!r}")
    return seconds


def seconds(name: str, age: object) -> float:
    """`age`, if it is a finite number of seconds.

    Raises
    ------
    ValueError, TypeError
        As from `checked`; or it is infinite.
    """
    found = None if isinstance(age, str) else checked(name, age)
    if not isinstance(found, float) or math.isinf(found):
        raise ValueError(f"{name} must be a finite number of seconds, got {age!r}")
    return found


def fresh_after(age: Age, now_ns: int) -> int:
    """The time in nanoseconds after which a response is fresh now."""
    if age is None or isinstance(age, str) or math.isinf(age):
        return EVER
    # What is older than all time that is counted is stale at every finite age.
    return max(0, now_ns - int(age) * 1_000_000_000 - int(age % 1 * 1_000_000_000))


def longer(age: Age, seconds: float) -> Age:
    """The age, and so many seconds more."""
    return "infinity" if age is None or isinstance(age, str) else age + seconds


def least(one: Age, other: Age) -> Age:
    """The shorter age."""
    limits = [age for age in (one, other) if age is not None and age != "infinity"]
    return min(limits, default="infinity")
