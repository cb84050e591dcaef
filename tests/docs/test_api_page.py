"""The page of the API has every public name, and every error has a public one."""

from __future__ import annotations

import re
from pathlib import Path

import zarr_cache
from zarr_cache.core import errors

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_public_name_is_on_the_page_and_no_other() -> None:
    named = re.findall(r"^::: zarr_cache\.(\w+)$", PAGE, re.MULTILINE)

    assert sorted(named) == sorted(zarr_cache.__all__)


def test_every_error_of_a_file_can_be_caught_by_a_public_name() -> None:
    raised = {
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.CacheError)
    }

    assert raised <= set(zarr_cache.__all__)
