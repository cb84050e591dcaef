"""What a notebook shows of a store: numbers and names, whatever is in them, and no trouble."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import CountingStore, buffer, read
from tests.systems import needs_removal_of_open_files
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cache import notebook
from zarr_cache.inspect import html
from zarr_cache.sampling.curve import Curve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store


class Outline(HTMLParser):
    """The elements of a page, their attributes and its text. Every element must be closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words = ""
        self.widths: list[str] = []
        open_tags: list[str] = []
        self._open_tags = open_tags
        self.feed(page)
        self.close()
        assert open_tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open_tags.append(tag)
        self.tags.add(tag)
        style = dict(attrs).get("style") or ""
        self.widths += re.findall(r";width:([\d.]+%)", style)

    def handle_endtag(self, tag: str) -> None:
        assert self._open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def shown(store: CacheStore | SqliteStore) -> Outline:
    return Outline(store._repr_html_())


async def source(**values: bytes) -> CountingStore:
    store = MemoryStore()
    for key, value in values.items():
        await store.set(key, buffer(value))
    return CountingStore(store)


async def test_the_bar_is_as_full_as_the_budget(path: Path) -> None:
    store = CacheStore(
        await source(a=bytes(1024)), cache_store=SqliteStore(path), max_size=4096, namespace="era5"
    )
    for _ in range(4):
        await read(store, "a")
    store.flush()

    page = shown(store)

    assert page.widths == ["25.00%"]
    assert "1.0 KiB of 4.0 KiB" in page.words
    assert "75.0 % hits (4 reads)" in page.words
    assert "era5" in page.words
    assert str(path) in page.words


async def test_without_a_limit_there_is_no_bar(path: Path) -> None:
    store = CacheStore(await source(a=bytes(1024)), cache_store=SqliteStore(path))
    await read(store, "a")
    store.flush()

    page = shown(store)

    assert page.widths == []
    assert "1.0 KiB, no limit" in page.words


async def test_a_cache_in_another_store_is_shown_as_well() -> None:
    store = CacheStore(await source(a=bytes(512)), cache_store=MemoryStore(), max_size=1024)
    await read(store, "a")
    store.flush()

    page = shown(store)

    assert page.widths == ["50.00%"]
    assert "MemoryStore" in page.words


async def test_a_file_is_shown_by_namespace_the_largest_first(path: Path) -> None:
    kept = SqliteStore(path)
    await kept.set("own", buffer(bytes(2048)))
    for name, size in {"small": 100, "large": 300}.items():
        store = CacheStore(await source(a=bytes(size)), cache_store=kept, namespace=name)
        await read(store, "a")
        await read(store, "a")
        store.flush()

    page = shown(kept)

    assert page.widths == ["75.00%", "25.00%"]
    assert re.findall("large|small", page.words) == ["large", "small"]
    assert "1 value, 300 B, 50.0 % hits" in page.words
    assert "1 value, 2.0 KiB" in page.words
    assert "2 values, 400 B" in page.words


@pytest.mark.parametrize("persist_ranges", [False, True])
async def test_ranges_in_the_file_and_in_memory_are_shown(
    path: Path, *, persist_ranges: bool
) -> None:
    kept = SqliteStore(path)
    stores = [
        CacheStore(
            await source(a=bytes(4096), b=bytes(1024)),
            cache_store=kept,
            namespace="era5",
            max_size=8192,
            persist_ranges=each,
        )
        for each in (persist_ranges, not persist_ranges)
    ]
    await read(stores[0], "b")
    await read(stores[0], "a", RangeByteRequest(0, 2048))
    await read(stores[1], "a", RangeByteRequest(2048, 3072))
    for store in stores:
        store.flush()
    in_file, in_memory = (2048, 1024) if persist_ranges else (1024, 2048)
    info = stores[0].cache_info()

    page = shown(stores[0])
    of_file = shown(kept)

    assert "1 value, 1.0 KiB" in page.words
    assert f"its ranges in the file 1 range, {in_file / 1024:.1f} KiB" in page.words
    assert f"its ranges in memory 1 range, {in_memory / 1024:.1f} KiB" in page.words
    assert page.widths == ["50.00%"]
    assert f"1 value, 1 range, {(1024 + in_file) / 1024:.1f} KiB" in of_file.words
    assert (info["ranges"], info["range_size"]) == (1, in_memory)
    assert (info["file_ranges"], info["file_range_size"]) == (1, in_file)
    assert info["file_size"] + info["range_size"] == info["current_size"] == 4096


