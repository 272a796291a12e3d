"""Packed rows as batches of tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ablate.data.packing import Packing

IGNORE = -100  # the target of a position that is not scored, as in torch's cross_entropy


class PackedRows(Dataset):
    """The rows of a split: a `RowSource` that reads a whole batch at a time from the token stream.

    Use it with `DataLoader(rows, batch_size=None, sampler=...)` and a sampler that yields lists of row ids.

    Args:
        stream: token ids of all documents end to end, each with the end-of-text token before it, and one more such
            token at the end; `[pairs + 1]`, usually memory-mapped.
        starts: where each document begins in `stream`, `[D]`.
        document_bytes: UTF-8 bytes of each document, `[D]`.
        plan: which piece of which document is in which row.
        document_mask: return `documents`, so that attention stays within a piece.
        restart_positions: count positions from 0 in each piece; else along the row.
    """

    def __init__(
        self,
        stream: np.ndarray,
        starts: np.ndarray,
        document_bytes: np.ndarray,
        plan: Packing,
        *,
        document_mask: bool = True,
        restart_positions: bool = True,
    ):
        self.stream = np.asarray(stream)  # a plain view: indexing a np.memmap object is several times slower
        self.plan = plan
        self.context = plan.context
        self.document_mask = document_mask
        self.restart_positions = restart_positions
        self.targets = plan.pairs
        self.bytes = int(document_bytes.sum())
        self.starts = starts
        self._source = starts[plan.document] + plan.offset

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def size(self) -> int:
        return len(self)

    def pieces(self, rows: int | None = None) -> dict[int, int]:
        """See `RowSource.pieces`."""
        rows = len(self) if rows is None else min(rows, len(self))
        if not self.document_mask:
            return {self.context: rows}
        starts = self.plan.row_start[: rows + 1]
        length = self.plan.length[: starts[-1]]
        padding = self.context - np.add.reduceat(length, starts[:-1])
        return _counted(np.append(length, padding[padding > 0]))

    def __getitem__(self, ids: Sequence[int]) -> dict[str, Tensor | int]:
        """The batch of rows `ids`, as `RowSource` describes it; an id of -1 gives a row of padding.

        Tokens and positions are 0 on padding. `documents` numbers the pieces of a row from 0. `max_documents` is
        rounded up to a power of two: compiled code is compiled again for each value of it.
        """
        ids = np.asarray(ids, dtype=np.int64)
        batch, size = len(ids), len(ids) * self.context
        real = ids >= 0
        first = np.where(real, self.plan.row_start[ids], 0)
        count = np.where(real, self.plan.row_start[ids + 1], 0) - first  # pieces in each row
        ordinal = _ranges(count)
        piece = np.repeat(first, count) + ordinal
        length = self.plan.length[piece]
        start = np.cumsum(length) - length  # where each piece begins, not counting padding
        row_first = np.cumsum(count) - count
        row = np.repeat(np.arange(batch), count)
        place = row * self.context + start - start[row_first[row]]

        within = _ranges(length)
        to = np.repeat(place, length) + within
        source = np.repeat(self._source[piece], length) + within
        tokens = np.zeros(size, dtype=np.int64)
        targets = np.full(size, IGNORE, dtype=np.int64)
        positions = np.zeros(size, dtype=np.int64)
        tokens[to] = self.stream[source]
        targets[to] = self.stream[source + 1]
        positions[to] = within if self.restart_positions else to % self.context
        arrays = {"tokens": tokens, "targets": targets, "positions": positions}
        if self.document_mask:
            arrays["documents"] = np.full(size, -1, dtype=np.int32)
            arrays["documents"][to] = np.repeat(ordinal, length)
        tensors = {name: torch.from_numpy(array).view(batch, self.context) for name, array in arrays.items()}
        if not self.document_mask:
            return tensors
        padded = np.bincount(row, length, minlength=batch) < self.context
        return {**tensors, "max_documents": 1 << int((count + padded).max() - 1).bit_length()}


def pieces_of(documents: np.ndarray) -> dict[int, int]:
    """`{length: count}` of the runs of equal ids in the rows of `documents`, `[B, T]`."""
    starts = np.ones(documents.shape, dtype=bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return _counted(np.diff(np.append(np.flatnonzero(starts), documents.size)))


def _counted(lengths: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _ranges(counts: np.ndarray) -> np.ndarray:
    """`[3, 1, 2]` -> `[0, 1, 2, 0, 0, 1]`."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
