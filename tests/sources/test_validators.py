"""Which facts identify a version of a value, and which do not."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from zarr_cache.sources import validators

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("etag", ['"a"', '"33a64df5-2"', '"!#~/+=W"', f'"{"a" * 254}"'])
def test_a_strong_etag_is_kept_as_it_was_sent(etag: str) -> None:
    assert validators.of_etag(etag) == etag
    assert validators.is_etag(etag)


@pytest.mark.parametrize(
    "etag",
    [
        *('W/"a"', 'w/"a"', "a", "", '""', '"', '"a', 'a"', '"a"b"', '"a", "b"', '"a b"'),
        *('"a\n"', '"a"\n', '"é"', '"\x7f"', "*", f'"{"a" * 255}"'),
    ],
)
def test_any_other_etag_is_none(etag: str) -> None:
    assert validators.of_etag(etag) is None


@pytest.mark.parametrize(
    ("etag", "expected"),
    [
        ("0x8D", '"0x8D"'),
        ('"0x8D"', '"0x8D"'),
        ('W/"0x8D"', None),
        ("", None),
        ("a b", None),
        ("a" * 255, None),
    ],
)
def test_an_etag_without_quotes_gets_them_where_the_source_omits_them(
    etag: str, expected: str | None
) -> None:
    assert validators.of_etag(etag, may_be_bare=True) == expected


@pytest.mark.parametrize("etag", ['W/"a"', "a", ""])
def test_last_modified_does_not_count_beside_an_etag_that_is_none(etag: str) -> None:
    assert validators.of_response(etag, LONG_AGO, 9, NOW_NS) is None
    assert validators.of_response(None, LONG_AGO, 9, NOW_NS) is not None


@pytest.mark.parametrize(
    ("seconds_ago", "counts"), [(61, True), (60, True), (59, False), (0, False), (-9, False)]
)
def test_last_modified_counts_a_minute_later(seconds_ago: int, counts: bool) -> None:
    modified = NOW - timedelta(seconds=seconds_ago)

    assert (validators.of_response(None, modified, 9, NOW_NS) is not None) is counts


def test_last_modified_counts_with_the_size_only() -> None:
    found = {validators.of_last_modified(LONG_AGO, size, NOW_NS) for size in (1, 2)}

    assert len(found) == 2
    assert validators.of_last_modified(LONG_AGO, None, NOW_NS) is None


def test_a_missing_date_is_none() -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)  # what obstore has for it

    assert validators.of_response(None, epoch, 9, NOW_NS) is None
    assert validators.of_response(None, None, 9, NOW_NS) is None


def test_the_fraction_of_a_second_that_listings_have_makes_no_other_version() -> None:
    exact = LONG_AGO + timedelta(milliseconds=700)

    assert validators.of_last_modified(exact, 9, NOW_NS) == validators.of_last_modified(
        LONG_AGO, 9, NOW_NS
    )


def test_the_date_of_a_validator_can_be_sent() -> None:
    validator = validators.of_last_modified(LONG_AGO, 9, NOW_NS)
    assert validator is not None

    assert validators.last_modified(validator) == LONG_AGO
    assert validators.last_modified('"m1-1"') is None
    assert not validators.is_etag(validator)


@pytest.mark.parametrize(
    ("nanosecond", "later_ns", "is_settled"),
    [
        (1, 2 * 10**7, True),
        # As long as the clock of Windows may stand still.
        (1, 15_625_000, False),
        (0, 2 * 10**9, True),
        (0, 2 * 10**9 - 1, False),
        (1, -(10**12), False),
    ],
)
def test_a_file_has_a_validator_once_a_later_write_would_show(
    nanosecond: int, later_ns: int, is_settled: bool, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a")
    modified_ns = NOW_NS + nanosecond
    os.utime(file, ns=(modified_ns, modified_ns))

    validator = validators.of_file(file.stat(), modified_ns + later_ns)

    assert (validator is not None) is is_settled


def test_each_fact_of_a_file_is_in_its_validator(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a")
    os.utime(file, ns=(1, NOW_NS + 1))
    facts = list(file.stat())
    first = validators.of_file(file.stat(), 2 * NOW_NS)
    # Inode, device and size: see os.stat_result.
    for place in (1, 2, 6):
        other = [fact + (index == place) for index, fact in enumerate(facts)]
        status = os.stat_result(other, {"st_mtime_ns": NOW_NS + 1})

        assert validators.of_file(status, 2 * NOW_NS) not in {None, first}
        assert not validators.is_same_file(file.stat(), status)
    status = os.stat_result(facts, {"st_mtime_ns": NOW_NS + 2})
    assert validators.of_file(status, 2 * NOW_NS) not in {None, first}
    assert not validators.is_same_file(file.stat(), status)
    assert validators.is_same_file(file.stat(), file.stat())


def test_a_folder_has_no_validator(tmp_path: Path) -> None:
    assert validators.of_file(tmp_path.stat(), 2 * NOW_NS) is None
