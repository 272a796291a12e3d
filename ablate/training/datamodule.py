"""Prepared rows as Lightning's data: batches are a function of (seed, step) alone."""

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ablate.data import PackedRows, Prepared, StepOrder


class PackedData(LightningDataModule):
    """Endless training batches that start at the trainer's step, and the whole validation set in order."""

    def __init__(self, prepared: Prepared, batch_size: int, seed: int, workers: int, max_rows: int | None):
        super().__init__()
        self._prepared, self._batch_size, self._seed, self._workers = prepared, batch_size, seed, workers
        self._train_rows = min(len(prepared.train), max_rows or len(prepared.train))

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        start = trainer.global_step * trainer.accumulate_grad_batches
        order = StepOrder(
            self._train_rows, self._batch_size, self._seed, start, trainer.global_rank, trainer.world_size
        )
        return self._loader(self._prepared.train, order)

    def val_dataloader(self) -> DataLoader:
        rows, size = self._prepared.val, self._batch_size
        ids = list(range(len(rows)))
        ids += [-1] * (-len(ids) % size)  # empty rows: every batch has the same shape
        return self._loader(rows, [ids[i : i + size] for i in range(0, len(ids), size)])

    def _loader(self, rows: PackedRows, order) -> DataLoader:
        pin = self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(rows, batch_size=None, sampler=order, num_workers=self._workers, pin_memory=pin)
