"""Packing documents into rows of equal length. A packer is a component of the axis `data.packing`.

A packer maps the lengths of all documents, `[D]`, and the context to a `Packing`. A document's length is its number of
(input, target) pairs; a row has room for `context` of them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablate.registry import Axis

PACKERS = Axis("data.packing")


@dataclass(frozen=True)
class Packing:
    """A plan of R rows: which piece of which document is where. S is the number of pieces.

    Row r holds the pieces `row_start[r]` to `row_start[r + 1] - 1`, from left to right; the rest of the row is padding.
    Lengths and offsets are in pairs.
    """

    row_start: np.ndarray  # [R + 1]
    document: np.ndarray  # [S], the document that the piece comes from
    offset: np.ndarray  # [S], where the piece begins in its document
    length: np.ndarray  # [S]
    context: int
    dropped: int  # pairs that are in no row

    def __len__(self) -> int:
        return len(self.row_start) - 1

    @property
    def pairs(self) -> int:
        return int(self.length.sum())

    @property
    def utilisation(self) -> float:
        """The fraction of the rows that is not padding, 0 to 1."""
        return self.pairs / (len(self) * self.context) if len(self) else 0.0

    @property
    def documents_cut(self) -> int:
        """How many documents are in more than one piece."""
        return int((np.bincount(self.document) > 1).sum()) if len(self.document) else 0

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Packing":
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(**arrays | {"context": int(arrays["context"]), "dropped": int(arrays["dropped"])})


@PACKERS.register("concat")
class Concat:
    """Documents end to end, cut at the context. An incomplete last row is dropped unless it is the only row."""

    def __call__(self, lengths: np.ndarray, context: int) -> Packing:
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        total = int(ends[-1]) if len(ends) else 0
        rows = max(total // context, min(total, 1))
        used = min(rows * context, total)
        edges = np.arange(rows, dtype=np.int64) * context
        cuts = np.unique(np.concatenate([starts[(starts < used) & (np.asarray(lengths) > 0)], edges]))
        document = np.searchsorted(ends, cuts, side="right")
        return Packing(
            row_start=np.append(np.searchsorted(cuts, edges), len(cuts)).astype(np.int64),
            document=document,
            offset=cuts - starts[document],
            length=np.diff(np.append(cuts, used)),
            context=context,
            dropped=total - used,
        )


@PACKERS.register("padded")
class Padded:
    """One piece in each row. A document longer than the context takes several rows."""

    def __call__(self, lengths: np.ndarray, context: int) -> Packing:
        document, offset, length = _pieces(lengths, context)
        return Packing(np.arange(len(document) + 1), document, offset, length, context, dropped=0)


@PACKERS.register("best_fit")
class BestFit:
    """Best-fit decreasing (Ding et al. 2024, "Fewer truncations"): only a document longer than the context is cut.

    A long document first fills whole rows; its remainder and the shorter documents share the other rows.
    """

    def __call__(self, lengths: np.ndarray, context: int) -> Packing:
        document, offset, length = _pieces(lengths, context)
        row = np.empty(len(length), dtype=np.int64)
        whole = length == context
        row[whole] = np.arange(whole.sum())
        rest = np.flatnonzero(~whole)
        rest = rest[np.argsort(-length[rest], kind="stable")]
        row[rest] = int(whole.sum()) + _best_fit(length[rest].tolist(), context)
        order = np.argsort(row, kind="stable")
        rows = int(row.max()) + 1 if len(row) else 0
        row_start = np.searchsorted(row[order], np.arange(rows + 1))
        return Packing(row_start, document[order], offset[order], length[order], context, dropped=0)


def _pieces(lengths: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts documents every `context` pairs: the document, offset and length of each piece, each `[S]`."""
    lengths = np.asarray(lengths, dtype=np.int64)
    count = -(-lengths // context)
    document = np.repeat(np.arange(len(lengths)), count)
    offset = (np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)) * context
    return document, offset, np.minimum(lengths[document] - offset, context)


def _best_fit(lengths: list[int], context: int) -> np.ndarray:
    """The row of each piece, `[S]`: the fullest row that has room for it, else a new one.

    `open_rows[f]` are the rows with f places free, and bit f of `free` is set if there are any. The lowest bit of
    `free >> length` is then the fullest row with room, in constant time for any number of rows.
    """
    open_rows: list[list[int]] = [[] for _ in range(context + 1)]
    free, rows = 0, 0
    row = np.empty(len(lengths), dtype=np.int64)
    for piece, length in enumerate(lengths):
        room = free >> length
        if room:
            space = length + (room & -room).bit_length() - 1
            chosen = open_rows[space].pop()
            if not open_rows[space]:
                free ^= 1 << space
        else:
            space, chosen, rows = context, rows, rows + 1
        row[piece] = chosen
        if left := space - length:
            open_rows[left].append(chosen)
            free |= 1 << left
    return row
