"""The tables of a report: the figures of each arm, the tests, and where the configurations differ."""

from collections.abc import Callable
from typing import Any

from ablate.errors import AblateError, first_line
from ablate.metrics import METRICS
from ablate.model.config import AXES, DecoderConfig, component, stretches
from ablate.overrides import written
from ablate.page.table import Cell, Column, filled
from ablate.study.judge.contest import ArmRuns
from ablate.study.judge.verdict import ArmVerdict, Verdict
from ablate.study.records import RunRecord
from ablate.words import duration, estimate, level, number, p_value, percent, rounded, short, size

TESTS = ("verdict", "effect", "95% interval", "pairs", "p", "p, Holm", "p, sign flip", "p, equivalent", "MDE")


# --- figures of each arm -------------------------------------------------------------------------------


def arms_table(verdict: Verdict) -> tuple[list[str], dict[str, list[Cell]]]:
    """The titles, and the cells of each arm by its name. Size, cost and speed are always shown beside the loss."""
    titles, rows = filled(_columns(verdict), verdict.runs.values())
    return titles, dict(zip(verdict.runs, rows, strict=True))


def _columns(verdict: Verdict) -> list[Column[ArmRuns]]:
    metrics = dict.fromkeys([verdict.study.metric, *(row.name for row in METRICS.of_validation())])
    unfinished = any(arm.unfinished for arm in verdict.runs.values())
    return [
        Column("runs", lambda arm: Cell(str(len(arm.runs)))),
        Column("diverged", lambda arm: Cell(str(arm.diverged))),
        *([Column("unfinished", lambda arm: Cell(str(len(arm.unfinished))))] if unfinished else []),
        *(_mean(METRICS[name].titled, _metric(name), level) for name in metrics),
        _counted("parameters", "budget.total", short),
        _counted("non-embedding", "budget.non_embedding", short),
        _counted("active", "budget.active", short),
        _counted("forward FLOPs a token", "budget.flops_per_token", short),
        _counted("cache bytes a token", "budget.kv_bytes_per_token", size),
        _mean("peak memory", _peak_memory, size),
        _measured("training tokens/s", "speed.train_tokens_per_s", number),
        _measured("MFU", "speed.train_mfu", percent),
        _measured("generated tokens/s, cached", "speed.generation.cached_tokens_per_s", number),
        _measured("wall time a run", "wall_s", duration),
    ]


def _mean(
    title: str,
    value: Callable[[RunRecord], float | None],
    text: Callable[[float], str],
    runs: Callable[[ArmRuns], list[RunRecord]] = lambda arm: arm.finished,
) -> Column[ArmRuns]:
    """The mean over the runs, with the least and the most below it if their texts differ."""

    def cell(arm: ArmRuns) -> Cell:
        values = [known for run in runs(arm) if (known := value(run)) is not None]
        if not values:
            return Cell()
        low, high = text(min(values)), text(max(values))
        return Cell(text(sum(values) / len(values)), "" if low == high else f"{low} – {high}")

    return Column(title, cell)


def _measured(title: str, keys: str, text: Callable[[float], str]) -> Column[ArmRuns]:
    """A figure of the finished runs."""
    return _mean(title, lambda run: run.figure(keys), text)


def _counted(title: str, keys: str, text: Callable[[float], str]) -> Column[ArmRuns]:
    """A figure that every run records, finished or not."""
    return _mean(title, lambda run: run.figure(keys), text, runs=lambda arm: list(arm.runs.values()))


def _metric(name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: run.metric(name)


def _peak_memory(run: RunRecord) -> float | None:
    """The GPU's memory, or else the process' own."""
    on_gpu = run.figure("memory.peak_cuda_bytes")
    return run.figure("memory.peak_rss_bytes") if on_gpu is None else on_gpu


# --- the tests -------------------------------------------------------------------------------------------


def tests_of(arm: ArmVerdict) -> list[str]:
    """A text for each of TESTS; empty where there is no figure."""
    statistics = arm.statistics
    ps = [p_value(p) for p in (statistics.p, arm.p_holm, statistics.p_sign_flip, statistics.p_equivalent)]
    mde = "" if statistics.mde is None else rounded(statistics.mde, statistics.mde)
    return [arm.verdict, *estimate(statistics.effect, statistics.interval), str(statistics.pairs), *ps, mde]


# --- configurations --------------------------------------------------------------------------------------


def layer_rows(run: RunRecord) -> list[tuple[str, ...]] | str:
    """A row for each stretch of equal layers: the layers, and the component of each axis. Or why there are none."""
    if "model" not in run.config:
        return "its configuration has no model"
    try:
        specs = DecoderConfig.from_dict(run.config["model"]).layers()
    except (AblateError, TypeError, AttributeError) as error:
        return f"its configuration cannot be built here: {first_line(error)}"
    return stretches([tuple(component(spec[axis]) for axis in AXES) for spec in specs])


def differences(verdict: Verdict) -> dict[str, dict[str, str]]:
    """Key -> arm -> its value as text, for each key in which the first runs of the arms differ."""
    first = {name: next(iter(arm.runs.values())) for name, arm in verdict.runs.items() if arm.runs}
    flat = {name: _flat(run.settings) for name, run in first.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    texts = {
        key: {name: written(values[key]) if key in values else "–" for name, values in flat.items()} for key in keys
    }
    return {key: of_key for key, of_key in texts.items() if len(set(of_key.values())) > 1}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`a.b.c` -> value; lists are values."""
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
