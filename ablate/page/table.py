"""Tables of figures, for pages and Markdown: a column makes its cell from an item."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """A figure as text, and the range of the values that it summarises, if there is one."""

    text: str = ""
    spread: str = ""


@dataclass(frozen=True)
class Column(Generic[T]):
    title: str
    cell: Callable[[T], Cell]


def filled(columns: Iterable[Column[T]], items: Iterable[T]) -> tuple[list[str], list[list[Cell]]]:
    """Titles, and a row of cells for each item, without columns that are empty for all items."""
    items = list(items)
    cells = {column.title: [column.cell(item) for item in items] for column in columns}
    kept = {title: shown for title, shown in cells.items() if any(cell.text for cell in shown)}
    return list(kept), [[shown[i] for shown in kept.values()] for i in range(len(items))]
