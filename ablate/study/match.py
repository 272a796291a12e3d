"""Matched budgets: the width of the FFN, the depth or the width at which an arm costs what the baseline does."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ablate.accounting import Budget, budget
from ablate.errors import AblateError
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder
from ablate.study.question import Study

TOLERANCE = 0.01
_MEASURES: dict[str, Callable[[Budget], float]] = {"params": lambda b: b.total, "flops": lambda b: b.flops_per_token}
_KEYS = {"ffn": "model.ffn.hidden", "depth": "model.depth", "dim": "model.dim"}


@dataclass(frozen=True)
class Matched:
    """An arm as it is going to be trained: the override that brings it to the budget, if one is needed."""

    budget: Budget
    override: str | None
    difference: float  # from the baseline, as a share of it, in what is matched; of parameters where nothing is


def budget_of(model: dict[str, Any]) -> Budget:
    """The budget of a resolved node `model`, counted without building weights.

    Raises:
        AblateError: what cannot be built.
    """
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig.from_dict(model))
    return budget(decoder)


def match(study: Study, models: dict[str, dict[str, Any]]) -> dict[str, Matched]:
    """Arm -> what makes it fit: all within 1% of the baseline, which stays as it is.

    An arm that is within 1% already stays as it is too: what differs is then the arm's own change alone.

    Raises:
        AblateError: an arm that no size brings within 1%.
    """
    of = _MEASURES.get(study.match, _MEASURES["params"])
    target = of(budget_of(models[study.baseline]))
    found = {}
    for arm, model in models.items():
        cost = budget_of(model)
        override = None
        if study.match != "none" and abs(of(cost) / target - 1) > TOLERANCE:
            override, cost = _solve(study, arm, model, of, target)
        found[arm] = Matched(cost, override, of(cost) / target - 1)
    return found


def _solve(
    study: Study, arm: str, model: dict[str, Any], of: Callable[[Budget], float], target: float
) -> tuple[str, Budget]:
    grain = {"ffn": 8, "depth": 1, "dim": 2 * model["heads"]}[study.match_by]
    size, cost = _nearest(lambda size: _sized(model, study.match_by, size), grain, of, target)
    if study.match_by == "ffn" and abs(of(cost) / target - 1) > TOLERANCE:
        size, cost = _nearest(lambda size: _sized(model, "ffn", size), 1, of, target)
    key = _KEYS[study.match_by]
    if abs(of(cost) / target - 1) > TOLERANCE:
        raise AblateError(
            f"study.arms.{arm}: no {key} brings it within 1% of the baseline's {study.match}: {size} gives "
            f"{of(cost) / target - 1:+.1%}; choose another study.match_by, or study.match=none"
        )
    return f"++{key}={size}", cost


def _nearest(
    sized: Callable[[int], dict[str, Any]], grain: int, of: Callable[[Budget], float], target: float
) -> tuple[int, Budget]:
    """The multiple of `grain` whose cost is nearest to `target`: costs rise with size."""

    def cost(multiple: int) -> float:
        return of(budget_of(sized(multiple * grain)))

    low, high = 1, 1
    while cost(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    best = min((low, high), key=lambda multiple: abs(cost(multiple) - target)) * grain
    return best, budget_of(sized(best))


def _sized(model: dict[str, Any], by: str, size: int) -> dict[str, Any]:
    changed = copy.deepcopy(model)
    if by == "ffn":
        changed["ffn"]["hidden"] = size
    else:
        changed[by] = size
    return changed
