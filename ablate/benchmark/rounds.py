"""Runs contestants one after the other in every round, so that a slow moment of the machine slows all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
EVERY_S = 5.0  # the least seconds between two lines of progress without a terminal


@dataclass(frozen=True)
class Measured:
    """A time or a rate over the rounds.

    Raises:
        ValueError: not 0 < min <= median <= max, or one of them is not finite.
    """

    median: float
    min: float
    max: float

    def __post_init__(self):
        if not 0 < self.min <= self.median <= self.max < math.inf:
            raise ValueError(f"median {self.median}, min {self.min}, max {self.max}")

    def scaled(self, factor: float) -> "Measured":
        return Measured(self.median * factor, self.min * factor, self.max * factor)


def over_rounds(values: Sequence[float]) -> Measured:
    return Measured(statistics.median(values), min(values), max(values))


def take_turns(
    contestants: Sequence[Callable[[], T]], rounds: int, announce: Callable[[int, int], None]
) -> list[list[T]]:
    """Calls each contestant once per round; returns, for each, its results of `rounds` rounds.

    An extra first round warms up (compilation, caches); its results are thrown away.
    announce: called before each turn with the number of the round, 0 for the warm-up, and the contestant's index.
    """
    results: list[list[T]] = [[] for _ in contestants]
    for number in range(rounds + 1):
        for turn, contestant in enumerate(contestants):
            announce(number, turn)
            result = contestant()
            if number:
                results[turn].append(result)
    return results


def name_of_round(number: int, rounds: int) -> str:
    return f"round {number}/{rounds}" if number else "warming up"


@contextmanager
def progress(total: int, console: Console) -> Iterator[Callable[[str], None]]:
    """Yields a function; call it with a text as each of `total` turns begins.

    On a terminal it moves a bar; elsewhere it prints a line, at most one every `EVERY_S` seconds.
    """
    if not console.is_terminal:
        yield _Lines(console, total)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    begun = count()
    # auto_refresh would draw the bar from a thread during a turn, and slow what is being timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, description=text, completed=next(begun), refresh=True)


class _Lines:
    def __init__(self, console: Console, total: int):
        self._console, self._total = console, total
        self._begun, self._shown = 0, -EVERY_S

    def __call__(self, text: str) -> None:
        self._begun += 1
        now = time.monotonic()
        if now - self._shown >= EVERY_S:
            self._shown = now
            self._console.print(f"{self._begun}/{self._total}  {text}", markup=False, highlight=False)