async def test_no_range_is_named_where_there_is_none(path: Path) -> None:
    kept = SqliteStore(path)
    store = CacheStore(await source(a=b"1"), cache_store=kept, persist_ranges=True)
    await read(store, "a")
    store.flush()

    assert " range" not in shown(store).words
    assert " range" not in shown(kept).words


def test_of_many_namespaces_the_rest_is_counted() -> None:
    page = html.shares(html.Share(f"name {n:02}", 1, 0, n, None) for n in range(html.MAX_ROWS + 3))

    assert page.count("no reads yet") == html.MAX_ROWS
    assert "and 3 more" in page


HOSTILE = "<script>alert('x')</script>\"&amp;\N{RIGHT-TO-LEFT OVERRIDE}"


async def test_a_namespace_is_data(path: Path) -> None:
    kept = SqliteStore(path)
    store = CacheStore(await source(a=b"1"), cache_store=kept, namespace=HOSTILE)
    await read(store, "a")
    store.flush()

    for page in (store._repr_html_(), kept._repr_html_()):
        assert "<script" not in page
        assert HOSTILE in unescape(page)
        assert Outline(page).tags <= {"div", "b", "code"}


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "caf\udce9"])
def test_a_path_is_data(name: str, tmp_path: Path) -> None:
    kept = SqliteStore(tmp_path / name / "cache.sqlite")
    store = CacheStore(MemoryStore(), cache_store=kept)

    for page in (store._repr_html_(), kept._repr_html_()):
        assert page.encode()
        assert "img" not in Outline(page).tags


stores = pytest.mark.parametrize(
    "make", [SqliteStore, lambda path: CacheStore(MemoryStore(), cache_store=SqliteStore(path))]
)


CURVE = Curve((1024, 4096, 65_536), (0.1, 0.5, 0.8), 1000.0)


async def page_of(path: Path, curve: Curve | None, max_size: int | None) -> str:
    """What is shown of a CacheStore on a file of which this curve is known."""
    store = CacheStore(
        await source(a=bytes(1024)), cache_store=SqliteStore(path), max_size=max_size
    )
    await read(store, "a")
    store.flush()
    usage = store._view.values.usage(store.namespace)._replace(curve=curve)
    return notebook.of_cache_store("CacheStore", store._view, str(path), usage)


async def test_the_curve_is_shown_with_the_present_size_and_a_sentence(path: Path) -> None:
    drawing = await page_of(path, CURVE, 4096)
    page = Outline(drawing)

    assert page.words.count("64 KiB would have served 80 % of the bytes; now 50 % with 4 KiB;") == 2
    assert "4 KiB now" in page.words
    assert {"svg", "title", "desc"} <= page.tags
    # Between 0 % at 130 and 100 % at 20.
    assert re.findall('cy="(.*?)"', drawing) == ["75.0"]


async def test_without_a_limit_no_size_is_marked(path: Path) -> None:
    page = Outline(await page_of(path, CURVE, None))

    assert "would have served" in page.words
    assert "now" not in page.words
    assert "svg" in page.tags
    assert "circle" not in page.tags


async def test_an_empty_curve_is_not_drawn(path: Path) -> None:
    page = Outline(await page_of(path, Curve((), (), 1000.0), 4096))

    assert "No size would have served" in page.words
    assert "svg" not in page.tags


async def test_with_too_few_reads_there_is_a_sentence_and_no_curve(path: Path) -> None:
    page = Outline(await page_of(path, None, 4096))

    assert "Too few reads are recorded" in page.words
    assert "svg" not in page.tags


@stores
def test_to_look_at_a_store_makes_no_file(
    make: Callable[[Path], CacheStore | SqliteStore], path: Path
) -> None:
    page = shown(make(path))

    assert "no file yet" in page.words
    assert list(path.parent.iterdir()) == []


@stores
def test_a_foreign_file_is_named_and_left_as_it_is(
    make: Callable[[Path], CacheStore | SqliteStore], path: Path
) -> None:
    path.write_text("a shopping list")

    page = shown(make(path))

    assert "cannot be read" in page.words
    assert str(path) in page.words
    assert path.read_text() == "a shopping list"


