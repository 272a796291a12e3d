"""What a report tells of: the study, its runs, and the verdict upon them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ablate.study.judge.verdict import one_a_seed
from ablate.study.question import Study
from ablate.study.records import RunRecord, reading


@dataclass(frozen=True)
class Findings:
    """verdict: what `judge` returns, strict JSON. folder: where the report lies."""

    study: Study
    records: list[RunRecord]
    verdict: dict[str, Any]
    folder: Path

    @cached_property
    def arms(self) -> list[str]:
        """The baseline first, then in the study's order; arms without a run or a verdict are left out."""
        found = {record.arm for record in self.records} | self.judged.keys()
        order = [self.study.baseline, *self.study.arms, *sorted(found)]
        return [arm for arm in dict.fromkeys(order) if arm in found]

    @cached_property
    def judged(self) -> dict[str, dict[str, Any]]:
        """Arm -> its verdict; the baseline has none."""
        return {arm: said for arm, said in self.verdict["arms"].items() if arm != self.study.baseline}

    @property
    def rivals(self) -> list[str]:
        """The arms that have a verdict, in order."""
        return [arm for arm in self.arms if arm in self.judged]

    def runs(self, arm: str) -> list[RunRecord]:
        """One of each seed: those that were judged."""
        return list(one_a_seed([record for record in self.records if record.arm == arm]).values())

    def finished(self, arm: str) -> list[RunRecord]:
        return [record for record in self.runs(arm) if record.finished]

    @property
    def seeds(self) -> list[int]:
        """The verdict's own; where it names none, those of the runs."""
        return self.verdict.get("seeds") or sorted({record.seed for record in self.records})


def figure(record: RunRecord, keys: str) -> float | None:
    """A finite number of the run's summary; None: there is none."""
    value = reading(record.summary, keys)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def strict(data: Any) -> Any:
    """The same with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(data, dict):
        return {key: strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each once, in the order of their coming; what is empty is left out."""
    return list(dict.fromkeys(value for value in values if value))
