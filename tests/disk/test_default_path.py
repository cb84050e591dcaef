"""Where the cache file is when the user names none."""

from __future__ import annotations

import sys
from pathlib import Path

import platformdirs
import pytest

from tests.fakes import buffer
from zarr_cache import SqliteStore
from zarr_cache.disk.paths import default_path


def test_the_environment_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZARR_CACHE_PATH", str(path))

    assert default_path() == path
    assert SqliteStore().path == path.resolve()


def test_a_home_folder_in_the_environment_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZARR_CACHE_PATH", "~/cache.sqlite")

    assert SqliteStore().path == Path("~/cache.sqlite").expanduser().resolve()


@pytest.mark.parametrize("value", [None, ""])
def test_without_it_the_file_is_in_the_users_cache_folder(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZARR_CACHE_PATH", raising=False)
    if value is not None:
        monkeypatch.setenv("ZARR_CACHE_PATH", value)
    folder = platformdirs.user_cache_path()

    assert default_path().name == "cache.sqlite"
    assert default_path().is_relative_to(folder)
    assert "zarr-cache" in default_path().parts


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is that of the XDG folders")
def test_a_store_without_a_path_makes_the_folder_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZARR_CACHE_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    SqliteStore().set_sync("k", buffer(b"value"))

    assert (tmp_path / "zarr-cache" / "cache.sqlite").is_file()
    found = SqliteStore().get_sync("k")
    assert found is not None
    assert found.to_bytes() == b"value"
