"""Training speed: forward, backward and optimiser step, with Lightning around ours.

Contestants take turns, round by round, in one process, so that a slow spell of the machine falls
on all of them; the figures are medians over rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from ablate.accounting import budget
from ablate.benchmark.rounds import name_of_round, take_turns
from ablate.data.rows import pieces_of
from ablate.hardware import peak_flops
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder
from ablate.training.callbacks import StopOnDivergence, Throughput
from ablate.training.curves import Curves
from ablate.training.module import Batch, LanguageModel

Optimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What all contestants of one benchmark share."""

    config: DecoderConfig
    optimizer: Optimizer
    batch: Batch
    accelerator: str
    steps: int
    seed: int

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")


@dataclass
class Contestant:
    """One way to train. `round` runs some steps and returns the seconds that each took."""

    name: str
    precision: str
    compile: bool
    round: Callable[[], list[float]]


def packed_batch(config: DecoderConfig, batch_size: int, documents_per_row: int, seed: int) -> Batch:
    """Random tokens in rows `[B, context]` of a few documents with random bounds, as packing gives them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, config.context)
    tokens = torch.randint(config.vocab_size, (batch_size, config.context + 1), generator=generator)
    cuts = torch.randint(1, config.context, (batch_size, documents_per_row - 1), generator=generator)
    starts = torch.zeros(shape, dtype=torch.int64).scatter_(1, cuts, 1)
    place = torch.arange(config.context).expand(shape)
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "targets": tokens[:, 1:].contiguous(),
        "documents": starts.cumsum(1).int(),
        "max_documents": documents_per_row,
        "positions": place - (place * starts).cummax(1).values,
    }


def ours(setting: Setting, precision: str, compile: bool) -> Contestant:
    """Our decoder, LightningModule and Trainer, with the callbacks and the logger of a real run."""
    decoder = Decoder(setting.config, setting.seed)
    module = LanguageModel(decoder, setting.optimizer, lambda step, max_steps: 1.0, None, compile)
    flops = _flops(setting)

    def run() -> list[float]:
        stopwatch = _Stopwatch()
        with tempfile.TemporaryDirectory() as place:
            trainer = Trainer(
                accelerator=setting.accelerator,
                devices=1,
                precision=precision,
                max_steps=setting.steps + 2,
                gradient_clip_val=1.0,
                callbacks=[Throughput(flops, 1.0), StopOnDivergence(), stopwatch],
                logger=[Curves(str(Path(place) / "metrics.csv"))],
                log_every_n_steps=1,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                default_root_dir=place,
            )
            batches = DataLoader(_Endless(setting.batch), batch_size=None)
            trainer.fit(module, batches, val_dataloaders=batches)
        return stopwatch.seconds()

    return Contestant("ablate", precision, compile, run)


class _Endless(torch.utils.data.IterableDataset):
    def __init__(self, batch: Batch):
        self._batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch


class _Stopwatch(Callback):
    """Seconds from one batch's start to the next's: all that a step costs. The first one warms up."""

    def __init__(self) -> None:
        self._starts: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self._starts.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self._starts[1:-1], self._starts[2:], strict=True)]


def compare(contestants: list[Contestant], rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Runs all in turn: one untimed round (compilation, caches), then `rounds` timed ones."""

    def announce(number: int, turn: int) -> None:
        if turn == 0:
            say(name_of_round(number, rounds))

    measured = take_turns([c.round for c in contestants], rounds, announce)
    seconds = [[statistics.median(steps) for steps in of_one] for of_one in measured]
    return [
        {
            "name": c.name,
            "precision": c.precision,
            "compile": c.compile,
            "step_ms": 1e3 * statistics.median(times),
            "step_ms_min": 1e3 * min(times),
            "step_ms_max": 1e3 * max(times),
        }
        for c, times in zip(contestants, seconds, strict=True)
    ]


def add_rates(rows: list[dict[str, Any]], setting: Setting) -> None:
    """Adds tokens/s, MFU by our own count of FLOPs, and the ratio to the eager peer of the same precision."""
    tokens = setting.batch["tokens"].numel()
    flops = _flops(setting)
    peaks = {p: peak_flops(setting.device, _dtype(p)) for p in {row["precision"] for row in rows}}
    peer = {row["precision"]: row["step_ms"] for row in rows if row["name"] == "transformers"}
    for row in rows:
        row["tokens_per_s"] = tokens / row["step_ms"] * 1e3
        row["mfu"] = row["tokens_per_s"] * flops / peaks[row["precision"]]
        if row["precision"] in peer:
            row["times_transformers"] = peer[row["precision"]] / row["step_ms"]


def _flops(setting: Setting) -> float:
    """Training FLOPs per token of the batch."""
    pieces = pieces_of(setting.batch["documents"].numpy())
    return budget(Decoder(setting.config), pieces).training_flops_per_token


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if "bf16" in precision else torch.float32
