"""The examples of README and docs run, page by page, in order, as a reader would try them.

A page is one program: its blocks of Python share their names, and the commands between them are
given to `zarr_cache.cli` where they stand. Each page runs in a process and a folder of its own, and
lines are numbered as in the page, so that a traceback points into it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docs.entry_points import write_entry_points

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# These have tests of their own, which replace addresses and look at what comes out.
TESTED_ELSEWHERE = {
    "docs/cli.md": "tests/docs/test_cli_page.py",
    "docs/demo.md": "tests/cli/demo/test_demo.py",
    "docs/guides/dask.md": "tests/docs/test_dask_guide.py",
    "docs/guides/offline.md": "tests/docs/test_offline_guide.py",
    "docs/guides/shell.md": "tests/docs/test_shell_guide.py",
    "docs/guides/warm.md": "tests/warming/test_guide.py",
}

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}

# A comment above a block gives the reason why it cannot run here.
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n+)?^```(?P<language>python|sh)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

COMMAND = """\
assert app(shlex.split({line!r})[1:], prog_name="zarr-cache", standalone_mode=False) in (None, 0)"""


def program(page: str) -> str:
    """What of the page runs, each line at its place; a line of a command becomes a call."""
    lines = [""] * (page.count("\n") + 1)
    for block in BLOCK.finditer(page):
        if block["reason"]:
            continue
        first = page.count("\n", 0, block.start("text"))
        for place, line in enumerate(block["text"].splitlines(), first):
            if block["language"] == "python":
                lines[place] = line
            elif line.startswith("zarr-cache "):
                lines[place] = COMMAND.format(line=line)
    return "\n".join(lines) if any(lines) else ""


# What has something to run here.
PROGRAMS = {
    name: text
    for name, page in PAGES.items()
    if name not in TESTED_ELSEWHERE and (text := program(page))
}
BLOCKS = [
    pytest.param(block, id=f"{name}-{page.count('\n', 0, block.start('text'))}")
    for name, page in PAGES.items()
    for block in BLOCK.finditer(page)
    if block["language"] == "python"
]


@pytest.fixture(scope="module")
def amazon() -> Iterator[dict[str, str]]:
    """The environment of a machine on which ``s3://bucket/era5.zarr`` is a group."""
    with subprocess.Popen(
        [sys.executable, ROOT / "tests" / "sources" / "s3_server.py"],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        group = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
        for path, data in (("bucket", b""), ("bucket/era5.zarr/zarr.json", group)):
            url = f"{endpoint}/{path}"
            # moto takes a body of no type for a form.
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(url, data, headers, method="PUT")  # noqa: S310 - our own server
            with urllib.request.urlopen(request):  # noqa: S310 - the same
                pass
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        server.stdin.close()


@pytest.mark.parametrize(("name", "text"), PROGRAMS.items(), ids=list(PROGRAMS))
def test_the_examples_of_a_page_run_in_order(
    name: str, text: str, tmp_path: Path, amazon: dict[str, str]
) -> None:
    script = tmp_path / "page.py"
    # One line, so that the numbers of all others stay: the first line of a page is its heading.
    assert not text.splitlines()[0]
    script.write_text(f"import shlex; from zarr_cache.cli import app{text}", encoding="utf-8")
    write_entry_points(tmp_path)
    environment = (
        os.environ
        | amazon
        | {
            "PYTHONPATH": str(ROOT / "src"),
            "XDG_CACHE_HOME": str(tmp_path / "home"),
            "ZARR_CACHE_PATH": str(tmp_path / "default.sqlite"),
        }
    )

    ended = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 0, f"{name}\n{ended.stdout}\n{ended.stderr}"
    assert "CacheWarning" not in ended.stderr


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_python_is_python(block: re.Match[str]) -> None:
    compile(block["text"], "page", "exec")


def test_every_block_of_python_is_found() -> None:
    begun = sum(page.count("```python") for page in PAGES.values())

    assert begun == len(BLOCKS)


def test_what_is_not_run_says_why_and_is_little() -> None:
    reasons = [
        block["reason"] for page in PAGES.values() for block in BLOCK.finditer(page)
        if block["reason"]
    ]  # fmt: skip

    assert all(len(reason.split()) > 3 for reason in reasons)
    assert len(reasons) < len(BLOCKS) / 4


@pytest.mark.parametrize("test", TESTED_ELSEWHERE.values())
def test_a_page_that_is_tested_elsewhere_is(test: str) -> None:
    assert (ROOT / test).is_file()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    assert [
        name for name in PAGES if name.startswith("docs/") and f": {name[5:]}\n" not in navigation
    ] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_links_to_is_there(name: str) -> None:
    folder = (ROOT / name).parent
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", PAGES[name])

    assert [target for target in targets if not (folder / target).exists()] == []
