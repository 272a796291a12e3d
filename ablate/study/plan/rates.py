"""Tuning the learning rate: every arm tries the same grid, with seeds that the study does not use."""

import statistics
from pathlib import Path
from typing import Any

from ablate.errors import AblateError
from ablate.study.plan.arms import Arm, Job, folder_name
from ablate.study.question import Study, Tuning
from ablate.study.records import RunRecord


def tuning_jobs(tuning: Tuning, arms: list[Arm], folder: Path) -> list[Job]:
    """Every arm at every learning rate, with every tuning seed."""
    return [
        Job(tried, seed, folder / "tuning" / folder_name(arm.name) / f"lr_{lr:g}_seed_{seed}", "tuning")
        for lr in tuning.grid
        for arm in arms
        for tried in [at_rate(arm, lr)]
        for seed in tuning.seeds
    ]


def at_rate(arm: Arm, lr: float) -> Arm:
    return arm.with_override(f"optimizer.lr={lr}")


def choose(study: Study, tuning: Tuning, records: list[RunRecord]) -> dict[str, Any]:
    """Chooses the learning rate with the best mean for each arm; never one at which a run diverged.

    {"grid": rates, "arms": {arm: {"points": [[rate, seed, metric or None], ...],
                                   "chosen": the best rate, "edge": whether it is the grid's first or last}}}

    Raises:
        AblateError: an arm diverged at every learning rate.
    """
    tuned: dict[str, Any] = {}
    for arm in study.arms:
        points = [(_lr(r), r.seed, r.metric(study.metric)) for r in records if r.arm == arm]
        points = sorted(p for p in points if p[0] in tuning.grid and p[1] in tuning.seeds)
        means = {}
        for lr in tuning.grid:
            values = [value for rate, _, value in points if rate == lr]
            if len(values) == len(tuning.seeds) and None not in values:
                means[lr] = statistics.fmean(values)
        if not means:
            raise AblateError(f"study.lr_grid: no learning rate lets all runs of '{arm}' finish; choose lower ones")
        chosen = (max if study.rising else min)(means, key=means.get)
        edge = chosen in (tuning.grid[0], tuning.grid[-1])
        tuned[arm] = {"points": [list(point) for point in points], "chosen": chosen, "edge": edge}
    return {"grid": tuning.grid, "arms": tuned}


def _lr(record: RunRecord) -> float:
    return float(record.config["optimizer"]["lr"])
