"""Memory of large values is given out again, and only when nothing refers to it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from zarr_cache.core import buffers

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_cache.core.checksum import ByteArray

NBYTES = 300_000

REFERENCES: dict[str, Callable[[ByteArray], object]] = {
    "the array": lambda array: array,
    "a part of it": lambda array: array[1_000:2_000],
    "an array of another type": lambda array: array.view(np.float32).reshape(-1, 3),
    "a memoryview": lambda array: memoryview(array)[10:20],
}


@pytest.fixture(autouse=True)
def nothing_unused() -> None:
    buffers._unused.clear()


def file_id_of(array: ByteArray) -> int:
    return int(array.__array_interface__["data"][0])


def unused_bytes() -> int:
    return sum(map(len, buffers._unused))


@pytest.mark.parametrize("refer", REFERENCES.values(), ids=REFERENCES)
def test_memory_is_not_given_out_while_something_refers_to_it(
    refer: Callable[[ByteArray], object],
) -> None:
    array = buffers.array(NBYTES)
    array[:] = 1
    place, reference = file_id_of(array), refer(array)
    del array

    other = buffers.array(NBYTES)
    other[:] = 2

    assert np.asarray(reference).tobytes().strip(b"\1") == b""
    assert file_id_of(other) != place


@pytest.mark.parametrize("refer", REFERENCES.values(), ids=REFERENCES)
def test_memory_is_given_out_again_once_nothing_refers_to_it(
    refer: Callable[[ByteArray], object],
) -> None:
    array = buffers.array(NBYTES)
    place, reference = file_id_of(array), refer(array)
    del array, reference

    assert file_id_of(buffers.array(NBYTES)) == place


def test_no_more_is_kept_unused_than_is_said() -> None:
    arrays = [buffers.array(4 * 2**20) for _ in range(20)]
    assert unused_bytes() == 0

    del arrays

    assert buffers.MAX_UNUSED - 4 * 2**20 <= unused_bytes() <= buffers.MAX_UNUSED


def test_a_value_does_not_hold_memory_of_one_that_is_much_larger() -> None:
    large = buffers.array(8 * 2**20)
    place = file_id_of(large)
    del large

    assert file_id_of(buffers.array(NBYTES)) != place
