"""The question of a study: reads and checks the node `study` of an experiment."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from ablate import check
from ablate.errors import AblateError, did_you_mean
from ablate.metrics import METRICS
from ablate.overrides import written
from ablate.registry import check_options

DESIGNS = ("one_at_a_time", "factorial", "leave_one_out")

Expectation = Literal["better", "worse", "equivalent", "not worse", "report"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """How one arm is expected to compare with the baseline. source: who expects it. expect=report: no claim is made."""

    expect: Expectation
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A baseline, its arms, the seeds, the budget rule and the claims under test.

    arms: name -> overrides, with the baseline. margin: differences within it count as none; in the metric's unit.
    match: the budget that each arm shares with the baseline, within 1%. match_by: the size that is changed to match it.
    hold: what all runs spend equally: tokens, training FLOPs or seconds.
    """

    name: str
    question: str
    baseline: str
    arms: dict[str, list[str]]
    seeds: list[int]
    metric: str = "val/loss"
    margin: float = 0.01
    match: Literal["params", "flops", "none"] = "none"
    match_by: Literal["ffn", "depth", "dim"] = "ffn"
    hold: Literal["tokens", "flops", "seconds"] = "tokens"
    claims: dict[str, Claim] = field(default_factory=dict)

    @property
    def rising(self) -> bool:
        """Whether more of the metric is better."""
        return METRICS[self.metric].rising


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The learning rates that each arm tries, and the seeds that are used only for this."""

    grid: list[float]
    seeds: list[int]


def read_study(node: Mapping[str, Any]) -> tuple[Study, Tuning | None]:
    """Reads a resolved node `study`: the study, and how it tunes learning rates (None: it does not).

    Raises:
        AblateError: an unknown key, a value of the wrong type, or invalid arms, seeds or claims.
    """
    given = {key: value for key, value in node.items() if key not in ("arm", "stage")}
    tune, grid, tuning_seeds = (given.pop(key, None) for key in ("tune", "lr_grid", "tuning_seeds"))
    factors, design = given.pop("factors", None) or {}, given.pop("design", "one_at_a_time")
    check.choice("study.design", design, DESIGNS)
    if factors:
        if given.get("arms"):
            raise AblateError("study.arms and study.factors: give only one of the two")
        given["arms"], given["baseline"] = _designed(factors, design)
    elif not isinstance(given.get("arms"), Mapping):
        raise check.wrong("study.arms", given.get("arms"), "arm: [overrides], two or more")
    claims = read_claims(given.pop("claims", None) or {}, given["arms"], given.get("baseline"))
    study = Study(**{**check_options("study", "a study", Study, given), "claims": claims})
    _check(study)
    return study, _tuning(study, tune, grid, tuning_seeds)


def _check(study: Study) -> None:
    for name, overrides in study.arms.items():
        if not isinstance(overrides, list) or not all(isinstance(o, str) and "=" in o for o in overrides):
            raise AblateError(f"study.arms.{name}={overrides}: expected a list of overrides, such as [model/norm=none]")
    if study.baseline not in study.arms:
        raise AblateError(f"study.baseline: no arm '{study.baseline}'{did_you_mean(study.baseline, study.arms)}")
    if len(study.arms) < 2:
        raise AblateError("study.arms: nothing to compare; give the baseline and at least one other arm")
    _check_seeds("study.seeds", study.seeds)
    check.number("study.margin", study.margin, above=0, hint=f"in units of {study.metric}")


def _check_seeds(key: str, seeds: Any) -> None:
    if not isinstance(seeds, list) or not seeds:
        raise check.wrong(key, seeds, "a list of whole numbers, such as [0,1,2,3,4,5]")
    for seed in seeds:
        check.seed(key, seed)
    if len(set(seeds)) < len(seeds):
        raise AblateError(f"{key}={seeds}: a seed is listed twice; list each once")


def read_claims(node: Any, arms: Collection[str], baseline: Any) -> dict[str, Claim]:
    """Arm -> its claim, from a resolved node `study.claims`.

    Raises:
        AblateError: a claim of the wrong form, or one about the baseline or about no arm.
    """
    if not isinstance(node, Mapping) or not all(isinstance(claim, Mapping) for claim in node.values()):
        raise AblateError(f"study.claims={node}: expected arm: {{expect: ..., source: ...}}")
    for arm in node:
        if arm not in arms:
            raise AblateError(f"study.claims.{arm}: no such arm{did_you_mean(arm, arms)}")
        if arm == baseline:
            raise AblateError(
                f"study.claims.{arm}: this is the baseline, and a claim compares another arm with it; leave it out"
            )
    return {arm: Claim(**check_options(f"study.claims.{arm}", "a claim", Claim, claim)) for arm, claim in node.items()}


def _tuning(study: Study, tune: Any, grid: Any, seeds: Any) -> Tuning | None:
    if tune is None:
        return None
    check.choice("study.tune", tune, ["lr"], null=True)
    rates = {check.number("study.lr_grid", rate, above=0) for rate in grid} if isinstance(grid, list) else set()
    if len(rates) < 2:
        raise check.wrong("study.lr_grid", grid, "a list of two learning rates or more")
    _check_seeds("study.tuning_seeds", seeds)
    shared = set(seeds) & set(study.seeds)
    if shared:
        raise AblateError(f"study.tuning_seeds: {min(shared)} is one of study.seeds; choose other seeds for tuning")
    return Tuning(grid=sorted(map(float, rates)), seeds=seeds)


def _designed(factors: Any, design: Any) -> tuple[dict[str, list[str]], str]:
    """The arms that a design makes of factors, `{key: [values]}`, and the name of the baseline.

    factors a: [0, 1], b: [0, 1]     baseline     arms
    one_at_a_time                    a0 b0        a1 b0, a0 b1
    factorial                        a0 b0        a1 b0, a0 b1, a1 b1
    leave_one_out                    a1 b1        a0 b1, a1 b0
    """
    if not isinstance(factors, Mapping) or not all(isinstance(v, list) and len(v) > 1 for v in factors.values()):
        raise AblateError(f"study.factors={factors}: expected key: [values], two or more, such as model/norm: [a, b]")
    levels = [[f"{key}={written(value)}" for value in values] for key, values in factors.items()]
    reference = [each[-1 if design == "leave_one_out" else 0] for each in levels]
    if design == "factorial":
        cells = [list(cell) for cell in product(*levels)]
    else:
        cells = [reference]
        for place, each in enumerate(levels):
            cells += [
                [*reference[:place], level, *reference[place + 1 :]] for level in each if level != reference[place]
            ]
    return {_name(cell, reference): cell for cell in cells}, "baseline"


def _name(cell: list[str], reference: list[str]) -> str:
    """The levels in which a cell differs from the reference: `norm=layernorm, position=rope`."""
    changed = [level.removeprefix("model/").removeprefix("model.") for level in cell if level not in reference]
    return ", ".join(changed) or "baseline"
