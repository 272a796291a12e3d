"""The LightningModule: next-token loss, validation, optimiser and schedule."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from ablate.data import RowSource
from ablate.metrics import METRICS, Sums
from ablate.model.context import Record
from ablate.model.decoder import Decoder
from ablate.model.loss import IGNORE, next_token_loss, right_answers, token_losses
from ablate.training.ranks import total
from ablate.training.sharding import shard

Batch = dict[str, Tensor | int]  # see RowSource


class LanguageModel(LightningModule):
    """Trains a `Decoder` on batches of packed rows.

    optimizer: model -> torch optimiser. schedule: (step, max_steps) -> factor on the learning rate.
    validation: the rows to validate on; they decide which metrics are logged, those of text or those of a task.
    """

    def __init__(
        self,
        decoder: Decoder,
        optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int, int], float],
        validation: RowSource,
        compile: bool = False,
    ):
        super().__init__()
        self.decoder = decoder
        self._optimizer, self._schedule, self._validation = optimizer, schedule, validation
        # Compiles the function, not the module, so that parameters keep their names.
        self._train_loss = torch.compile(self._loss) if compile else self._loss

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy=fsdp
            shard(self.decoder, self.device_mesh["data_parallel"])

    def _hidden(self, batch: Batch, record: Record | None = None) -> Tensor:
        documents, limit = batch.get("documents"), batch.get("max_documents")
        return self.decoder.hidden(batch["tokens"], batch["positions"], documents, record=record, max_documents=limit)

    def _loss(self, batch: Batch) -> tuple[Tensor, Record]:
        """The mean next-token loss in nats, and the auxiliary losses and statistics of the layers."""
        record = Record()
        hidden, decoder = self._hidden(batch, record), self.decoder
        loss = next_token_loss(hidden, decoder.head.weight, batch["targets"], decoder.config.logit_softcap)
        return loss, record

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        loss, record = self._train_loss(batch)
        losses = {"loss": loss, **record.losses}
        self.log("train/lr", self.lr_schedulers().get_last_lr()[0])
        share, means = self._over_ranks(losses, batch["targets"])
        for name, mean in means.items():
            self.log(f"train/{name}", mean, prog_bar=name == "loss")
        loss = loss * share + sum(record.losses.values())
        return {"loss": loss, "mean": sum(means.values()), "statistics": record.statistics}

    def _over_ranks(self, losses: dict[str, Tensor], targets: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The weight of this rank's loss, and the mean of each loss over all ranks, detached.

        Gradients are averaged over ranks, but the loss is a mean over the targets of all ranks, so a rank with more
        targets weighs more. Auxiliary losses are averaged over ranks, as over accumulated batches.

        losses: this rank's, with the next-token loss first. targets: this rank's, [B, T].
        """
        values, world = [loss.detach() for loss in losses.values()], self.trainer.world_size
        if world == 1:
            return 1.0, dict(zip(losses, values, strict=True))
        own = (targets != IGNORE).sum()
        scored, nats, *others = total(torch.stack([own, values[0] * own, *values[1:]]).double()).unbind()
        means = [nats / scored.clamp(min=1), *(other / world for other in others)]
        return (own * world / scored.clamp(min=1)).float(), dict(zip(losses, (m.float() for m in means), strict=True))

    @property
    def _of_text(self) -> bool:
        return self._validation.bytes is not None

    def on_validation_epoch_start(self) -> None:
        self._nats = torch.zeros((), dtype=torch.float64, device=self.device)
        self._scored = torch.zeros((), dtype=torch.int64, device=self.device)
        self._right = torch.zeros((), dtype=torch.int64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        hidden, decoder = self._hidden(batch), self.decoder
        nats = token_losses(hidden, decoder.head.weight, batch["targets"], decoder.config.logit_softcap)
        self._nats += nats.sum(dtype=torch.float64)
        self._scored += (batch["targets"] != IGNORE).sum()
        if not self._of_text:
            self._right += right_answers(hidden, decoder.head.weight, batch["targets"])

    def on_validation_epoch_end(self) -> None:
        for count in (self._nats, self._scored, self._right):
            total(count)
        validation, size = self._validation, None
        if self._of_text:  # all bytes; with limit_val_batches only the share that was scored
            size = validation.bytes * self._scored / validation.targets
        sums = Sums(nats=self._nats, targets=self._scored, right=self._right, bytes=size)
        for metric in METRICS.of_validation("text" if self._of_text else "task"):
            value = torch.as_tensor(metric.of(sums), device=self.device)
            self.log(metric.name, value.float(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = self._optimizer(self.decoder)
        max_steps = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._schedule(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.decoder.after_step()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Lightning's clipping refuses fused AdamW in mixed precision, and does not report the norm.
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), gradient_clip_val or float("inf"))
        self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
