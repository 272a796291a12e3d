"""The page of the generation benchmark."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ablate.benchmark.generation.plots import all_plots
from ablate.benchmark.generation.results import Point, Result, read_results
from ablate.benchmark.generation.words import sentences, spread
from ablate.page.write import write_page as write
from ablate.words import number, size


def write_page(folder: Path) -> Path:
    """Writes `index.html` over every generation.json in `folder` and in the folders in it; returns its path.

    Raises:
        AblateError: there is none.
    """
    results = read_results(folder)
    columns = _columns(results)
    values = {
        "title": _title(results),
        "conditions": _conditions(results),
        "sentences": sentences(results),
        "columns": columns,
        "bodies": [(result, [_cells(point, columns) for point in result.points]) for result in results],
        "provenance": [(r, _provenance(r), json.dumps(r.data["model"], indent=2)) for r in results],
    }
    path = folder / "index.html"
    write(path, Path(__file__).with_name("page.html"), all_plots(results), values)
    return path


def _title(results: list[Result]) -> str:
    return results[0].label if len(results) == 1 else f"{len(results)} models compared"


def _conditions(results: list[Result]) -> list[str]:
    """Machine, precision and rounds: each once, where all share it."""
    described = [_condition(result) for result in results]
    return [" / ".join(dict.fromkeys(values)) for values in zip(*described, strict=True) if any(values)]


def _condition(result: Result) -> tuple[str, ...]:
    data = result.data
    threads = "1 thread" if data["threads"] == 1 else f"{data['threads']} threads"
    return (
        data["gpu"] or f"CPU, {threads}",
        str(data["machine"].get("platform", "")),
        data["precision"],
        "compiled" if data["compile"] else "eager",
        "1 round" if data["rounds"] == 1 else f"medians of {data['rounds']} rounds",
    )


@dataclass(frozen=True)
class _Column:
    """A figure of each point, in the table: its text, and that of its spread over the rounds."""

    title: str
    text: Callable[[Point], str | None]
    spread: Callable[[Point], str | None] = lambda point: None


def _cells(point: Point, columns: list[_Column]) -> list[tuple[str, str]]:
    return [(column.text(point) or "", column.spread(point) or "") for column in columns]


def _columns(results: list[Result]) -> list[_Column]:
    """Those of which some point has a figure."""
    columns = [
        _Column("batch", lambda p: f"{p.place.batch:,}"),
        _Column("prompt, tokens", lambda p: f"{p.place.prompt_tokens:,}"),
        _Column("new, tokens", lambda p: f"{p.place.new_tokens:,}"),
        _measured("first token, ms", "first_token_s", 1e3),
        _measured("step, ms", "token_s", 1e3),
        _measured("tokens/s", "tokens_per_s"),
        _plain("× uncached", "speedup"),
        _plain("× transformers", "times_peer"),
        _plain("limit of step, ms", "limit_token_s", 1e3),
        _plain("of limit, %", "fraction_of_limit", 100),
        _plain("cache, MB", "cache_bytes", 1e-6),
        _plain("peak memory, MB", "peak_memory_bytes", 1e-6),
    ]
    return [column for column in columns if any(column.text(point) for result in results for point in result.points)]


def _measured(title: str, name: str, scale: float = 1.0) -> _Column:
    def value(point: Point):
        return getattr(point, name)

    return _Column(
        title,
        lambda point: value(point) and number(value(point).median * scale),
        lambda point: value(point) and spread(value(point), scale),
    )


def _plain(title: str, name: str, scale: float = 1.0) -> _Column:
    return _Column(title, lambda p: None if getattr(p, name) is None else number(getattr(p, name) * scale))


def _provenance(result: Result) -> Iterable[tuple[str, str]]:
    data = result.data
    git, limits = data["git"], data["limits"]
    yield "command", data["command"]
    yield "machine", ", ".join(f"{key} {value}" for key, value in data["machine"].items() if value is not None)
    yield "versions", ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    if git:
        yield "git", f"{git.get('revision')}{', with changes' if git.get('dirty') else ''}"
    yield "measured bandwidth", f"{number(limits['bandwidth_bytes_per_s'] / 1e9)} GB/s"
    yield "measured FLOP rate", f"{number(limits['flops_per_s'] / 1e9)} GFLOP/s"
    yield "weights that a token reads", size(data["weight_bytes"])
    yield "budget", ", ".join(f"{key} {value:,}" for key, value in data["budget"].items())
