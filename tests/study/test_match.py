"""Law 9: counted budgets are those of the models built, and matched arms lie within 1%."""

import dataclasses

import pytest

import ablate
from ablate.compose import compose_config, plain
from ablate.errors import AblateError
from ablate.model.config import AXES
from ablate.study.plan.match import TOLERANCE, budget_of, match
from ablate.study.question import Study

SIZE = ["model.dim=64", "model.depth=2", "model.context=64", "model.vocab_size=512"]
MEASURES = {"params": "total", "flops": "flops_per_token"}


def resolved(*overrides: str) -> dict:
    return plain(compose_config("build", ["model=gqa_rope", *SIZE, *overrides]).model)


def study(**changes) -> Study:
    base = Study(name="x", question="?", baseline="base", arms={"base": [], "arm": []}, seeds=[0], match="params")
    return dataclasses.replace(base, **changes)


def matched(model: dict, **changes):
    return match(study(**changes), {"base": resolved(), "arm": model})


COMPONENTS = [(axis, name, "params") for axis in AXES for name in AXES[axis].names()]


@pytest.mark.parametrize("axis, name, rule", [*COMPONENTS, ("ffn", "relu", "flops"), ("ffn", "moe", "flops")])
def test_every_component_is_matched_by_the_width_of_the_ffn(axis, name, rule):
    found = matched(resolved(f"model/{axis}={name}"), match=rule)
    target = getattr(found["base"].budget, MEASURES[rule])
    assert abs(getattr(found["arm"].budget, MEASURES[rule]) / target - 1) <= TOLERANCE
    assert found["base"].override is None


def test_depth_is_matched_on_request():
    found = matched(resolved("model.depth=7"), match_by="depth")["arm"]
    assert (found.override, found.difference) == ("++model.depth=2", 0)


def test_width_is_matched_on_request():
    found = matched(resolved("model.dim=128"), match_by="dim")["arm"]
    assert (found.override, found.difference) == ("++model.dim=64", 0)


def test_the_solved_override_gives_the_budget_that_was_told():
    found = matched(resolved("model/attention=mqa"))["arm"]
    built = ablate.build("gqa_rope", overrides=[*SIZE, "model/attention=mqa", found.override.lstrip("+")])
    assert ablate.budget(built) == found.budget
    assert sum(p.numel() for p in built.parameters()) == found.budget.total


def test_an_arm_within_one_percent_stays_as_it_is():
    found = matched(resolved("model/norm=layernorm"))["arm"]
    assert found.override is None and found.difference != 0


def test_nothing_is_matched_where_nothing_is_asked():
    found = matched(resolved("model.ffn.hidden=512"), match="none")["arm"]
    assert found.override is None and found.difference > 0.1


def test_what_no_size_matches_is_refused():
    with pytest.raises(AblateError, match=r"study.arms.arm: no model.depth brings it within 1%"):
        matched(resolved("model.dim=128"), match_by="depth")


def test_a_budget_is_counted_without_weights():
    giant = resolved("model.dim=32768", "model.depth=4", "model.heads=64")
    assert budget_of(giant).total > 2e10
