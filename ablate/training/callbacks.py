"""Callbacks: random state, validation, divergence, signals, speed and router statistics."""

import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningModule, Trainer

from ablate.errors import AblateError
from ablate.training.ranks import gathered, total

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def delay_signals() -> Iterator[None]:
    """Delays SIGTERM and SIGINT until the block ends, so that files are complete."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = {signum: signal.signal(signum, lambda signum, frame: received.append(signum)) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        for signum in received:
            signal.raise_signal(signum)


class Interrupted(AblateError):
    """Training was stopped by a signal, after a checkpoint at the end of a step."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class Diverged(AblateError):
    """The loss is not finite."""


class RandomState(Callback):
    """Keeps the random states of torch, numpy and Python of every rank in the checkpoint; Lightning does not."""

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"random": gathered(_plain(_collect_rng_states()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state["random"]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx: int) -> None:
        if len(self._restored) == trainer.world_size:  # with another number of processes, all start with fresh states
            _set_rng_states(self._restored[trainer.global_rank])
        self._restored = []


def _plain(states: dict[str, Any]) -> dict[str, Any]:
    """The states with numpy's array as a list, because a checkpoint holds only plain data."""
    name, keys, *rest = states["numpy"]
    return {**states, "numpy": (name, [int(key) for key in keys], *rest)}


class FinalValidation(Callback):
    """Validates after the last step, whatever the interval; Lightning then writes a checkpoint."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx: int) -> None:
        # After a checkpoint from this extra validation, Lightning's own count of steps is one too low.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        batches = trainer.fit_loop.total_batch_idx + 1
        if batches == trainer.max_steps * trainer.accumulate_grad_batches:
            trainer.val_check_batch = batches


class StopOnDivergence(Callback):
    """Raises `Diverged` at the first logged step whose loss is not finite."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.log_every_n_steps == 0 and not torch.isfinite(outputs["mean"]):
            raise Diverged(f"the loss is {outputs['mean'].item()} at step {trainer.global_step}: lower optimizer.lr")


class GracefulStop(Callback):
    """On SIGINT or SIGTERM: finishes the step, writes a checkpoint, raises `Interrupted`.

    A second signal ends the process. A signal to one rank stops all of them at the same step.
    """

    def __init__(self, checkpoints: Path):
        self._checkpoints = checkpoints
        self._previous: dict[int, Any] = {}
        self._received: int | None = None
        self._saved = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._previous[signum] = signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame) -> None:
        self._received = signum
        signal.signal(signum, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1:
            received = total(torch.tensor([self._received == s for s in _SIGNALS], device=module.device).int())
            self._received = next((s for s, count in zip(_SIGNALS, received.tolist(), strict=True) if count), None)
        if self._received is not None:
            trainer.save_checkpoint(self._checkpoints / f"step={trainer.global_step}.ckpt")
            self._saved = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx: int) -> None:
        if self._saved:  # raised here, not before: by now the step has been logged
            raise Interrupted(self._received)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()


class Throughput(Callback):
    """Logs `train/tokens_per_s` and `train/mfu` over each logging interval, without the time of validation.

    tokens_per_s counts the tokens of all ranks. mfu, model FLOPs utilisation, is training FLOP/s divided by the peak
    FLOP/s of all their devices (Chowdhery et al. 2022).

    flops_per_token: training FLOPs. peak_flops: FLOP/s of matrix products on one device. ranks: their number.
    """

    def __init__(self, flops_per_token: float, peak_flops: float, ranks: int = 1):
        self._flops_per_token, self._peak = flops_per_token, peak_flops * ranks
        self._rates: list[float] = []
        self._tokens = 0
        self._start: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the logging intervals; None before the first has ended."""
        return statistics.median(self._rates) if self._rates else None

    @property
    def mfu(self) -> float | None:
        rate = self.tokens_per_s
        return None if rate is None else rate * self._flops_per_token / self._peak

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._start is None:  # the first batch warms up: it is not timed
            self._start, self._tokens = now, 0
            return
        self._tokens += batch["tokens"].numel() * trainer.world_size
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:
            rate = self._tokens / (now - self._start)
            self._rates.append(rate)
            module.log("train/tokens_per_s", rate, prog_bar=True)
            module.log("train/mfu", rate * self._flops_per_token / self._peak)
            self._start, self._tokens = now, 0

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = None


class RouterStatistics(Callback):
    """Logs what the routers of mixtures of experts did in the last batch of each logged step.

    `train/router_entropy` (nats) and `train/router_dropped` (share of all choices) are means over layers;
    `train/router_load/LAYER.EXPERT` is the share of the layer's choices that fell on the expert. Other steps are left
    out, because reading these numbers makes the process wait for the GPU.
    """

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        statistics = outputs["statistics"]
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if "router_load" not in statistics or not stepped or trainer.global_step % trainer.log_every_n_steps:
            return
        values = {}
        for name in ("router_entropy", "router_dropped"):
            mean = torch.stack(list(statistics[name].values())).mean()
            values[f"train/{name}"] = total(mean).item() / trainer.world_size
        for layer, load in statistics["router_load"].items():
            load = total(load.clone())
            shares = (load / load.sum().clamp(min=1)).tolist()
            values |= {f"train/router_load/{layer}.{expert}": share for expert, share in enumerate(shares)}
        for logger in trainer.loggers:  # all in one call: LightningModule.log is slow for many names
            logger.log_metrics(values, step=trainer.global_step - 1)
