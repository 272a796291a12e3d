"""What a study knows of one run: nothing but config.yaml, summary.json and metrics.csv."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ablate.accounting import tokens_per_step
from ablate.errors import warn

# Of a configuration, what says where a run goes and how it is watched, but not what it does.
ASIDE = ("seed", "run_dir", "resume", "tags", "study", "logger", "paths", "sample")

WATCHING = ("checkpoint", "progress")  # callbacks that do nothing to the model

TOKENS, FLOPS, SECONDS = "tokens", "flops", "seconds"


@dataclass(frozen=True)
class RunRecord:
    """One run of one arm.

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
        """The corpus' fingerprint."""
        return reading(self.summary, "corpus.fingerprint")

    @property
    def settings(self) -> dict[str, Any]:
        return settings(self.config)

    @property
    def metrics(self) -> dict[str, Any]:
        """The final value of all that it logged."""
        found = self.summary.get("metrics")
        return found if isinstance(found, dict) else {}

    def metric(self, name: str) -> float | None:
        """Its final value; None if the run did not log it, or it is not finite."""
        value = self.metrics.get(name)
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value), the step counted from 1: `steps` taken when it was logged."""
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
        """What one optimiser step costs, in tokens, training FLOPs or seconds of training."""
        try:
            tokens = tokens_per_step(self.config)
        except (KeyError, TypeError):
            return None
        if axis == TOKENS:
            return tokens
        if axis == FLOPS:
            flops = self.summary.get("training_flops_per_token")
            return flops and tokens * flops
        rate = reading(self.summary, "speed.train_tokens_per_s")
        return tokens / rate if rate else None

    def spent(self, axis: str) -> float | None:
        """Tokens, padding included, training FLOPs or seconds of training, of all its steps."""
        steps, cost = self.summary.get("steps"), self.cost_of_step(axis)
        return steps * cost if isinstance(steps, int) and cost else None


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run what it is: its configuration, but for its seed, its place and how it is watched."""
    kept = {key: value for key, value in config.items() if key not in ASIDE}
    callbacks = {name: node for name, node in (kept.get("callbacks") or {}).items() if name not in WATCHING}
    return kept and {**kept, "callbacks": callbacks}


def unequal(runs: Iterable[RunRecord], axis: str) -> tuple[float, float] | None:
    """The least and the most that one of them spent, where these are more than 1% apart."""
    spent = [cost for run in runs if (cost := run.spent(axis))]
    return (min(spent), max(spent)) if spent and max(spent) > 1.01 * min(spent) else None


def reading(data: Any, keys: str) -> Any:
    """What stands at `a.b.c` in nested dicts; None where it is missing."""
    for key in keys.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data
