"""Prints the plan of a run before it, and its results after it."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ablate.accounting import Budget, tokens_per_step
from ablate.cli import console
from ablate.data import Opened
from ablate.hardware import training_products
from ablate.metrics import METRICS
from ablate.model.config import AXES, component, stretches
from ablate.training.parts import Parts
from ablate.words import level, number, percent, short


def show_plan(parts: Parts, cost: Budget, corpus: Opened, config: DictConfig) -> None:
    """Prints the layer table, the budget, the corpus and the run folder."""
    out = console()
    out.print(_layer_table(parts.decoder.config.layers(), parts.kernels))
    ranks = config.trainer.devices * config.trainer.num_nodes
    _lines(
        out,
        {
            "parameters": f"{short(cost.total)} ({short(cost.non_embedding)} without embeddings)",
            "forward": f"{short(cost.flops_per_token)}FLOP a token",
            "cache": f"{cost.kv_bytes_per_token} bytes a token",
            "products": training_products(parts.accelerator, parts.precision),
            "corpus": f"{config.data.name}: {corpus.describe()}",
            "training": f"{config.trainer.max_steps} steps of {tokens_per_step(config)} tokens, {parts.precision} "
            f"on {f'{ranks} x ' * (ranks > 1)}{parts.accelerator}, seed {config.seed}",
            "run folder": str(config.run_dir),
        },
    )


def show_results(summary: dict[str, Any], path: Path) -> None:
    """Prints the sample, the validation metrics, and the speed of training and generating."""
    out = console()
    metrics, speed = summary["metrics"], summary["speed"]
    if "sample" in summary:
        sample = summary["sample"]
        out.print("\n" + sample["prompt"] + sample["text"] + "\n", markup=False, highlight=False, style="dim")
    names = [row.name for row in METRICS.of_validation() if row.name in metrics]
    lines = {name: f"{level(metrics[name])} {METRICS[name].unit}".rstrip() for name in names}
    if "val/accuracy" in lines:
        lines["val/accuracy"] += f", where chance is {level(summary['corpus']['chance'])}"
    rate = speed["train_tokens_per_s"]
    lines |= {
        "training": "too short to time"
        if rate is None
        else f"{number(rate)} tokens/s, {percent(speed['train_mfu'])} MFU",
        "run folder": str(path),
    }
    if "generation" in speed:
        cached, uncached = (speed["generation"][f"{way}_tokens_per_s"] for way in ("cached", "uncached"))
        lines["generating"] = (
            f"{number(cached)} tokens/s with the cache, {number(uncached)} without: {number(cached / uncached)} times"
        )
    _lines(out, lines)


def _layer_table(specs: list[dict[str, dict]], kernels: list[str]) -> Table:
    table = Table("layer", *AXES, "kernel", header_style="bold")
    rows = [(*(component(spec[axis]) for axis in AXES), kernel) for spec, kernel in zip(specs, kernels, strict=True)]
    for row in stretches(rows):
        table.add_row(*row)
    return table


def _lines(out: Console, lines: dict[str, str]) -> None:
    width = max(13, *(len(name) + 1 for name in lines))
    for name, text in lines.items():
        out.print(f"[bold]{name:<{width}}[/bold]", end="")
        out.print(text, markup=False, highlight=False, soft_wrap=True)
