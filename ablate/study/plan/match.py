"""Matched budgets: finds the FFN width, the depth or the model width at which an arm costs what the baseline costs."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ablate.accounting import Budget, budget
from ablate.errors import AblateError
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder
from ablate.study.question import Study
from ablate.words import percent

TOLERANCE = 0.01  # as a share of the baseline's cost
Cost = Callable[[dict[str, Any]], float]
_KEYS = {"ffn": "model.ffn.hidden", "depth": "model.depth", "dim": "model.dim"}


@dataclass(frozen=True)
class Matched:
    """How an arm is brought to the baseline's budget.

    budget: the arm's, once matched. override: sets the size that matches it; None: the arm keeps its size.
    difference: (arm - baseline) / baseline, of what is matched, or of the parameters with match=none.
    """

    budget: Budget
    override: str | None
    difference: float


def budget_of(model: dict[str, Any], pieces: Mapping[int, int] | None = None) -> Budget:
    """The budget of a resolved node `model`, counted without weights. pieces: see `ablate.budget`.

    Raises:
        AblateError: the model cannot be built.
    """
    return budget(_without_weights(model), pieces)


def match(study: Study, models: dict[str, dict[str, Any]]) -> dict[str, Matched]:
    """Arm -> its match: every arm is brought within 1% of the baseline.

    An arm that is within 1% from the start keeps its size, so that it differs only in its own change.

    Raises:
        AblateError: no size brings an arm within 1%.
    """
    cost_of = _flops if study.match == "flops" else _parameters
    target = cost_of(models[study.baseline])
    matched = {}
    for arm, model in models.items():
        cost, override = cost_of(model), None
        if study.match != "none" and abs(cost / target - 1) > TOLERANCE:
            size, cost = _solve(study, arm, model, cost_of, target)
            model, override = _sized(model, study.match_by, size), f"++{_KEYS[study.match_by]}={size}"
        matched[arm] = Matched(budget_of(model), override, cost / target - 1)
    return matched


def _without_weights(model: dict[str, Any]) -> Decoder:
    with torch.device("meta"):
        return Decoder(DecoderConfig.from_dict(model))


def _parameters(model: dict[str, Any]) -> float:
    return sum(parameter.numel() for parameter in _without_weights(model).parameters())


def _flops(model: dict[str, Any]) -> float:
    return budget_of(model).flops_per_token


def _solve(study: Study, arm: str, model: dict[str, Any], cost_of: Cost, target: float) -> tuple[int, float]:
    """The size at which an arm's cost is nearest to `target`, and that cost. FFNs are tried in steps of 8 first."""
    by = study.match_by
    for grain in {"ffn": (8, 1), "depth": (1,), "dim": (2 * model["heads"],)}[by]:
        size = _nearest(lambda size: cost_of(_sized(model, by, size)), grain, target)
        cost = cost_of(_sized(model, by, size))
        if abs(cost / target - 1) <= TOLERANCE:
            return size, cost
    raise AblateError(
        f"study.arms.{arm}: no {_KEYS[by]} brings it within 1% of the baseline's {study.match}: {size} gives "
        f"{percent(cost / target - 1, sign=True)}; choose another study.match_by, or study.match=none"
    )


def _nearest(cost_at: Callable[[int], float], grain: int, target: float) -> int:
    """The multiple of `grain` whose cost is nearest to `target`, by the secant method, as costs are nearly linear."""
    multiple, cost = 1, cost_at(grain)
    slope = cost_at(2 * grain) - cost
    for _ in range(50):
        step = max(1, multiple + round((target - cost) / slope)) - multiple
        if step == 0:
            break
        previous, multiple = cost, multiple + step
        cost = cost_at(multiple * grain)
        slope = (cost - previous) / step
    return multiple * grain


def _sized(model: dict[str, Any], by: str, size: int) -> dict[str, Any]:
    changed = copy.deepcopy(model)
    if by == "ffn":
        changed["ffn"]["hidden"] = size
    else:
        changed[by] = size
    return changed
