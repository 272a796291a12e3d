"""After training: writes the model's files, final metrics and a sample, and records how the run ended."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from ablate import hardware
from ablate.data import Opened
from ablate.errors import AblateError
from ablate.files import write_json
from ablate.generation import generate, measure_generation
from ablate.model.decoder import Decoder
from ablate.run import save_model
from ablate.training.by_position import loss_by_position
from ablate.training.callbacks import Diverged, Interrupted, Throughput, delay_signals
from ablate.training.curves import Curves
from ablate.training.parts import Parts, Sample


@dataclass(frozen=True)
class Trained:
    """What training leaves in memory. decoder: with whole tensors, also after FSDP."""

    decoder: Decoder
    corpus: Opened
    trainer: Trainer
    throughput: Throughput


def finish(summary: dict[str, Any], trained: Trained, path: Path, parts: Parts, seed: int) -> None:
    """Writes the model's files; adds metrics, speed, memory, loss by position and a sample to the summary."""
    decoder, corpus, throughput = trained.decoder, trained.corpus, trained.throughput
    save_model(path / "model", decoder, corpus.tokenizer)
    summary |= {
        "metrics": _last_metrics(trained.trainer),
        "speed": {"train_tokens_per_s": throughput.tokens_per_s, "train_mfu": throughput.mfu},
        "memory": hardware.peak_memory(parts.device),
    }
    decoder.eval().to(parts.device)
    with trained.trainer.precision_plugin.forward_context():
        by_position = loss_by_position(decoder, corpus.val)
    if by_position is not None:
        summary["by_position"] = by_position
    if parts.sample is not None:
        _write_sample(summary, parts.sample, decoder, corpus, seed)


def _last_metrics(trainer: Trainer) -> dict[str, float]:
    """The last value of each metric, even if it was logged before the run was resumed."""
    last = {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key}
    for logger in trainer.loggers:
        if isinstance(logger, Curves):
            last |= logger.last()
    return last


def _write_sample(summary: dict[str, Any], sample: Sample, decoder: Decoder, corpus: Opened, seed: int) -> None:
    """Adds a sample to the summary, and the speed at which the decoder generates it."""
    tokenizer = corpus.tokenizer
    prompt_ids = [tokenizer.eot, *tokenizer.encode(sample.prompt)]
    context = decoder.config.context
    new_tokens = min(sample.max_new_tokens, context - len(prompt_ids))
    if new_tokens < 1:
        print(f"no sample: sample.prompt leaves no room in a context of {context} tokens")
        return
    text = generate(decoder, tokenizer, sample.prompt, new_tokens, temperature=sample.temperature, seed=seed)
    summary["sample"] = {"prompt": sample.prompt, "text": text}
    summary["speed"]["generation"] = measure_generation(decoder, prompt_ids, new_tokens)


@contextmanager
def closing(summary: dict[str, Any], spent_s: float, trainer: Trainer, path: Path, wandb: bool) -> Iterator[None]:
    """Writes how the block ended, its steps and its time into summary.json, whatever ended it.

    spent_s: seconds that the run took before it was resumed. wandb: whether the run is also logged to wandb.

    Raises:
        AblateError: the run diverged.
        SystemExit: a signal stopped it.
    """
    start, status = time.perf_counter(), "failed"
    try:
        yield
        status = "finished"
    except Interrupted as stop:
        status = "interrupted"
        print(f"{stop}; to continue: python train.py resume={path}", flush=True)
        raise SystemExit(128 + stop.signum) from stop
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    except Diverged as error:
        status = "diverged"
        raise AblateError(f"the run diverged: {error}") from error
    finally:
        with delay_signals():
            wall_s = spent_s + time.perf_counter() - start
            summary |= {"status": status, "steps": trainer.global_step, "wall_s": wall_s}
            write_json(path / "summary.json", summary)
            if wandb:
                from ablate.training.wandb_logger import finish as finish_wandb

                finish_wandb(summary, 0 if status == "finished" else 1)
