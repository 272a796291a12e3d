"""Packed rows as batches of tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ablate.data.packing import Rows

IGNORE = -100  # the target of a position that is not scored, as torch's cross_entropy has it


class PackedRows(Dataset):
    """The rows of a split, read from its token stream, a whole batch at a time.

    Meant for `DataLoader(rows, batch_size=None, sampler=...)` with a sampler that yields lists of row ids.

    Args:
        stream: token ids of all documents end to end, each opened by the end-of-text token, and one more
            such token at the end; `[pairs + 1]`, usually memory-mapped.
        starts: where in `stream` each document begins, `[D]`.
        document_bytes: UTF-8 bytes of each document, `[D]`.
        plan: which piece of which document lies in which row.
        document_mask: give `documents`, so that attention stays within a piece.
        restart_positions: count `positions` from 0 in each piece rather than along the row.
    """

    def __init__(
        self,
        stream: np.ndarray,
        starts: np.ndarray,
        document_bytes: np.ndarray,
        plan: Rows,
        *,
        document_mask: bool = True,
        restart_positions: bool = True,
    ):
        self.stream = np.asarray(stream)  # a plain view: indexing a np.memmap object is several times slower
        self.plan = plan
        self.context = plan.context
        self.document_mask = document_mask
        self.restart_positions = restart_positions
        self.targets = plan.pairs  # how many targets are scored
        self.bytes = int(document_bytes.sum())  # UTF-8 bytes of the text
        self.starts = starts
        self._source = starts[plan.document] + plan.offset

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def size(self) -> int:
        return len(self)

    def pieces(self, rows: int | None = None) -> dict[int, int]:
        """Length -> how many: the pieces of the first rows, padding too, that attention keeps to."""
        rows = len(self) if rows is None else min(rows, len(self))
        if not self.document_mask:
            return {self.context: rows}
        starts = self.plan.row_start[: rows + 1]
        length = self.plan.length[: starts[-1]]
        padding = self.context - np.add.reduceat(length, starts[:-1])
        return _counted(np.append(length, padding[padding > 0]))

    def __getitem__(self, ids: Sequence[int]) -> dict[str, Tensor | int]:
        """The batch of the rows `ids`; an id of -1 is a row of padding only.

        Returns:
            tokens: `[B, T]` int64, padding 0.
            targets: `[B, T]` int64, the token that follows; -100 on padding.
            positions: `[B, T]` int64, padding 0.
            documents: `[B, T]` int32, only with the document mask: 0, 1, 2, ... for the pieces of a row, -1 on padding.
            max_documents: with `documents`: no row has more runs of them, padding included; rounded up to a power of
                two, so that compiled code meets few values.
        """
        ids = np.asarray(ids, dtype=np.int64)
        batch, size = len(ids), len(ids) * self.context
        real = ids >= 0
        first = np.where(real, self.plan.row_start[ids], 0)
        count = np.where(real, self.plan.row_start[ids + 1], 0) - first  # pieces in each row
        ordinal = _ranges(count)
        piece = np.repeat(first, count) + ordinal
        length = self.plan.length[piece]
        start = np.cumsum(length) - length  # of each piece, counted without padding
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
    """Length -> how many: the runs of one document in the rows of `documents`, `[B, T]`."""
    starts = np.ones(documents.shape, dtype=bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return _counted(np.diff(np.append(np.flatnonzero(starts), documents.size)))


def _counted(lengths: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _ranges(counts: np.ndarray) -> np.ndarray:
    """`[3, 1, 2]` -> `[0, 1, 2, 0, 0, 1]`."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
