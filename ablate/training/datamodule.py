"""Gives the rows of a corpus to Lightning. A batch depends only on (seed, step).

Ranks share each batch: together they take the rows that one process would take with a batch as large as all of theirs.
"""

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ablate.data import Opened, RowSource, StepOrder


class RowData(LightningDataModule):
    """Endless training batches that start at the trainer's step, and the whole validation set in order."""

    def __init__(self, corpus: Opened, batch_size: int, seed: int, workers: int, max_rows: int | None):
        super().__init__()
        self._corpus, self._batch_size, self._seed, self._workers = corpus, batch_size, seed, workers
        limits = [limit for limit in (corpus.train.size, max_rows) if limit is not None]
        self._train_rows = min(limits, default=None)

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        start = trainer.global_step * trainer.accumulate_grad_batches
        order = StepOrder(
            self._train_rows, self._batch_size, self._seed, start, trainer.global_rank, trainer.world_size
        )
        return self._loader(self._corpus.train, order)

    def val_dataloader(self) -> DataLoader:
        rows, size = self._corpus.val, self._batch_size
        rank, world = self.trainer.global_rank, self.trainer.world_size
        ids = list(range(rows.size))
        ids += [-1] * (-len(ids) % (size * world))  # empty rows: all ranks get the same number of batches, of one shape
        return self._loader(rows, [ids[i : i + size] for i in range(rank * size, len(ids), size * world)])

    def _loader(self, rows: RowSource, order) -> DataLoader:
        pin = self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(rows, batch_size=None, sampler=order, num_workers=self._workers, pin_memory=pin)
