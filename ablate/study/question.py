"""What a study asks: the node `study` of an experiment, as checked plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ablate.errors import AblateError, did_you_mean
from ablate.model.registry import check_options

# Metrics of which more is better; of all others, less.
RISING = ("val/accuracy", "train/tokens_per_s", "train/mfu")

Expectation = Literal["better", "worse", "equivalent", "not worse", "report"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is said of one arm against the baseline, and by whom. `report`: nothing is claimed, it is measured."""

    expect: Expectation
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A baseline, its arms, the seeds, the budget rule and the claims under test.

    arms: name -> overrides, the baseline's own too. margin: of equivalence, in the metric's unit.
    match: what each arm has as much of as the baseline, within 1%. match_by: what is changed for it.
    hold: what each run may spend: as many tokens, training FLOPs or seconds as the baseline.
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
        return self.metric in RISING
