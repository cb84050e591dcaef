"""A block is right only together with the facts that it was written with, and in its place."""

from __future__ import annotations

import numpy as np
import pytest

from zarr_cache.core import checksum

FACTS = {"namespace": "n", "key": "k", "kind": "value", "size": 3, "stored_at": 7}


@pytest.mark.parametrize(
    "other",
    [{"namespace": "m"}, {"key": "l"}, {"kind": "stored"}, {"size": 4}, {"stored_at": 8}],
    ids=lambda other: next(iter(other)),
)
def test_each_fact_counts(other: dict[str, str | int]) -> None:
    assert checksum.of_facts(**(FACTS | other)) != checksum.of_facts(**FACTS)  # type: ignore[arg-type]


def test_facts_do_not_run_into_each_other() -> None:
    one = checksum.of_facts("a", "bc", "value", 1, 1)
    other = checksum.of_facts("ab", "c", "value", 1, 1)

    assert one != other


def test_there_is_one_checksum_for_each_block() -> None:
    data = np.zeros(2 * checksum.BLOCK + 1, np.uint8)

    assert len(checksum.of_blocks(0, 0, data)) == 3 * checksum.LENGTH


def test_an_empty_value_has_no_blocks() -> None:
    assert checksum.of_blocks(0, 0, np.zeros(0, np.uint8)) == b""


def test_a_block_in_another_place_has_another_checksum() -> None:
    data = np.zeros(2 * checksum.BLOCK, np.uint8)
    checksums = checksum.of_blocks(5, 0, data)

    assert checksums[: checksum.LENGTH] != checksums[checksum.LENGTH :]


def test_the_checksum_of_a_block_does_not_depend_on_where_reading_begins() -> None:
    data = np.arange(3 * checksum.BLOCK, dtype=np.uint32).astype(np.uint8)
    whole = checksum.of_blocks(5, 0, data)

    assert checksum.of_blocks(5, 1, data[checksum.BLOCK :]) == whole[checksum.LENGTH :]


@pytest.mark.parametrize("flipped", [0, checksum.BLOCK - 1, checksum.BLOCK, checksum.BLOCK + 9])
def test_one_flipped_bit_changes_the_checksum_of_its_block_alone(flipped: int) -> None:
    data = np.zeros(checksum.BLOCK + 10, np.uint8)
    before = np.frombuffer(checksum.of_blocks(5, 0, data), ">u8")
    data[flipped] ^= 1
    after = np.frombuffer(checksum.of_blocks(5, 0, data), ">u8")

    assert (before != after).nonzero()[0].tolist() == [flipped // checksum.BLOCK]


def test_the_seed_may_be_the_largest_there_is() -> None:
    data = np.zeros(2 * checksum.BLOCK, np.uint8)

    assert len(checksum.of_blocks(2**63 - 1, 0, data)) == 2 * checksum.LENGTH
