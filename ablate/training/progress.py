"""Progress: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from ablate.words import clock, level, short


def progress_bar() -> ProgressBar:
    """A bar if stderr is a terminal, else lines."""
    return StepBar() if sys.stderr.isatty() else StepLines()


class StepBar(TQDMProgressBar):
    """Lightning's bar over all steps of the run, not over an epoch, so that it shows the time left."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._first = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, module)
        self.train_progress_bar.reset(trainer.max_steps * trainer.accumulate_grad_batches)
        self.train_progress_bar.initial = self._first * trainer.accumulate_grad_batches
        self.train_progress_bar.set_description("Training")

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        return metrics


class StepLines(ProgressBar):
    """Prints lines such as `step 120/500  loss 4.12  11.2k tokens/s  1:32 left`."""

    def __init__(self, every_s: float = 5.0):
        super().__init__()
        self._every = every_s

    def disable(self) -> None:
        """Lightning calls this on all ranks but 0."""
        self._every = float("inf")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = self._shown = time.monotonic()
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        done = max(1, trainer.global_step - self._first)
        left = (now - self._start) / done * (trainer.max_steps - trainer.global_step)
        rate = trainer.callback_metrics.get("train/tokens_per_s")
        speed = f"  {short(float(rate))} tokens/s" if rate is not None else ""
        print(
            f"step {trainer.global_step}/{trainer.max_steps}  loss {level(outputs['mean'].item())}{speed}"
            f"  {clock(left)} left",
            flush=True,
        )

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            values = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
            shown = "  ".join(f"{name} {level(value)}" for name, value in values.items())
            print(f"step {trainer.global_step}/{trainer.max_steps}  {shown}", flush=True)
