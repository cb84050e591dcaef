"""Where the cache file is when nobody names one."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

VARIABLE = "ZARR_CACHE_PATH"
"""The environment variable that names it."""


def default_path() -> Path:
    """The file that ``$ZARR_CACHE_PATH`` names, or else one in the user's cache folder.

    That folder is ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS and ``%LOCALAPPDATA%`` on
    Windows, as platformdirs tells it. Every source has a namespace of its own in the file.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    return platformdirs.user_cache_path("zarr-cache", appauthor=False) / "cache.sqlite"
