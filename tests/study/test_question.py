"""The node `study`: which studies are accepted, and which are refused."""

import pytest

from ablate.errors import AblateError
from ablate.study.question import read_study

NODE = {
    "name": "norms",
    "question": "Which?",
    "baseline": "layer",
    "arms": {"layer": ["model/norm=layernorm"], "rms": ["model/norm=rmsnorm"]},
    "seeds": [0, 1, 2],
}
NORMS = {"model/norm": ["layernorm", "rmsnorm"], "model/position": ["learned", "rope", "none"]}


def designed(design: str):
    study, _ = read_study({"name": "x", "question": "?", "seeds": [0], "factors": NORMS, "design": design})
    return study


def test_one_at_a_time_changes_one_factor_of_the_first_values():
    study = designed("one_at_a_time")
    assert study.arms[study.baseline] == ["model/norm=layernorm", "model/position=learned"]
    assert list(study.arms) == ["baseline", "norm=rmsnorm", "position=rope", "position=none"]
    assert study.arms["position=none"] == ["model/norm=layernorm", "model/position=none"]


def test_a_factorial_has_every_combination():
    study = designed("factorial")
    assert len(study.arms) == 6
    assert study.arms["norm=rmsnorm, position=none"] == ["model/norm=rmsnorm", "model/position=none"]


def test_leave_one_out_starts_from_the_last_values():
    study = designed("leave_one_out")
    assert study.arms[study.baseline] == ["model/norm=rmsnorm", "model/position=none"]
    assert list(study.arms) == ["baseline", "norm=layernorm", "position=learned", "position=rope"]


def test_a_factor_may_be_null_or_a_path():
    factors = {"model.attention.softcap": [None, 30], "model.bias": [True, False], "data.tokenizer": ["a/x", "b/x"]}
    study, _ = read_study({"name": "x", "question": "?", "seeds": [0], "factors": factors})
    assert study.arms["baseline"] == ["model.attention.softcap=null", "model.bias=true", "data.tokenizer=a/x"]
    assert list(study.arms) == ["baseline", "attention.softcap=30", "bias=false", "data.tokenizer=b/x"]


def test_more_is_better_of_accuracy_alone():
    assert not read_study(NODE)[0].rising
    assert read_study({**NODE, "metric": "val/accuracy"})[0].rising


def test_tuning_is_read_with_its_grid_in_order():
    _, tuning = read_study({**NODE, "tune": "lr", "lr_grid": [0.01, 0.001], "tuning_seeds": [9]})
    assert (tuning.grid, tuning.seeds) == ([0.001, 0.01], [9])
    assert read_study({**NODE, "tune": None, "lr_grid": [0.1], "tuning_seeds": [0]})[1] is None


@pytest.mark.parametrize(
    "change, said",
    [
        ({"baseline": "lyer"}, "did you mean 'layer'"),
        ({"baseline": None}, "study.baseline"),
        ({"quetsion": 1}, "did you mean 'question'"),
        ({"arms": {"layer": ["model/norm=layernorm"]}}, "nothing to compare"),
        ({"arms": {"layer": "model/norm=layernorm", "rms": []}}, "study.arms.layer"),
        ({"arms": {"layer": ["norm"], "rms": []}}, "study.arms.layer"),
        ({"arms": 5}, "study.arms=5"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": []}, "study.seeds"),
        ({"seeds": [True]}, "study.seeds"),
        ({"seeds": 3}, "study.seeds"),
        ({"margin": 0}, "study.margin"),
        ({"match": "parameters"}, "flops, none, params"),
        ({"hold": "time"}, "flops, seconds, tokens"),
        ({"claims": {"rsm": {"expect": "better"}}}, "did you mean 'rms'"),
        ({"claims": {"rms": {"expect": "beter"}}}, "study.claims.rms.expect"),
        ({"claims": [1]}, "study.claims"),
        ({"tune": "wd", "lr_grid": [1, 2], "tuning_seeds": [9]}, "study.tune"),
        ({"tune": "lr", "lr_grid": [0.1], "tuning_seeds": [9]}, "study.lr_grid"),
        ({"tune": "lr", "lr_grid": [0.1, 0.2], "tuning_seeds": [2]}, "2 is one of study.seeds"),
        ({"factors": NORMS}, "one of the two"),
        ({"arms": {}, "factors": {"model/norm": ["layernorm"]}}, "study.factors"),
        ({"arms": {}, "factors": NORMS, "design": "half"}, "study.design"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, said):
    with pytest.raises(AblateError) as refusal:
        read_study({**NODE, **change})
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
