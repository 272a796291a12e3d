"""What happens around the training loop."""

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
def signals_later() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT wait: what is written there is written whole."""
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
    """The loss is no longer a number."""


class RandomState(Callback):
    """Keeps torch's, numpy's and Python's random states, those of every rank, in the checkpoint: Lightning does not."""

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"random": gathered(_plain(_collect_rng_states()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state["random"]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx: int) -> None:
        if len(self._restored) == trainer.world_size:  # else it was another number of processes: they start afresh
            _set_rng_states(self._restored[trainer.global_rank])
        self._restored = []


def _plain(states: dict[str, Any]) -> dict[str, Any]:
    """numpy's state holds an array, which a checkpoint of plain data does not."""
    name, keys, *rest = states["numpy"]
    return {**states, "numpy": (name, [int(key) for key in keys], *rest)}


class FinalValidation(Callback):
    """The last step is validated, and so checkpointed, whatever the interval."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx: int) -> None:
        # Lightning counts one step too few after a checkpoint of a validation that val_check_interval did not ask for.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        batches = trainer.fit_loop.total_batch_idx + 1
        if batches == trainer.max_steps * trainer.accumulate_grad_batches:
            trainer.val_check_batch = batches


class StopOnDivergence(Callback):
    """Ends training, at a step that is logged, once the loss is not finite."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.log_every_n_steps == 0 and not torch.isfinite(outputs["mean"]):
            raise Diverged(f"the loss is {outputs['mean'].item()} at step {trainer.global_step}: lower optimizer.lr")


class GracefulStop(Callback):
    """SIGINT or SIGTERM: finish the step, write a checkpoint, raise `Interrupted`. A second one ends the process.

    A signal to one rank stops all of them, at the same step.
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
        if self._saved:  # only now has the step been logged
            raise Interrupted(self._received)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()


class Throughput(Callback):
    """`train/tokens_per_s` and `train/mfu` over each logging interval, validation left out.

    Tokens are those of all ranks. `mfu` is training FLOPs per second over the rate of matrix products of all their
    devices (Chowdhery et al. 2022).

    flops_per_token: of training. peak_flops: FLOP/s of one device. ranks: how many there are.
    """

    def __init__(self, flops_per_token: float, peak_flops: float, ranks: int = 1):
        self.flops_per_token, self._peak = flops_per_token, peak_flops * ranks
        self._rates: list[float] = []
        self._tokens = 0
        self._start: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the logging intervals."""
        return statistics.median(self._rates) if self._rates else None

    @property
    def mfu(self) -> float | None:
        rate = self.tokens_per_s
        return None if rate is None else rate * self.flops_per_token / self._peak

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
            module.log("train/mfu", rate * self.flops_per_token / self._peak)
            self._start, self._tokens = now, 0

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = None


class RouterStatistics(Callback):
    """What the routers of mixtures of experts did in the last batch of a logged step; no other step waits for it.

    `train/router_entropy` (nats) and `train/router_dropped` (share of all choices) are means over layers;
    `train/router_load/LAYER.EXPERT` is the share of the layer's choices that fell on the expert.
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
        for logger in trainer.loggers:  # all at once: LightningModule.log takes its time for each
            logger.log_metrics(values, step=trainer.global_step - 1)
