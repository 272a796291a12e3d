"""Reads the runs of a study, only from config.yaml, summary.json and metrics.csv in each run folder."""

import csv
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ablate.accounting import tokens_per_step
from ablate.errors import AblateError, warn
from ablate.overrides import ASIDE, settings, without
from ablate.run import read_config, read_summary

TOKENS, FLOPS, SECONDS = "tokens", "flops", "seconds"  # what a study can hold equal between its arms


@dataclass(frozen=True)
class RunRecord:
    """One run of one arm, as its folder describes it.

    status: finished | diverged | failed | interrupted | running, as the run itself wrote it.
    """

    path: Path
    arm: str
    seed: int
    status: str
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def diverged(self) -> bool:
        return self.status == "diverged"

    @property
    def corpus(self) -> str | None:
        """The fingerprint of the corpus."""
        return self.recorded("corpus.fingerprint")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The part of the run's configuration that changes what it computes, without the seed."""
        return settings(self.config)

    @property
    def study(self) -> dict[str, Any]:
        """The node `study` of the run's configuration; empty for a run outside a study."""
        node = self.config.get("study")
        return node if isinstance(node, dict) else {}

    @property
    def metrics(self) -> dict[str, Any]:
        """The final value of each metric that the run logged."""
        metrics = self.summary.get("metrics")
        return metrics if isinstance(metrics, dict) else {}

    def metric(self, name: str) -> float | None:
        """The metric's final value; None if the run did not log it, or it is not finite."""
        return _finite(self.metrics.get(name))

    def recorded(self, keys: str) -> Any:
        """The value at `a.b.c` in the run's summary; None if it is missing."""
        value: Any = self.summary
        for key in keys.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def figure(self, keys: str) -> float | None:
        """The finite number at `a.b.c` in the run's summary; None if it is missing."""
        return _finite(self.recorded(keys))

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of each row of metrics.csv that has the metric. Steps count from 1."""
        return [(step, row[name]) for step, row in self._rows if name in row]

    @cached_property
    def _rows(self) -> list[tuple[int, dict[str, float]]]:
        path = self.path / "metrics.csv"
        if not path.is_file():
            return []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                return [
                    (int(row.pop("step")) + 1, {key: float(value) for key, value in row.items() if value})
                    for row in csv.DictReader(file)
                ]
        except (OSError, ValueError, KeyError, TypeError):
            warn(f"{path}: is damaged: the curves of this run are left out")
            return []

    def cost_of_step(self, axis: str) -> float | None:
        """The cost of one optimiser step in tokens, training FLOPs or seconds of training; None if it is unknown."""
        try:
            tokens = tokens_per_step(self.config)
        except (KeyError, TypeError):
            return None
        if axis == TOKENS:
            return tokens
        if axis == FLOPS:
            flops = self.summary.get("training_flops_per_token")
            return flops and tokens * flops
        rate = self.recorded("speed.train_tokens_per_s")
        return tokens / rate if rate else None

    def spent(self, axis: str) -> float | None:
        """The cost of all steps of the run in tokens (padding counts), training FLOPs or seconds of training."""
        steps, cost = self.summary.get("steps"), self.cost_of_step(axis)
        return steps * cost if isinstance(steps, int) and cost else None


def read_runs(folder: Path) -> list[RunRecord]:
    """The runs in `folder` and below that belong to a study, sorted by path. Warns of what cannot be read."""
    return [run for run in _all_runs(folder) if run.arm]


def read_any_runs(folder: Path) -> list[RunRecord]:
    """The runs in `folder` and below, sorted by path.

    A run of a study belongs to the arm that the study gave it. If no run is of a study, an arm's name is the overrides
    that only some of the runs have.

    Raises:
        AblateError: the folder does not exist, or holds no readable run.
    """
    if not folder.is_dir():
        raise AblateError(f"runs={folder}: no such folder; expected one with run folders in it, such as a sweep's")
    runs = _all_runs(folder)
    if not runs:
        raise AblateError(f"runs={folder}: no readable run in it; expected folders with a config.yaml and summary.json")
    studied = [run for run in runs if run.arm]
    if not studied:
        return _named_by_overrides(runs)
    if len(studied) < len(runs):
        warn(
            f"runs={folder}: left out {len(runs) - len(studied)} runs that belong to no study; to compare these, give "
            "their folder"
        )
    judged = [run for run in studied if run.study.get("stage") != "tuning"]
    if not judged:
        raise AblateError(f"runs={folder}: it holds only tuning runs; continue with the study's own command")
    return _named_by_study(judged)


def _named_by_overrides(runs: list[RunRecord]) -> list[RunRecord]:
    changes = [_changes(run) for run in runs]
    shared = set.intersection(*map(set, changes))
    names = [", ".join(change for change in own if change not in shared) or "default" for own in changes]
    return [replace(run, arm=name) for run, name in zip(runs, names, strict=True)]


def _changes(run: RunRecord) -> list[str]:
    """A run's overrides that change what it computes, without the seed."""
    overrides = [str(override).lstrip("+") for override in run.summary.get("overrides", [])]
    return sorted(without(overrides, ("seed", "experiment", *ASIDE)))


def _named_by_study(runs: list[RunRecord]) -> list[RunRecord]:
    """The runs. If they belong to several studies, their arms are named `study/arm`."""
    if len({run.study.get("name") for run in runs}) == 1:
        return runs
    return [replace(run, arm=f"{run.study.get('name')}/{run.arm}") for run in runs]


def _all_runs(folder: Path) -> list[RunRecord]:
    """Every run; a run outside a study has the arm ''."""
    runs = []
    for path in sorted(path.parent for path in folder.rglob("summary.json")):
        try:
            runs.append(_read(path))
        except AblateError as error:
            warn(f"left out: {error}")
    return runs


def _read(path: Path) -> RunRecord:
    config, summary = read_config(path), read_summary(path)
    seed, study = config.get("seed", summary.get("seed")), config.get("study")
    if not isinstance(seed, int) or not isinstance(study, dict | None):
        raise AblateError(f"{path}: config.yaml has no seed, or a damaged study; restore it, or move the folder away")
    return RunRecord(path, (study or {}).get("arm") or "", seed, summary.get("status", "running"), config, summary)


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
