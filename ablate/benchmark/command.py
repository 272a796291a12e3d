"""From a configuration to a benchmark's table and JSON."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.conf import HydraConf
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ablate.accounting import budget
from ablate.benchmark.generation.arm import Arm, names_model
from ablate.benchmark.generation.cache_memory import cache_memory
from ablate.benchmark.generation.limits import Limits, Work, measure_limits, weight_bytes
from ablate.benchmark.generation.measure import Row, add_limits, add_ratios, measure, ours, random_prompts
from ablate.benchmark.generation.options import Options
from ablate.benchmark.peers import check_peer, llama_with_weights_of, peer_ways, transformers_llama
from ablate.benchmark.rounds import progress
from ablate.benchmark.training.measure import Setting, add_rates, compare, packed_batch
from ablate.benchmark.training.measure import ours as our_training
from ablate.cli import console
from ablate.compose import plain
from ablate.errors import AblateError
from ablate.files import write_json
from ablate.generation.prompts import check_generation_memory
from ablate.hardware import resolve_accelerator
from ablate.model.config import DecoderConfig, load_plugins
from ablate.model.decoder import Decoder
from ablate.model.kernels.kernel import Place as KernelPlace
from ablate.run import load
from ablate.training.provenance import provenance
from ablate.training.quiet import quiet


def run_generation(config: DictConfig, hydra: HydraConf, words: list[str]) -> None:
    """Measures what `conf/task/generation.yaml` and the overrides describe; prints a table, writes JSON and a page.

    hydra: how the configuration was composed; words: of the command line.

    Raises:
        AblateError: what the user can mend, before anything is measured.
    """
    options, arm = Options.of(config), Arm.of(config, hydra, words)
    load_plugins(config.plugins)
    model = _model(config, options, list(hydra.overrides.task))
    model.kernels(KernelPlace(options.device.type, options.dtype, gradient=False))  # one named may not be able
    for place in options.places:
        check_generation_memory(model, place.batch, place.prompt_tokens + place.new_tokens, use_cache=True)
    arm.make_folder()
    terminal = console()
    terminal.print(f"{arm.label}: {_where(options)}", markup=False, highlight=False)
    ways = ours(model, options.compile, options.uncached)
    if options.peers:
        peer = _placed(llama_with_weights_of(model), options)
        ways += peer_ways(peer, options.compile)
    model = _placed(model, options)
    before = measure_limits(options.device, options.dtype)

    def prompts(place):
        return random_prompts(place, model.config.vocab_size, options.seed)

    turns = len(options.places) * len(ways) * (options.rounds + 1)
    with progress(turns, terminal) as say:
        rows = measure(ways, options.places, options.rounds, prompts, options.device, say)
    limits = before.or_better(measure_limits(options.device, options.dtype))
    add_limits(rows, Work(model), limits)
    add_ratios(rows)
    _show(terminal, rows, model, limits)
    write_json(arm.folder / "generation.json", _generation(arm, options, model, limits, rows))
    from ablate.benchmark.generation.page import write_page

    terminal.print(
        f"written to {arm.folder / 'generation.json'} and {write_page(arm.page)}", markup=False, soft_wrap=True
    )


def _model(config: DictConfig, options: Options, overrides: list[str]) -> Decoder:
    """The run's, or the preset's with random weights; in fp32 on the CPU."""
    if config.run is None:
        model_config = DecoderConfig.from_dict(plain(config.model))
        options.check_context(model_config.context, "raise model.context, or lower them")
        if options.peers:
            check_peer(model_config)
        return Decoder(model_config, options.seed).eval()
    override = names_model(overrides)
    if override is not None:
        raise AblateError(f"{override}: run={config.run} has a model of its own; leave one of them out")
    model = load(config.run).model
    options.check_context(model.config.context, "which the run was trained with; lower them")
    if options.peers:
        check_peer(model.config)
    return model


def _placed(model: torch.nn.Module, options: Options) -> torch.nn.Module:
    """On the device, its parameters in the precision; buffers, such as the angles of rotations, stay as they are."""
    model.to(options.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(options.dtype)
    return model


def _where(options: Options) -> str:
    precision = str(options.dtype).removeprefix("torch.")
    place = torch.cuda.get_device_name() if options.device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{precision} on {place}, {options.rounds} rounds" + (", compiled" if options.compile else "")


def _generation(arm: Arm, options: Options, model: Decoder, limits: Limits, rows: list[Row]) -> dict[str, Any]:
    return {
        "task": "generation",
        "label": arm.label,
        "model": model.config.to_dict(),
        "budget": budget(model).to_dict(),
        "weight_bytes": weight_bytes(model, 1),
        "device": options.device.type,
        "gpu": torch.cuda.get_device_name() if options.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "precision": str(options.dtype).removeprefix("torch."),
        "compile": options.compile,
        "rounds": options.rounds,
        "limits": dataclasses.asdict(limits),
        "points": rows,
        "cache_memory": cache_memory(model),
        **provenance(),
    }


def _show(terminal: Console, rows: list[Row], model: Decoder, limits: Limits) -> None:
    terminal.print(_table(rows))
    terminal.print(
        f"limit: {limits.bandwidth_bytes_per_s / 1e9:.3g} GB/s of memory, {limits.flops_per_s / 1e9:.4g} GFLOP/s of "
        f"matrix products, as measured; a token reads {weight_bytes(model, 1) / 1e6:.3g} MB of weights, and leaves "
        f"{budget(model).kv_bytes_per_token} bytes in the cache",
        highlight=False,
        soft_wrap=True,
    )


def _table(rows: list[Row]) -> Table:
    columns: dict[str, Callable[[Row], object]] = {
        "": lambda row: row["way"],
        "batch": lambda row: row["batch"],
        "prompt": lambda row: row["prompt_tokens"],
        "new": lambda row: row["new_tokens"],
        "first\nms": lambda row: _milliseconds(row["first_token_s"], "median"),
        "ms a\ntoken": lambda row: _milliseconds(row["token_s"], "median"),
        "min": lambda row: _milliseconds(row["token_s"], "min"),
        "max": lambda row: _milliseconds(row["token_s"], "max"),
        "tokens\na s": lambda row: f"{row['tokens_per_s']['median']:.0f}",
        "x no\ncache": lambda row: _shown(row["speedup"], ".2f"),
        "x\npeer": lambda row: _shown(row["times_peer"], ".2f"),
        "of\nlimit": lambda row: _shown(row["fraction_of_limit"], ".0%"),
        "cache\nMB": lambda row: _shown(row["cache_bytes"], ".2f", 1e6),
        "peak\nMB": lambda row: _shown(row["peak_memory_bytes"], ".0f", 1e6),
    }
    cells = {heading: [str(cell(row)) for row in rows] for heading, cell in columns.items()}
    cells = {heading: column for heading, column in cells.items() if any(column)}
    table = Table(box=SIMPLE, padding=0, show_edge=False)
    for heading in cells:
        table.add_column(heading, overflow="fold", justify="right" if heading else "left")
    for row, *shown in zip(rows, *cells.values(), strict=True):
        table.add_row(*shown, end_section=row["way"] == rows[-1]["way"])
    return table


def _milliseconds(figure: dict[str, float] | None, which: str) -> str:
    return f"{1e3 * figure[which]:.3g}" if figure else ""


def _shown(value: float | None, form: str, unit: float = 1) -> str:
    return f"{value / unit:{form}}" if value else ""


def run_training(config: DictConfig, out: Path) -> None:
    """Measures what `conf/task/training.yaml` and the overrides describe; prints a table, writes `training.json`."""
    quiet()
    load_plugins(config.plugins)
    model = DecoderConfig.from_dict(plain(config.model))
    if config.peers:
        check_peer(model)
    setting = Setting(
        model,
        instantiate(config.optimizer),
        packed_batch(model, config.batch_size, config.documents_per_row, config.seed),
        resolve_accelerator(config.accelerator, "accelerator"),
        config.steps,
        config.seed,
    )
    contestants = [our_training(setting, p, c) for p in config.precisions for c in config.compile]
    if config.peers:
        contestants += [transformers_llama(setting, p, masked) for p in config.precisions for masked in (False, True)]
    terminal = console()
    rows = compare(contestants, config.rounds, terminal.print)
    add_rates(rows, setting)
    terminal.print(_training_table(rows))
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


def _training_table(rows: list[dict[str, Any]]) -> Table:
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
