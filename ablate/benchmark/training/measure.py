"""The time of a training step: forward, backward and optimiser. Ours runs in the Lightning Trainer of a real run."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from ablate.accounting import budget
from ablate.benchmark.rounds import name_of_round, over_rounds, take_turns
from ablate.data.rows import pieces_of
from ablate.hardware import device_of, peak_flops, training_dtype
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder
from ablate.training.callbacks import StopOnDivergence, Throughput
from ablate.training.curves import Curves
from ablate.training.module import Batch, LanguageModel

Optimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What all contestants of one benchmark share.

    batch: every step trains on it; see `packed_batch`. accelerator: cpu or gpu.
    steps: the timed steps of a round. seed: the seed of the initial weights.
    """

    config: DecoderConfig
    optimizer: Optimizer
    batch: Batch
    accelerator: str
    steps: int
    seed: int

    @property
    def device(self) -> torch.device:
        return device_of(self.accelerator)

    @cached_property
    def training_flops_per_token(self) -> float:
        """Training FLOPs of one token of the batch; attention stays within documents."""
        pieces = pieces_of(self.batch["documents"].numpy())
        return budget(Decoder(self.config), pieces).training_flops_per_token


@dataclass(frozen=True)
class Contestant:
    """One way to train. `round` runs the steps of one round and returns the seconds of each."""

    name: str
    precision: str
    compile: bool
    round: Callable[[], list[float]]


def packed_batch(config: DecoderConfig, batch_size: int, documents_per_row: int, seed: int) -> Batch:
    """Random tokens `[B, context]`; each row packs at most `documents_per_row` documents of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, config.context)
    tokens = torch.randint(config.vocab_size, (batch_size, config.context + 1), generator=generator)
    cuts = torch.randint(1, config.context, (batch_size, documents_per_row - 1), generator=generator)
    starts = torch.zeros(shape, dtype=torch.int64).scatter_(1, cuts, 1)
    column = torch.arange(config.context).expand(shape)
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "targets": tokens[:, 1:].contiguous(),
        "documents": starts.cumsum(1).int(),
        "max_documents": documents_per_row,
        "positions": column - (column * starts).cummax(1).values,
    }


def ours(setting: Setting, precision: str, compile: bool) -> Contestant:
    """Our decoder, LightningModule and Trainer, with the callbacks and the logger of a real run."""
    decoder = Decoder(setting.config, setting.seed)
    module = LanguageModel(decoder, setting.optimizer, lambda step, max_steps: 1.0, None, compile)

    def run() -> list[float]:
        stopwatch = _Stopwatch()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator=setting.accelerator,
                devices=1,
                precision=precision,
                max_steps=setting.steps + 2,  # see _Stopwatch.seconds
                gradient_clip_val=1.0,
                callbacks=[Throughput(setting.training_flops_per_token, 1.0), StopOnDivergence(), stopwatch],
                logger=[Curves(str(Path(folder) / "metrics.csv"))],
                log_every_n_steps=1,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                default_root_dir=folder,
            )
            batches = DataLoader(_Endless(setting.batch), batch_size=None)
            trainer.fit(module, batches, val_dataloaders=batches)
        return stopwatch.seconds()

    return Contestant("ablate", precision, compile, run)


class _Endless(torch.utils.data.IterableDataset):
    """The same batch, endlessly."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch


class _Stopwatch(Callback):
    """Notes when each batch starts. The time from one start to the next is the full cost of a step."""

    def __init__(self) -> None:
        self._starts: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self._starts.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds of each step except the first, which warms up, and the last, after which no other step starts."""
        return [b - a for a, b in zip(self._starts[1:-1], self._starts[2:], strict=True)]


def time_steps(contestants: list[Contestant], rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each contestant: the milliseconds of a step, as median, minimum and maximum over the rounds.

    Every round times each contestant once; an extra first round warms up (compilation, caches). The time of a round is
    the median of its steps. say: called with a line of text as each round begins.
    """

    def announce(number: int, turn: int) -> None:
        if turn == 0:
            say(name_of_round(number, rounds))

    seconds = take_turns([contestant.round for contestant in contestants], rounds, announce)
    rows = []
    for contestant, its_rounds in zip(contestants, seconds, strict=True):
        step_ms = over_rounds([statistics.median(steps) for steps in its_rounds]).scaled(1e3)
        rows.append(
            {
                "name": contestant.name,
                "precision": contestant.precision,
                "compile": contestant.compile,
                "step_ms": step_ms.median,
                "step_ms_min": step_ms.min,
                "step_ms_max": step_ms.max,
            }
        )
    return rows


def with_rates(rows: list[dict[str, Any]], setting: Setting) -> list[dict[str, Any]]:
    """The rows with tokens/s, MFU and, if transformers was timed, the speed divided by that of eager transformers.

    MFU (model FLOPs utilisation: Chowdhery et al. 2022) uses our count of FLOPs for every contestant.
    """
    tokens = setting.batch["tokens"].numel()
    peaks = {precision: _peak_flops(setting, precision) for precision in {row["precision"] for row in rows}}
    peers = {row["precision"]: row["step_ms"] for row in rows if row["name"] == "transformers"}

    rated = []
    for row in rows:
        tokens_per_s = tokens / row["step_ms"] * 1e3
        mfu = tokens_per_s * setting.training_flops_per_token / peaks[row["precision"]]
        row = row | {"tokens_per_s": tokens_per_s, "mfu": mfu}
        if row["precision"] in peers:
            row["times_transformers"] = peers[row["precision"]] / row["step_ms"]
        rated.append(row)
    return rated


def _peak_flops(setting: Setting, precision: str) -> float:
    return peak_flops(setting.device, training_dtype(precision))
