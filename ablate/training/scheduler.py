"""Learning-rate schedules. A component takes (step, max_steps) and returns the factor on the peak rate.

`step` counts optimiser steps from 0. A schedule is a pure function, so that resuming needs no state. Options are
checked when the component is built; their values are only in `conf/scheduler/NAME.yaml`.
"""

import dataclasses
import math
from dataclasses import dataclass

from ablate import check
from ablate.registry import Axis

SCHEDULES = Axis("scheduler")


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """The warm-up of all schedules here: a linear rise to the peak. warmup: its share of all steps.

    Raises:
        AblateError: an option is not a number from 0 to 1.
    """

    warmup: float

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            check.number(f"scheduler.{option.name}", getattr(self, option.name), least=0, most=1)

    def rise(self, step: int, max_steps: int) -> float:
        """The factor during the warm-up; 1 after it."""
        return min(1.0, (step + 1) / max(1.0, max_steps * self.warmup))


@SCHEDULES.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(WarmUp):
    """Warm-up, then the peak rate to the end."""

    def __call__(self, step: int, max_steps: int) -> float:
        return self.rise(step, max_steps)


@SCHEDULES.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(WarmUp):
    """Warm-up, then half a cosine down to `final` of the peak (Loshchilov and Hutter 2017)."""

    final: float

    def __call__(self, step: int, max_steps: int) -> float:
        done = _progress(step, max_steps * self.warmup, max_steps)
        return self.rise(step, max_steps) * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))


@SCHEDULES.register("wsd")
@dataclass(frozen=True, kw_only=True)
class WSD(WarmUp):
    """Warm-up, stable, decay: linear down to `final` of the peak over the last share `decay` of all steps
    (Hu et al. 2024, MiniCPM)."""

    decay: float
    final: float

    def __call__(self, step: int, max_steps: int) -> float:
        done = _progress(step, max_steps * (1 - self.decay), max_steps)
        return self.rise(step, max_steps) * (1 - (1 - self.final) * done)


def _progress(step: int, start: float, end: float) -> float:
    """How far `step` is from `start` to `end`, from 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1.0, end - start)))