@stores
@pytest.mark.leaves_damage
def test_a_damaged_file_is_reported_and_not_quarantined(
    make: Callable[[Path], CacheStore | SqliteStore], path: Path
) -> None:
    kept = SqliteStore(path)
    kept.set_sync("a", buffer(b"1"))
    kept.close()
    path.write_bytes(path.read_bytes()[:3000])

    page = shown(make(path))

    assert "cannot be read" in page.words
    assert path.stat().st_size == 3000
    assert not list(path.parent.glob("*.damaged-*"))


@needs_removal_of_open_files
@stores
def test_a_file_that_is_deleted_while_it_is_open_is_not_created_again(
    make: Callable[[Path], CacheStore | SqliteStore], path: Path
) -> None:
    store = make(path)
    store.get_sync("a")
    assert path.exists()
    path.unlink()

    assert "no file yet" in shown(store).words
    assert not path.exists()


async def test_to_look_costs_the_source_nothing_and_counts_as_no_read(path: Path) -> None:
    origin = await source(a=b"1")
    store = CacheStore(origin, cache_store=SqliteStore(path))
    await read(store, "a")
    store.flush()
    before = store.cache_stats()
    origin.reset()

    store._repr_html_()

    assert origin.requests == {}
    assert store.cache_stats() == before


@pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning")
def test_faults_are_shown(path: Path) -> None:
    path.write_text("a shopping list")
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path))
    store.get_sync("a")

    assert "the source was read instead 1 time" in shown(store).words


MARK = html.Mark(0.5, 0.25, "8 GiB now")


def drawn(mark: html.Mark | None = MARK, description: str = "20 GiB would do") -> str:
    points = [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)]
    return html.curve(
        points, ("1 GiB", "64 GiB"), mark, title="Hit rate over size", description=description
    )


def test_a_curve_rises_from_left_to_right() -> None:
    line = re.search('polyline points="(.*?)"', drawn())

    assert line is not None
    assert line[1] == "44.0,130.0 237.0,102.5 430.0,20.0"


def test_a_curve_has_a_name_and_a_description_for_screen_readers() -> None:
    page = drawn(description=HOSTILE)

    assert page.startswith('<svg role="img" ')
    assert re.search(r"^<svg[^>]*><title>Hit rate over size</title><desc>.*?</desc>", page)
    assert HOSTILE in unescape(page)
    assert "script" not in Outline(page).tags


def test_the_present_size_is_marked_on_the_curve() -> None:
    assert '<circle cx="237.0" cy="102.5"' in drawn()
    assert "8 GiB now" in Outline(drawn()).words
    assert "circle" not in Outline(drawn(None)).tags


@pytest.mark.parametrize(
    ("place", "anchor"),
    [(0.0, "start"), (0.1, "start"), (0.5, "middle"), (0.9, "end"), (1.0, "end")],
)
def test_the_name_of_a_mark_stays_in_the_drawing(place: float, anchor: str) -> None:
    page = drawn(MARK._replace(place=place))

    assert re.search(rf'text-anchor="{anchor}"[^>]*>8 GiB now<', page)


def test_every_colour_is_that_of_the_text() -> None:
    page = html.card("title", [html.notice("it failed"), html.bar(1, 2), drawn()])

    colours = re.findall(r'(?:solid|background:)\s*([\w#]+)|(?:fill|stroke)="(.*?)"', page)
    assert {one or other for one, other in colours} == {"currentColor", "none"}
    assert not re.search(r"(?<![\w-])color:|#[0-9a-f]{3}", page)


@pytest.mark.parametrize(
    ("nbytes", "of_bytes", "width"),
    [(0, 10, 0), (5, 10, 50), (20, 10, 100), (0, 0, 0), (1, 0, 100)],
)
def test_a_bar_ends_at_its_frame(nbytes: int, of_bytes: int, width: int) -> None:
    assert f"width:{width}.00%" in html.bar(nbytes, of_bytes)


@pytest.mark.parametrize(
    ("share", "reported"),
    [
        (0, "0.0 %"),
        (0.0001, "less than 0.1 %"),
        (0.5, "50.0 %"),
        (0.99999, "99.9 %"),
        (1, "100.0 %"),
    ],
)
def test_only_none_and_all_are_shown_as_such(share: float, reported: str) -> None:
    assert html.percent(share) == reported


def test_cache_info_is_a_plain_dict(tmp_path: Path) -> None:
    origin: Store = LocalStore(tmp_path / "source")

    assert type(CacheStore(origin, cache_store=MemoryStore()).cache_info()) is dict
