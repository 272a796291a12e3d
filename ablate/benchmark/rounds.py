"""Contestants take turns in one process, so that a slow spell of the machine falls on all of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
EVERY_S = 5.0  # at most so often a line where there is no terminal


def take_turns(
    contestants: Sequence[Callable[[], T]], rounds: int, announce: Callable[[int, int], None]
) -> list[list[T]]:
    """What each contestant returned in `rounds` rounds, after one that does not count (compilation, caches).

    announce: is told the round, 0 for the one that does not count, and whose turn it is.
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


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@contextmanager
def progress(total: int, console: Console) -> Iterator[Callable[[str], None]]:
    """Gives a function that says which of `total` turns begins: on a terminal a bar, elsewhere a line at times."""
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
    # Drawn between turns alone: a thread that draws would take its time from whoever is being measured.
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
