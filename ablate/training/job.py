"""One run, from a configuration to a run folder: `train` calls the steps below it in their order."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from ablate import check, hardware
from ablate.accounting import Budget, budget
from ablate.compose import plain
from ablate.data import Opened
from ablate.errors import AblateError, first_line
from ablate.files import held, write_json
from ablate.model.decoder import Decoder
from ablate.overrides import PLACE, without
from ablate.run import create, read_summary, write_config
from ablate.training import ranks, terminal
from ablate.training.callbacks import (
    Diverged,
    FinalValidation,
    GracefulStop,
    Interrupted,
    RouterStatistics,
    StopOnDivergence,
    Throughput,
)
from ablate.training.checkpoint import AtomicCheckpointIO, last_good_checkpoint, step_of
from ablate.training.curves import Curves
from ablate.training.datamodule import RowData
from ablate.training.finish import Trained, closing, finish
from ablate.training.module import LanguageModel
from ablate.training.parts import Parts, assemble
from ablate.training.provenance import provenance
from ablate.training.quiet import quiet
from ablate.training.resume import resumed
from ablate.training.sharding import ShardedStrategy


def train(config: DictConfig, overrides: list[str], job: int | None = None, sweep_dir: str | None = None) -> float:
    """Trains the run that `config` describes; returns the final validation loss.

    Every rank takes the same steps. Only rank 0 writes to the run folder, prints, and decides the exit status.

    config: see `conf/train.yaml`. job, sweep_dir: in a multirun, Hydra's number of this job and the sweep's folder.

    Raises:
        AblateError: a mistake that the user can mend, before any training; a run that diverged.
        SystemExit: the run was stopped by a signal, after a checkpoint.
    """
    settled = settle(config, overrides)
    config, parts = settled.config, assemble(settled.config)
    here = ranks.find(config.trainer, config.run_dir, parts.accelerator)
    with run_folder(settled, here, job, sweep_dir) as path, ranks.environment(here, path, overrides):
        with removed_on_error(path) if here.leads and not settled.resuming else nullcontext():
            trainer = make_trainer(settled, parts, here, path)
            corpus = open_corpus(config, parts, here)
            checkpoint = last_good_checkpoint(path / "checkpoints") if settled.resuming else None
            cost = budget(parts.decoder, corpus.train.pieces(parts.data.max_rows))
            throughput = add_throughput(trainer, parts, here, cost)
            if here.leads:
                steps = config.trainer.max_steps
                spent_s = take_up(path, trainer, corpus, checkpoint, steps) if settled.resuming else 0.0
                summary = write_plan(settled, parts, path, corpus, cost)
        wandb = "wandb" in config.logger
        with closing(summary, spent_s, trainer, path, wandb) if here.leads else left_to_rank_0():
            log_settings(trainer, config, cost)
            module = LanguageModel(parts.decoder, parts.optimizer, parts.schedule, corpus.val, config.compile)
            rows = RowData(corpus, parts.data.batch_size, config.seed, parts.data.workers, parts.data.max_rows)
            decoder = fit(trainer, module, rows, checkpoint, config.seed + here.rank)
            if here.leads:
                finish(summary, Trained(decoder, corpus, trainer, throughput), path, parts, config.seed)
        if here.leads:
            terminal.show_results(summary, path)
        return trainer.callback_metrics["val/loss"].item()


@dataclass(frozen=True)
class Settled:
    """The configuration of a run.

    overrides: the run's, except those for the place of its folder.
    resuming: whether it continues the run in `config.run_dir`.
    """

    config: DictConfig
    overrides: list[str]
    resuming: bool


def settle(config: DictConfig, overrides: list[str]) -> Settled:
    """The given configuration, or that of the run to resume."""
    if config.study is not None and "arm" not in config.study:
        raise AblateError("study=none: the experiment is a study; leave study=none out")
    if config.study is not None and config.study.arm is None and config.resume is None:
        raise AblateError(f"{config.study.name} is a study, which has several runs: start it with -m, one at a time")
    for key in ("run_dir", "resume", "paths.runs", "paths.data"):
        check.text(key, OmegaConf.select(config, key), null=key in PLACE)
    resuming = config.resume is not None
    if resuming:
        config, overrides = resumed(config.resume, overrides)
    return Settled(config, without(overrides, PLACE), resuming)


@contextmanager
def run_folder(settled: Settled, here: ranks.Ranks, job: int | None, sweep_dir: str | None) -> Iterator[Path]:
    """Makes the run folder, or takes that of the run to resume; locks it for this process and sets `config.run_dir`.

    Ranks other than 0 use rank 0's folder, and print nothing in the block.
    """
    config = settled.config
    if not here.leads:
        config.run_dir = here.folder
        with ranks.following(here):
            yield Path(here.folder)
        return
    if not settled.resuming:
        config.run_dir = str(create(config, settled.overrides, job, sweep_dir))
    path = Path(config.run_dir)
    with held(path):
        yield path


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Removes the folder if the block fails, so that a mistake found before training leaves nothing behind."""
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def make_trainer(settled: Settled, parts: Parts, here: ranks.Ranks, path: Path) -> Trainer:
    """Lightning's trainer, with the callbacks and loggers of the configuration and those that every run has."""
    config = settled.config
    if "wandb" in config.logger:
        from ablate.training.wandb_logger import identity

        config.logger.wandb = {**config.logger.wandb, **identity(config, settled.overrides)}
    callbacks = [instantiate(node) for node in config.callbacks.values() if node]
    callbacks += [RouterStatistics(), FinalValidation(), StopOnDivergence(), GracefulStop(path / "checkpoints")]
    quiet()
    try:
        return instantiate(
            config.trainer,
            accelerator=parts.accelerator,
            precision=parts.precision,
            callbacks=callbacks,
            strategy=ranks.strategy(here, config.trainer.strategy),
            logger=[instantiate(node) for node in config.logger.values() if node and here.leads],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(path),
        )
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, TypeError | ValueError | MisconfigurationException):
            raise AblateError(f"trainer: {first_line(cause)}") from error
        raise


