"""The examples of the guide run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr

if TYPE_CHECKING:
    import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "warm.md"
REMOTE = '"https://example.org/era5.zarr"'


def test_the_examples_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = zarr.create_group("era5.zarr")
    root.create_array("temperature", shape=(200, 80), chunks=(10, 10), dtype="i2")[:] = 7
    settings: dict[str, Any] = {"chunks": (10, 10), "shards": (100, 80), "compressors": None}
    root.create_array("wind", shape=(200, 80), dtype="i2", **settings)[:] = 7
    examples = re.findall(
        r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    outputs = GUIDE.read_text("utf-8").splitlines()
    program = "\n".join(examples)
    assert REMOTE in program

    local = program.replace(REMOTE, '"era5.zarr"')
    exec(compile(local, GUIDE, "exec"), {})  # noqa: S102 - our own page

    plan, report, inner_plan, inner_report, share, inner_share = (
        capsys.readouterr().out.splitlines()
    )
    assert plan.startswith("20 chunks: 0 cached, 0 known to be absent; 21 requests for ")
    assert report.startswith("20 chunks: 0 were cached, 20 fetched (")
    assert inner_plan in outputs
    assert inner_report in outputs
    assert inner_share == "5 inner chunks are cached"
    assert share == "12% of the chunks are cached"
