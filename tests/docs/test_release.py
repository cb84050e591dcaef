"""What a release says of itself in several files is the same in all of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.upgrade.kept import RELEASES

ROOT = Path(__file__).parents[2]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIGURATION["project"]
CITATION = dict(
    re.findall(
        r'^([\w-]+): "?(.+?)"?$', (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE
    )
)
HEADINGS = re.findall(
    r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
)
RAW = "raw.githubusercontent.com"
NEWEST = list(RELEASES)[-1]


def test_the_changelog_has_each_release_and_what_is_in_the_making() -> None:
    in_the_making = ["Unreleased"] if PROJECT["version"] != NEWEST else []

    assert [heading.split()[0] for heading in HEADINGS] == [*in_the_making, *reversed(RELEASES)]


def test_a_version_in_the_making_is_later_than_the_newest_release() -> None:
    numbers = [
        [int(number) for number in version.removesuffix(".dev0").split(".")]
        for version in (*RELEASES, PROJECT["version"])
    ]

    assert numbers == sorted(numbers)
    assert (PROJECT["version"] == NEWEST) != PROJECT["version"].endswith(".dev0")


def test_the_newest_release_is_what_is_cited_with_its_date() -> None:
    dated = [heading for heading in HEADINGS if heading.startswith(f"{NEWEST} ")]

    assert dated == [f"{CITATION['version']} - {CITATION['date-released']}"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CITATION.cff", {"Documentation", "Source"}),
        ("mkdocs.yml", {"Documentation", "Source"}),
        (".github/ISSUE_TEMPLATE/config.yml", {"Documentation", "Source"}),
    ],
)
def test_every_file_has_the_addresses_of_the_project(name: str, expected: set[str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {each for each in expected if PROJECT["urls"][each] in text}

    assert found == expected
    assert PROJECT["urls"]["Changelog"].startswith(PROJECT["urls"]["Documentation"])


def test_the_form_for_faults_asks_for_what_the_command_line_prints() -> None:
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")

    assert "zarr-cache info --json" in form
    assert "zarr-cache --version" in form


def test_the_page_on_the_package_index_links_to_files_of_the_repository() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for each in CONFIGURATION["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"][
        "substitutions"
    ]:
        page = re.sub(each["pattern"], each["replacement"], page)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)#]+)[^)]*\)", page)
    source = PROJECT["urls"]["Source"]
    pages, images = f"{source}/blob/main/", f"{source.replace('github.com', RAW)}/main/"
    found = [
        (ROOT / link.removeprefix(images if is_image else pages))
        for is_image, link in links
        if is_image or link.startswith(source)
    ]

    assert {link.partition(":")[0] for _, link in links} == {"https"}
    assert {each.suffix for each in found} == {".md", ".svg", ""}
    assert [each for each in found if not each.exists()] == []
