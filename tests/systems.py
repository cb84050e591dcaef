"""Marks of tests of what not every system has; see tests/as_on_windows."""

from __future__ import annotations

import pytest

from tests.fakes import IS_WINDOWS
from zarr_cache.disk.data_file_opening import IS_SUPPORTED

needs_data_file = pytest.mark.skipif(
    not IS_SUPPORTED, reason="the system has no preadv, and every value is in the database"
)

needs_removal_of_open_files = pytest.mark.skipif(
    IS_WINDOWS, reason="the system removes, renames and replaces no open file"
)
