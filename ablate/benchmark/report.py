"""From a configuration to a benchmark's table and JSON."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from ablate.benchmark.peers import transformers_llama
from ablate.benchmark.training import Setting, add_rates, compare, ours, packed_batch
from ablate.compose import plain
from ablate.errors import AblateError
from ablate.model.config import DecoderConfig, load_plugins
from ablate.run import write_json
from ablate.training.folder import provenance
from ablate.training.hardware import resolve_accelerator
from ablate.training.lightning import quiet
from ablate.training.terminal import console


def run_training(config: DictConfig, out: Path) -> None:
    """Measures what `conf/benchmark.yaml` and the overrides describe; prints a table, writes `training.json`."""
    if config.task != "training":
        raise AblateError(f"task={config.task}: choose one of training")
    quiet()
    load_plugins(config.plugins)
    model = DecoderConfig.from_dict(plain(config.model))
    setting = Setting(
        model,
        instantiate(config.optimizer),
        packed_batch(model, config.batch_size, config.documents_per_row, config.seed),
        resolve_accelerator(config.accelerator),
        config.steps,
        config.seed,
    )
    contestants = [ours(setting, p, c) for p in config.precisions for c in config.compile]
    if config.peers:
        contestants += [transformers_llama(setting, p, masked) for p in config.precisions for masked in (False, True)]
    terminal = console()
    rows = compare(contestants, config.rounds, terminal.print)
    add_rates(rows, setting)
    terminal.print(_table(rows))
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "training.json",
        {
            "task": "training",
            "model": model.to_dict(),
            "batch": [config.batch_size, model.context],
            "rounds": config.rounds,
            "steps_per_round": config.steps,
            "results": rows,
            "gpu": torch.cuda.get_device_name() if setting.accelerator == "gpu" else None,
            **provenance(),
        },
    )
    terminal.print(f"written to {out / 'training.json'}")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("", "precision", "compiled", "ms a step", "min - max", "tokens/s", "MFU", "x transformers")
    for row in sorted(rows, key=lambda row: (row["precision"], row["step_ms"])):
        table.add_row(
            row["name"],
            row["precision"],
            "yes" if row["compile"] else "no",
            f"{row['step_ms']:.0f}",
            f"{row['step_ms_min']:.0f} - {row['step_ms_max']:.0f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['mfu']:.1%}",
            f"{row['times_transformers']:.2f}" if "times_transformers" in row else "",
        )
    return table