def open_corpus(config: DictConfig, parts: Parts, here: ranks.Ranks) -> Opened:
    """Prepares the corpus, or opens it from the cache; raises AblateError if it has no batch for every rank."""
    corpus = parts.corpus.open(parts.data, config.seed, Path(config.paths.data))
    corpus.require(parts.data.batch_size * here.count)
    return corpus


def add_throughput(trainer: Trainer, parts: Parts, here: ranks.Ranks, cost: Budget) -> Throughput:
    """Adds the callback that times training.

    It is added after the others, because the cost of a token is known only when the corpus is open, and an invalid
    trainer should be refused before that.
    """
    dtype = hardware.training_dtype(parts.precision)
    peak = hardware.peak_flops(parts.device, dtype)
    throughput = Throughput(cost.training_flops_per_token, peak, here.count)
    trainer.callbacks.insert(0, throughput)
    return throughput


def take_up(path: Path, trainer: Trainer, corpus: Opened, checkpoint: Path | None, max_steps: int) -> float:
    """Loads the curves of the run to resume, up to the checkpoint; returns the seconds that the run took so far.

    Raises:
        AblateError: the run was trained on another corpus, or is finished.
    """
    earlier, step = read_summary(path), step_of(checkpoint)
    if earlier.get("corpus", {}).get("fingerprint") != corpus.fingerprint:
        raise AblateError(f"resume: the corpus is not the one that {path} was trained on; start a new run")
    if step > max_steps or (step == max_steps and earlier.get("status") == "finished"):
        raise AblateError(
            f"resume: {path} is finished, at step {step} of {max_steps}; to continue, raise trainer.max_steps"
        )
    for logger in trainer.loggers:
        if isinstance(logger, Curves):
            logger.resume_from(step)
    return earlier.get("wall_s", 0.0)


def write_plan(settled: Settled, parts: Parts, path: Path, corpus: Opened, cost: Budget) -> dict[str, Any]:
    """Writes and prints the plan of the run; returns its summary, which later steps complete."""
    config = settled.config
    summary = {
        "status": "running",
        "seed": config.seed,
        "overrides": settled.overrides,
        "budget": cost.to_dict(),
        "training_flops_per_token": cost.training_flops_per_token,
        "corpus": {"name": config.data.name, "fingerprint": corpus.fingerprint, **corpus.report()},
        "precision": parts.precision,
        **provenance(),
    }
    write_config(path, config)
    write_json(path / "summary.json", summary)
    terminal.show_plan(parts, cost, corpus, config)
    return summary


@contextmanager
def left_to_rank_0() -> Iterator[None]:
    """For ranks other than 0: exits with status 0 when training stops, because rank 0 reports why."""
    try:
        yield
    except (Interrupted, Diverged):
        raise SystemExit(0) from None


def log_settings(trainer: Trainer, config: DictConfig, cost: Budget) -> None:
    """Gives the run's configuration and budget to the loggers, such as wandb."""
    for logger in trainer.loggers:
        logger.log_hyperparams({**plain(config), "budget": cost.to_dict()})


def fit(trainer: Trainer, module: LanguageModel, rows: RowData, checkpoint: Path | None, seed: int) -> Decoder | None:
    """Trains to the end, from the checkpoint if there is one; returns the trained decoder.

    Returns None on ranks that have only a share of a sharded decoder; rank 0 then returns the whole decoder.

    Raises:
        Interrupted, Diverged: on all ranks alike.
    """
    # For components that draw random numbers in training. Resuming restores the generators from the checkpoint.
    seed_everything(seed % 2**32, verbose=False)
    with ranks.watched(trainer, agreed=(Interrupted, Diverged)):
        trainer.fit(module, rows, ckpt_path=checkpoint, weights_only=True)
        if "val/loss" not in trainer.callback_metrics:  # resumed at the last step
            trainer.validate(module, rows, verbose=False)
        if not math.isfinite(trainer.callback_metrics["val/loss"]):
            raise Diverged("val/loss is not finite: lower optimizer.lr")
        if isinstance(trainer.strategy, ShardedStrategy):
            return trainer.strategy.whole_decoder(module.decoder)
    return module.decoder
