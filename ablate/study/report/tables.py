"""The tables of a report: what each arm is and does, loss never alone, and what the tests say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ablate.study.question import Study
from ablate.study.records import RunRecord
from ablate.study.report.findings import Findings, figure
from ablate.study.report.words import effect_and_interval, level, p_value, signed, with_unit
from ablate.words import duration, number, short, size

# MDE: minimum detectable effect, which so many pairs would find four times in five after Holm.
TESTS = ("verdict", "effect", "95% interval", "pairs", "p", "p, Holm", "p, sign flip", "p, equivalent", "MDE")
METRICS = ("val/loss", "val/bpb", "val/accuracy")


@dataclass(frozen=True)
class Cell:
    """The mean over the runs, and what it ranges over where they differ."""

    text: str = ""
    spread: str = ""


@dataclass(frozen=True)
class Column:
    """counted: known of every run, finished or not; what was measured counts where the run finished."""

    title: str
    of: Callable[[RunRecord], float | None]
    text: Callable[[float], str]
    counted: bool = False

    def cell(self, runs: list[RunRecord]) -> Cell:
        runs = [run for run in runs if self.counted or run.finished]
        values = [value for run in runs if (value := self.of(run)) is not None]
        if not values:
            return Cell()
        low, high = self.text(min(values)), self.text(max(values))
        return Cell(self.text(sum(values) / len(values)), "" if low == high else f"{low} – {high}")


def table(findings: Findings) -> tuple[list[str], dict[str, list[Cell]]]:
    """The titles, and the cells of each arm; a column that is empty for all is left out."""
    columns = _columns(findings.study)
    measured = {arm: [column.cell(findings.runs(arm)) for column in columns] for arm in findings.arms}
    kept = [i for i in range(len(columns)) if any(cells[i].text for cells in measured.values())]
    counts = {arm: _counts(findings.runs(arm), findings.study.metric) for arm in findings.arms}
    shown = ["runs", "diverged", *(["unfinished"] if any(count["unfinished"] for count in counts.values()) else [])]
    titles = [*shown, *(columns[i].title for i in kept)]
    return titles, {
        arm: [*(Cell(str(counts[arm][title])) for title in shown), *(cells[i] for i in kept)]
        for arm, cells in measured.items()
    }


def _counts(runs: list[RunRecord], metric: str) -> dict[str, int]:
    """A run whose metric is not finite has diverged, as it has for the verdict."""
    logged = [run for run in runs if run.finished and metric in run.metrics]
    diverged = sum(run.diverged for run in runs) + sum(run.metric(metric) is None for run in logged)
    return {"runs": len(runs), "diverged": diverged, "unfinished": sum(not (r.finished or r.diverged) for r in runs)}


def _columns(study: Study) -> list[Column]:
    metrics = dict.fromkeys([study.metric, *METRICS])
    return [
        *(Column(with_unit(name), _metric(name), level) for name in metrics),
        _counted("parameters", "budget.total", short),
        _counted("non-embedding", "budget.non_embedding", short),
        _counted("active", "budget.active", short),
        _counted("forward FLOPs a token", "budget.flops_per_token", short),
        _counted("cache bytes a token", "budget.kv_bytes_per_token", size),
        Column("peak memory", _peak_memory, size),
        _measured("training tokens/s", "speed.train_tokens_per_s", number),
        _measured("MFU", "speed.train_mfu", lambda share: f"{share:.1%}"),
        _measured("generated tokens/s, cached", "speed.generation.cached_tokens_per_s", number),
        _measured("wall time a run", "wall_s", duration),
    ]


def _metric(name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: run.metric(name)


def _counted(title: str, keys: str, text: Callable[[float], str]) -> Column:
    return Column(title, lambda run: figure(run, keys), text, counted=True)


def _measured(title: str, keys: str, text: Callable[[float], str]) -> Column:
    return Column(title, lambda run: figure(run, keys), text)


def _peak_memory(run: RunRecord) -> float | None:
    """The device's on a GPU, else the process' own."""
    on_gpu = figure(run, "memory.peak_cuda_bytes")
    return figure(run, "memory.peak_rss_bytes") if on_gpu is None else on_gpu


def tests_of(said: dict[str, Any]) -> list[str]:
    """Of one arm's verdict, a text for each of TESTS; empty where there is none."""
    effect, interval = effect_and_interval(said)
    ps = [p_value(said[key]) for key in ("p", "p_holm", "p_sign_flip", "p_equivalent")]
    mde = said["mde"]
    return [said["verdict"], effect, interval, str(said["pairs"]), *ps, "" if mde is None else signed(mde).lstrip("+")]
