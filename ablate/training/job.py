"""One run, from a configuration to a run folder."""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig

from ablate import hardware
from ablate.accounting import budget
from ablate.compose import plain
from ablate.data import Opened
from ablate.errors import AblateError
from ablate.files import held, write_json
from ablate.generation import generate, measure_generation
from ablate.run import create, read_summary, save_model, write_config
from ablate.training import ranks, terminal
from ablate.training.by_position import loss_by_position
from ablate.training.callbacks import (
    Diverged,
    FinalValidation,
    GracefulStop,
    Interrupted,
    RouterStatistics,
    StopOnDivergence,
    Throughput,
    signals_later,
)
from ablate.training.checkpoint import AtomicCheckpointIO, last_good_checkpoint
from ablate.training.curves import Curves
from ablate.training.datamodule import RowData
from ablate.training.module import LanguageModel
from ablate.training.parts import Parts, assemble
from ablate.training.provenance import provenance
from ablate.training.quiet import quiet
from ablate.training.resume import resumed
from ablate.training.sharding import ShardedStrategy


def train(config: DictConfig, overrides: list[str], job: int | None = None, sweep_dir: str | None = None) -> float:
    """Runs what `conf/train.yaml` and the overrides describe; returns the final validation loss.

    job, sweep_dir: Hydra's number of this job and folder of the sweep, in a multirun.

    Raises:
        AblateError: what the user can mend, before any training; a run that diverged.
        SystemExit: the run was stopped by a signal, after a checkpoint.
    """
    if config.study is not None and config.study.arm is None and config.resume is None:
        raise AblateError(f"{config.study.name} is a study, of several runs: start it with -m, one at a time")
    resuming, given = config.resume is not None, overrides
    if resuming:
        config, overrides = resumed(config.resume, overrides)
    parts = assemble(config)
    here = ranks.find(config, parts.accelerator)
    if not here.leads:
        return _follow(config, overrides, parts, here, resuming)
    if not resuming:
        config.run_dir = str(create(config, overrides, job, sweep_dir))
    path = Path(config.run_dir)
    with held(path), ranks.together(here, path, given):
        try:
            run = _Job(config, overrides, parts, here)
            run.open(resuming)
        except BaseException:
            if not resuming:
                shutil.rmtree(config.run_dir, ignore_errors=True)  # a mistake leaves nothing behind
            raise
        return run.fit()


def _follow(config: DictConfig, overrides: list[str], parts: Parts, here: ranks.Ranks, resuming: bool) -> float:
    """As `train`, for a rank other than 0: it trains along, and leaves folder, words and exit status to rank 0."""
    config.run_dir = here.folder
    with ranks.following(here), ranks.together(here, Path(here.folder), overrides):
        run = _Job(config, overrides, parts, here)
        run.bring(resuming)
        try:
            run.train()
        except (Interrupted, Diverged):
            raise SystemExit(0) from None
        return run.trainer.callback_metrics["val/loss"].item()


