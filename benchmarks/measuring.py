"""Rounds in which systems take turns, medians, paired ratios, and what they are to reach."""

from __future__ import annotations

import random
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

KIB, MIB, GIB = 2**10, 2**20, 2**30

type Timed = Callable[[], float]
"""Runs a system once, or for a while, and tells its figure."""

ORDER = random.Random(1)  # noqa: S311 - who goes first in a round is no secret


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes
    ----------
    rounds
        In how many of them each system takes its turn.
    seconds
        For how long calls are repeated, for each system and round; at least `calls` of them are.
    side
        Of the square array that is read warm, in numbers.
    chunks
        Of the array that is read cold.
    entries
        Of the large file; the small one has 1,000.
    huge
        Bytes of the value that ranges are read from, and of the one whose copies are counted.
    hits
        Among which write transactions are counted.
    disk
        How many of the values of `disk` there are, as a share.
    fast_chunks
        Of the array that is read from a fast source.
    windows
        Of a sharded array, that are read for the first time.
    read_bytes
        Of inner chunks that are read to see what memory they take.
    trace
        The share of the keys of a trace of reads.
    """

    rounds: int
    seconds: float
    calls: int
    side: int
    chunks: int
    entries: int
    huge: int
    hits: int
    disk: float
    fast_chunks: int
    windows: int
    read_bytes: int
    trace: float


SCALES = {
    "full": Scale(11, 0.1, 5, 2048, 256, 10**6, GIB, 10_000, 1, 256, 2_000, 4 * 10**9, 1),
    "quick": Scale(5, 0.05, 5, 2048, 256, 10**5, 256 * MIB, 10_000, 0.5, 64, 400, 2 * 10**9, 0.2),
    "smallest": Scale(1, 0, 2, 512, 16, 3_000, 16 * MIB, 2_000, 0, 4, 16, 10**7, 0.04),
}


@dataclass(frozen=True)
class Row:
    """What was measured of one fact, and what is to be reached.

    Attributes
    ----------
    what
        The fact.
    unit
        Of the figures in `systems`.
    systems
        Figures of each system, one a round.
    ours
        The system that the row is about.
    peer
        The system that it is compared with; None where the figure itself is to be reached.
    at_most, at_least
        What is to be reached: the ratio of `ours` to `peer`, or the figure of `ours`.
    or_within
        A difference to the peer, in `unit`, that is as good.
    """

    what: str
    unit: str
    systems: Mapping[str, list[float]]
    ours: str
    peer: str | None = None
    at_most: float | None = None
    at_least: float | None = None
    or_within: float | None = None

    @property
    def medians(self) -> dict[str, float]:
        """The median over the rounds, by system."""
        return {name: statistics.median(figures) for name, figures in self.systems.items()}

    @property
    def value(self) -> float:
        """What is to be reached: the median of the ratios within each round, or of the figures."""
        if self.peer is None:
            return self.medians[self.ours]
        pairs = zip(self.systems[self.ours], self.systems[self.peer], strict=True)
        return statistics.median(mine / other for mine, other in pairs)

    @property
    def quietest(self) -> float:
        """As `value`, of each system's best round: what other work on the machine disturbed least.

        The median includes what others did with the machine; this is nearer to a quiet one's.
        """
        best = min if self.at_least is None else max
        mine = best(self.systems[self.ours])
        return mine if self.peer is None else mine / best(self.systems[self.peer])

    @property
    def is_reached(self) -> bool:
        """Whether `value` is as it should be."""
        return self._is_enough(self.value)

    def _is_enough(self, value: float) -> bool:
        if self.or_within is not None and self.peer is not None:
            medians = self.medians
            if medians[self.ours] - medians[self.peer] <= self.or_within:
                return True
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    @property
    def reach(self) -> str:
        """What is to be reached, in words; empty where the row only tells what there is."""
        if self.at_most is None and self.at_least is None:
            return ""
        number = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        of = self.unit if self.peer is None else f"times {self.peer}"
        within = f", or within {self.or_within:g} {self.unit}" if self.or_within else ""
        return f"{number} {of}{within}"

    def as_json(self) -> dict[str, Any]:
        """The row with what follows from it."""
        return asdict(self) | {
            "medians": self.medians,
            "value": self.value,
            "quietest": self.quietest,
            "reach": self.reach,
            "is_reached": self.is_reached,
            "is_reached_in_best_rounds": self._is_enough(self.quietest),
        }


class Bench:
    """A scale, and a folder that is removed in the end, after what is open in it was closed."""

    def __init__(self, scale: Scale, parent: Path | None = None) -> None:
        self.scale = scale
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(TemporaryDirectory(dir=parent)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stack.close()

    def calls(self, call: Callable[[int], object]) -> Timed:
        """Microseconds of the median call; each is given its number."""

        def timed() -> float:
            taken: list[int] = []
            end = time.perf_counter() + self.scale.seconds
            while len(taken) < self.scale.calls or time.perf_counter() < end:
                began = time.perf_counter_ns()
                call(len(taken))
                taken.append(time.perf_counter_ns() - began)
            return statistics.median(taken) / 1000

        return timed

    async def awaited(self, call: Callable[[int], Awaitable[object]]) -> float:
        """As `calls`, on an event loop."""
        taken: list[int] = []
        end = time.perf_counter() + self.scale.seconds
        while len(taken) < self.scale.calls or time.perf_counter() < end:
            began = time.perf_counter_ns()
            await call(len(taken))
            taken.append(time.perf_counter_ns() - began)
        return statistics.median(taken) / 1000

    def in_turn(
        self, systems: Mapping[str, Timed], *, warms_up: bool = True
    ) -> dict[str, list[float]]:
        """The figures of each system, by round; in each round they go in another order.

        Parameters
        ----------
        warms_up
            Whether a round that does not count goes first.
        """
        figures: dict[str, list[float]] = {name: [] for name in systems}
        for timed in systems.values() if warms_up else ():
            timed()
        for _ in range(self.scale.rounds):
            for name in ORDER.sample(list(systems), len(systems)):
                figures[name].append(systems[name]())
        return figures


class WrongAnswerError(Exception):
    """A system did not give the bytes that it was given: its figures mean nothing."""


def expect(what: str, found: object, expected: object) -> None:
    """Raise unless a system gave what it should.

    Raises
    ------
    WrongAnswerError
        It did not.
    """
    if found != expected:
        raise WrongAnswerError(what)


def text(figure: float) -> str:
    """Three digits, as far as there are."""
    if float(figure).is_integer() or figure >= 100:  # noqa: PLR2004 - all digits before the point
        return f"{figure:,.0f}"
    return f"{figure:.3g}" if figure < 1 else f"{figure:#.3g}"


def print_rows(group: str, rows: list[Row]) -> None:
    """Print the rows as a table, and below each what every system took."""
    print(f"\n{group}")
    for row in rows:
        mark = "" if not row.reach else "yes" if row.is_reached else "NO"
        unit = f" {row.unit}" if row.peer is None else ""
        figures = f"{text(row.value)} (best rounds {text(row.quietest)}){unit}"
        reach = f", to reach {row.reach}" if row.reach else ""
        print(f"  {mark:3} {row.what}: {figures}{reach}")
        each = [f"{name} {text(figure)}" for name, figure in row.medians.items()]
        print(f"      {row.unit}: {', '.join(each)}")
