"""The order in which training reads the rows."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class StepOrder(Sampler[list[int]]):
    """Endless batches of row ids. They depend only on (seed, step).

    Each epoch is a permutation of all rows, drawn from (seed, epoch); the order is one epoch after the other.
    Micro-batch n takes the n-th `batch_size * world` places of that order, and rank r the r-th slice of them. So a
    resumed run begins at `start` and replays nothing, and two ranks with batches of b see what one process sees with
    batches of 2b.

        place          0 1 | 2 3 | 4 5 | 6 7      batch_size 2, world 2
        micro-batch     0     0     1     1
        rank            0     1     0     1

    rows: the number of rows; None: endless rows, in the order of their ids.
    """

    def __init__(self, rows: int | None, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1):
        if rows is not None and rows < 1:
            raise ValueError("StepOrder needs at least one row")
        self.rows, self.batch_size, self.seed, self.start = rows, batch_size, seed, start
        self.rank, self.world = rank, world
        self._epoch: tuple[int, np.ndarray] | None = None

    def at(self, n: int) -> np.ndarray:
        """The row ids of micro-batch n on this rank, `[batch_size]`."""
        first = (n * self.world + self.rank) * self.batch_size
        places = np.arange(first, first + self.batch_size)
        if self.rows is None:
            return places
        epochs, places = np.divmod(places, self.rows)
        ids = np.empty(self.batch_size, dtype=np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            ids[here] = self._permutation(epoch)[places[here]]
        return ids

    def __iter__(self) -> Iterator[list[int]]:
        n = self.start
        while True:
            yield self.at(n).tolist()
            n += 1

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            key = np.random.SeedSequence(self.seed, spawn_key=(int(epoch),))
            self._epoch = epoch, np.random.Generator(np.random.Philox(key)).permutation(self.rows)
        return self._epoch[1]
