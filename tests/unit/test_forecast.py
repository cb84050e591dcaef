"""Documents of zarr tell how many values there will be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zarr_cache.forecast import HITS_IN_A_ROW, Forecast

V3 = {
    "shape": [10, 7],
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [5, 4]}},
}
V2 = {"shape": [10, 7], "chunks": [5, 4]}


def told(**documents: Any) -> int | None:
    forecast = Forecast()
    for key, document in documents.items():
        forecast.learn(key, json.dumps(document).encode())
    return forecast.entries


@pytest.mark.parametrize(
    "documents",
    [
        {"zarr.json": V3},
        {".zarray": V2},
        {"zarr.json": {"consolidated_metadata": {"metadata": {"a": V3}}}},
        {".zmetadata": {"metadata": {"a/.zarray": V2, "a/.zattrs": {}, ".zgroup": {}}}},
    ],
    ids=["v3", "v2", "v3 consolidated", "v2 consolidated"],
)
def test_an_array_has_its_chunks_and_a_document(documents: dict[str, Any]) -> None:
    assert told(**documents) == 2 * 2 + 1


def test_an_array_that_is_told_of_twice_counts_once() -> None:
    documents = {"zarr.json": {"consolidated_metadata": {"metadata": {"a": V3}}}, "a/zarr.json": V3}

    assert told(**documents) == 2 * 2 + 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        3,
        {"shape": [10], "chunk_grid": {"configuration": {"chunk_shape": [0]}}},
        V2 | {"chunks": [1]},
    ],
    ids=["a group", "a list", "a number", "chunks of nothing", "too few chunks"],
)
def test_nothing_is_expected_of_what_is_no_array(document: Any) -> None:
    assert told(**{".zarray": document}) is None


def test_what_is_no_json_is_for_zarr_to_complain_of() -> None:
    forecast = Forecast()
    forecast.learn("zarr.json", b"\xff{")

    assert forecast.entries is None


def test_some_hits_without_a_miss_forecast_another() -> None:
    forecast = Forecast()
    for _ in range(HITS_IN_A_ROW):
        forecast.hit()

    assert forecast.is_hit

    forecast.miss()

    assert not forecast.is_hit
