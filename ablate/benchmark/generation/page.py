"""The page of the benchmark of generation."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ablate.benchmark.generation.measure import Point
from ablate.benchmark.generation.plots import all_plots
from ablate.benchmark.generation.results import Result, read_results
from ablate.benchmark.generation.words import figure, sentences
from ablate.page.provenance import facts, revision
from ablate.page.table import Cell, Column, filled
from ablate.page.write import write_page as write
from ablate.words import counted, number, size

COLUMNS: list[Column[Point]] = [
    Column("batch", lambda point: Cell(f"{point.batch:,}")),
    Column("prompt, tokens", lambda point: Cell(f"{point.prompt_tokens:,}")),
    Column("new, tokens", lambda point: Cell(f"{point.new_tokens:,}")),
    Column("first token, ms", figure("first_token_s", 1e3)),
    Column("step, ms", figure("token_s", 1e3)),
    Column("tokens/s", figure("tokens_per_s")),
    Column("× uncached", figure("speedup")),
    Column("× transformers", figure("times_peer")),
    Column("limit of step, ms", figure("limit_token_s", 1e3)),
    Column("of limit, %", figure("fraction_of_limit", 100)),
    Column("cache, MB", figure("cache_bytes", 1e-6)),
    Column("peak memory, MB", figure("peak_memory_bytes", 1e-6)),
]


def write_page(folder: Path) -> Path:
    """Writes `index.html` with every result in `folder` and in the folders directly below it; returns its path.

    Raises:
        AblateError: there is no result.
    """
    results = read_results(folder)
    titles, rows = filled(COLUMNS, [point for result in results for point in result.points])
    row = iter(rows)
    values = {
        "title": results[0].label if len(results) == 1 else f"{len(results)} models compared",
        "conditions": _conditions(results),
        "sentences": sentences(results),
        "titles": titles,
        "tables": [(result.label, [(point.way, next(row)) for point in result.points]) for result in results],
        "provenance": [(r.label, list(_provenance(r)), json.dumps(r.model, indent=2)) for r in results],
    }
    path = folder / "index.html"
    write(path, Path(__file__).with_name("page.html"), all_plots(results), values)
    return path


def _conditions(results: list[Result]) -> list[str]:
    """Machine, precision and rounds: every value that a result has, each once."""
    described = [_condition(result) for result in results]
    return [" / ".join(dict.fromkeys(values)) for values in zip(*described, strict=True) if any(values)]


def _condition(result: Result) -> tuple[str, ...]:
    return (
        result.gpu or f"CPU, {counted(result.threads, 'thread')}",
        str(result.machine.get("platform", "")),
        result.precision,
        "compiled" if result.compile else "eager",
        "1 round" if result.rounds == 1 else f"medians of {result.rounds} rounds",
    )


def _provenance(result: Result) -> Iterable[tuple[str, str]]:
    yield "command", result.command
    yield "machine", facts(result.machine)
    yield "versions", facts(result.versions)
    if git := revision(result.git):
        yield "git", git
    if result.kernels:
        yield "decoding steps", f"attention by {', '.join(result.kernels)}; products by {', '.join(result.products)}"
    yield "measured bandwidth", f"{size(result.limits.bandwidth_bytes_per_s)}/s"
    yield "measured FLOP rate", f"{number(result.limits.flops_per_s / 1e9)} GFLOP/s"
    yield "weights that a token reads", size(result.weight_bytes)
    yield "budget", ", ".join(f"{key} {value:,}" for key, value in asdict(result.budget).items())