class _Job:
    """A run whose configuration holds; `open` brings the data, `fit` trains and writes the results."""

    def __init__(self, config: DictConfig, overrides: list[str], parts: Parts, here: ranks.Ranks):
        self.config, self.parts, self.ranks = config, parts, here
        self.decoder = parts.decoder
        self.path = Path(config.run_dir)
        self.overrides = [o for o in overrides if not o.startswith(("run_dir=", "resume="))]
        self.device = torch.device("cuda" if parts.accelerator == "gpu" else "cpu")
        dtype = torch.bfloat16 if "bf16" in parts.precision else torch.float32
        peak = hardware.peak_flops(self.device, dtype)
        self.throughput = Throughput(parts.budget.training_flops_per_token, peak, here.count)
        self.trainer = self._trainer()

    def _trainer(self) -> Trainer:
        config = self.config
        if "wandb" in config.logger:
            from ablate.training.wandb_logger import identity

            config.logger.wandb = {**config.logger.wandb, **identity(config, self.overrides)}
        callbacks = [instantiate(node) for node in config.callbacks.values() if node]
        callbacks += [self.throughput, RouterStatistics(), FinalValidation(), StopOnDivergence()]
        callbacks += [GracefulStop(self.path / "checkpoints")]
        quiet()
        try:
            return instantiate(
                config.trainer,
                accelerator=self.parts.accelerator,
                precision=self.parts.precision,
                callbacks=callbacks,
                strategy=ranks.strategy(self.ranks, config.trainer.strategy),
                logger=[instantiate(node) for node in config.logger.values() if node and self.ranks.leads],
                plugins=[AtomicCheckpointIO()],
                default_root_dir=str(self.path),
            )
        except Exception as error:
            cause = error.__cause__ or error
            if isinstance(cause, TypeError | ValueError | MisconfigurationException):
                raise AblateError(f"trainer: {str(cause).splitlines()[0]}") from error
            raise

    def bring(self, resuming: bool) -> None:
        """Prepares the corpus, finds the checkpoint."""
        config, data = self.config, self.parts.data
        self.corpus: Opened = self.parts.corpus.open(data, config.seed, Path(config.paths.data))
        self.corpus.require(data.batch_size * self.ranks.count)
        packed = budget(self.parts.decoder, self.corpus.train.pieces(data.max_rows))
        self.throughput.flops_per_token = packed.training_flops_per_token
        self.checkpoint = last_good_checkpoint(self.path / "checkpoints") if resuming else None

    def open(self, resuming: bool) -> None:
        """Brings data and checkpoint, says what is going to run."""
        self.bring(resuming)
        config, earlier = self.config, {}
        if resuming:
            earlier = read_summary(self.path)
            self._check_resumable(earlier)
            self._resume_curves()
        self.earlier_wall_s = earlier.get("wall_s", 0.0)
        self.summary: dict[str, Any] = {
            "status": "running",
            "seed": config.seed,
            "overrides": self.overrides,
            "budget": self.parts.budget.to_dict(),
            "training_flops_per_token": self.throughput.flops_per_token,
            "corpus": {"name": config.data.name, "fingerprint": self.corpus.fingerprint, **self.corpus.report()},
            "precision": self.parts.precision,
            **provenance(),
        }
        write_config(self.path, config)
        write_json(self.path / "summary.json", self.summary)
        terminal.show_plan(self.parts, self.corpus, config)

    def _check_resumable(self, earlier: dict[str, Any]) -> None:
        if earlier.get("corpus", {}).get("fingerprint") != self.corpus.fingerprint:
            raise AblateError(f"resume: the corpus is not the one that {self.path} was trained on; start a new run")
        step, max_steps = self._checkpoint_step(), self.config.trainer.max_steps
        if step > max_steps or (step == max_steps and earlier.get("status") == "finished"):
            raise AblateError(
                f"resume: {self.path} is finished, at step {step} of {max_steps}; to go on, raise trainer.max_steps"
            )

    def _checkpoint_step(self) -> int:
        return 0 if self.checkpoint is None else int(self.checkpoint.stem.removeprefix("step="))

    def _resume_curves(self) -> None:
        for logger in self.trainer.loggers:
            if isinstance(logger, Curves):
                logger.resume_from(self._checkpoint_step())

    def fit(self) -> float:
        """Trains to the end, or to the next signal; the summary says how it ended."""
        self.start, status = time.perf_counter(), "failed"
        try:
            for logger in self.trainer.loggers:
                logger.log_hyperparams({**plain(self.config), "budget": self.parts.budget.to_dict()})
            self.train()
            self._finish()
            status = "finished"
        except Interrupted as stop:
            status = "interrupted"
            print(f"{stop}; to go on: python train.py resume={self.path}", flush=True)
            raise SystemExit(128 + stop.signum) from stop
        except (KeyboardInterrupt, SystemExit):
            status = "interrupted"
            raise
        except Diverged as error:
            status = "diverged"
            raise AblateError(f"the run diverged: {error}") from error
        finally:
            with signals_later():
                self._close(status)
        terminal.show_results(self.summary, self.path)
        return self.summary["metrics"]["val/loss"]

    def train(self) -> None:
        """The part of `fit` that all ranks take.

        Raises:
            Interrupted, Diverged: on all ranks alike.
        """
        config, parts, trainer = self.config, self.parts, self.trainer
        module = LanguageModel(parts.decoder, parts.optimizer, parts.schedule, self.corpus.val, config.compile)
        data = RowData(self.corpus, parts.data.batch_size, config.seed, parts.data.workers, parts.data.max_rows)
        # For parts that draw while training, on each rank differently; resuming restores them.
        seed_everything((config.seed + self.ranks.rank) % 2**32, verbose=False)
        with ranks.ending_together(trainer, (Interrupted, Diverged)):
            trainer.fit(module, data, ckpt_path=self.checkpoint, weights_only=True)
            if "val/loss" not in trainer.callback_metrics:  # resumed at the last step
                trainer.validate(module, data, verbose=False)
            if not math.isfinite(trainer.callback_metrics["val/loss"]):
                raise Diverged("val/loss is not finite: lower optimizer.lr")
            if isinstance(trainer.strategy, ShardedStrategy):
                self.decoder = trainer.strategy.whole_decoder(self.decoder)

    def _finish(self) -> None:
        """Final metrics, the model's files, a sample, and what generating costs."""
        decoder, tokenizer = self.decoder, self.corpus.tokenizer
        save_model(self.path / "model", decoder, tokenizer)
        self.summary |= {
            "metrics": self._metrics(),
            "speed": {"train_tokens_per_s": self.throughput.tokens_per_s, "train_mfu": self.throughput.mfu},
            "memory": hardware.peak_memory(self.device),
        }
        decoder.eval().to(self.device)
        with self.trainer.precision_plugin.forward_context():
            by_position = loss_by_position(decoder, self.corpus.val)
        if by_position is not None:
            self.summary["by_position"] = by_position
        sample, context = self.config.sample, decoder.config.context
        if sample is None:
            return
        prompt_ids = [tokenizer.eot, *tokenizer.encode(sample.prompt)]
        new_tokens = min(sample.max_new_tokens, context - len(prompt_ids))
        if new_tokens < 1:
            print(f"no sample: sample.prompt leaves no room in a context of {context} tokens")
            return
        options = {"temperature": sample.temperature, "seed": self.config.seed}
        text = generate(decoder, tokenizer, sample.prompt, new_tokens, **options)
        self.summary["sample"] = {"prompt": sample.prompt, "text": text}
        self.summary["speed"]["generation"] = measure_generation(decoder, prompt_ids, new_tokens)

    def _metrics(self) -> dict[str, float]:
        """The last value of each metric, also where the last step was taken before resuming."""
        last = {key: float(value) for key, value in self.trainer.callback_metrics.items() if "/" in key}
        for logger in self.trainer.loggers:
            if isinstance(logger, Curves):
                last |= logger.last()
        return last

    def _close(self, status: str) -> None:
        wall_s = self.earlier_wall_s + time.perf_counter() - self.start
        self.summary |= {"status": status, "steps": self.trainer.global_step, "wall_s": wall_s}
        write_json(self.path / "summary.json", self.summary)
        if "wandb" in self.config.logger:
            from ablate.training.wandb_logger import finish

            finish(self.summary, 0 if status == "finished" else 1)
