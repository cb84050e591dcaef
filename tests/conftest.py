"""What every test of a store begins with, and what is true when it has ended."""

from __future__ import annotations

import contextlib
import locale
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
import zarr
from hypothesis import HealthCheck, settings

from tests.fakes import (
    STRESS,
    HeldTime,
    assert_accounts,
    close_everything,
    end_everything,
    is_cache_file,
)
from tests.pairs import left_out
from zarr_cache.core import clock
from zarr_cache.file import connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What is shown depends on the terminal, the language and the time zone. Here, and in each process
# that a test starts, they are the same everywhere; a test of one of them sets it.
for name in list(os.environ):
    if name.startswith("LC_") or name in {
        *("LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "PY_COLORS"),
        *("COLUMNS", "LINES", "TERMINAL_WIDTH", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
        *("GITHUB_ACTIONS", "PYTHONIOENCODING", "ZARR_CACHE_PATH"),
    }:
        del os.environ[name]
if hasattr(time, "tzset"):
    time.tzset()
with contextlib.suppress(locale.Error):
    # Where Python has no UTF-8 locale, as in ISO 8859-1. Elsewhere it changes nothing.
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")

# No test cuts the power, so none needs to wait for the disk.
connection._PRAGMAS = connection._PRAGMAS.replace("synchronous = NORMAL", "synchronous = OFF")

# A shell without job control lets what it starts in the background ignore Ctrl-C, and its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test depends on how fast the machine is.
settings.register_profile(
    "untimed",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("untimed")

PIPELINES = {
    "default pipeline": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "fused pipeline": "zarr.core.codec_pipeline.FusedCodecPipeline",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the long form what only combines in another way what is tried in pairs."""
    # What is asked for by its name runs.
    if STRESS > 1 or any("::" in argument for argument in config.args):
        return
    if left := set(left_out(items)):
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=list(left))


@pytest.fixture(autouse=True)
def _accounts_are_right(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Every cache file that the test has left behind adds up, and verify() finds nothing in it."""
    yield
    close_everything()
    if not request.node.get_closest_marker("leaves_damage"):
        for path in filter(is_cache_file, tmp_path.rglob("*.sqlite")):
            assert_accounts(path)
    # Nothing is left for the end of the interpreter, after pytest's last line.
    end_everything()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the cache file of the test is to be."""
    return tmp_path / "cache.sqlite"


@pytest.fixture
def held_time(monkeypatch: pytest.MonkeyPatch) -> HeldTime:
    """Time that passes when the test says so."""
    held = HeldTime()
    monkeypatch.setattr(clock, "wall_ns", lambda: held.wall_ns)
    monkeypatch.setattr(clock, "monotonic_ns", lambda: held.monotonic_ns)
    return held


@pytest.fixture(params=list(PIPELINES.values()), ids=list(PIPELINES))
def pipeline(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of zarr's codec pipelines."""
    with zarr.config.set({"codec_pipeline.path": request.param}):
        yield request.param
