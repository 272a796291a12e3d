"""Learning-rate schedules: pure functions of the step, so that resuming needs no state.

Each returns the factor on the peak learning rate for optimiser step `step` of `max_steps`.
Lengths are shares of `max_steps`.
"""

import math

from ablate.errors import AblateError


def cosine(step: int, max_steps: int, *, warmup: float, final: float) -> float:
    """Linear warm-up, then half a cosine down to `final` (Loshchilov and Hutter 2017)."""
    _check(warmup=warmup, final=final)
    rise = _rise(step, max_steps, warmup)
    done = _share(step, max_steps * warmup, max_steps)
    return rise * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


def wsd(step: int, max_steps: int, *, warmup: float, decay: float, final: float) -> float:
    """Warm-up, stable, decay: linear down to `final` over the last share (Hu et al. 2024, MiniCPM)."""
    _check(warmup=warmup, decay=decay, final=final)
    done = _share(step, max_steps * (1 - decay), max_steps)
    return _rise(step, max_steps, warmup) * (1 - (1 - final) * done)


def constant(step: int, max_steps: int, *, warmup: float) -> float:
    """Linear warm-up, then constant."""
    _check(warmup=warmup)
    return _rise(step, max_steps, warmup)


def _check(**shares: float) -> None:
    for name, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise AblateError(f"scheduler.{name}={value}: expected a share, from 0 to 1")


def _rise(step: int, max_steps: int, warmup: float) -> float:
    return min(1.0, (step + 1) / max(1.0, max_steps * warmup))


def _share(step: int, start: float, end: float) -> float:
    """How far `step` is from `start` to `end`, within 0 .. 1."""
    return min(1.0, max(0.0, (step - start) / max(1.0, end - start)))
