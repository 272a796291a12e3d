"""The plan of a study: each arm is composed once, checked without weights, and equals what its runs compose again."""

from dataclasses import replace

import pytest

from ablate.compose import compose_config, plain
from ablate.errors import AblateError
from ablate.overrides import settings
from ablate.study.plan import checks
from ablate.study.plan.arms import Arm, Job, plan_arms, shared_overrides
from ablate.study.plan.checks import check_runs, open_corpora
from ablate.study.plan.hold import hold
from ablate.study.plan.rates import at_rate, tuning_jobs
from ablate.study.question import Study, Tuning, read_study
from ablate.training import parts

TINY = ["model.dim=64", "model.depth=4", "model.heads=4", "model.context=64", "data=copy", "trainer.accelerator=cpu"]
ARMS = "{base: ['model/attention=mha'], small: ['model/attention=mqa', 'trainer.accumulate_grad_batches=2']}"


def planned(arms: str = ARMS) -> tuple[Study, list[Arm], list[list[str]]]:
    """The study, its arms, and what was composed for them."""
    arguments = [*TINY, "study=default", "study.name=x", "study.question=?", "study.baseline=base"]
    arguments.append(f"++study.arms={arms}")
    study, _ = read_study(plain(compose_config("train", arguments).study))
    composed = []

    def compose(overrides: list[str]):
        composed.append(overrides)
        return compose_config("train", overrides)

    shared, _ = shared_overrides(arguments, study)
    return study, plan_arms(study, compose, shared), composed


@pytest.fixture(scope="module")
def plan() -> tuple[Study, list[Arm], list[list[str]]]:
    return planned()


@pytest.mark.parametrize("spent", ["tokens", "flops"])
def test_an_arm_is_composed_once_and_is_what_its_runs_compose(plan, spent, tmp_path):
    study, arms, composed = plan
    arms = hold(replace(study, hold=spent), arms, open_corpora(arms), tmp_path)
    jobs = tuning_jobs(Tuning(grid=[1e-5], seeds=[7]), arms, tmp_path)
    jobs += [Job(at_rate(arm, 0.003), 3, tmp_path / "it's") for arm in arms]
    assert len(composed) == len(arms) == 2 and len(jobs) == 4
    for job in jobs:
        run = plain(compose_config("train", job.overrides))
        assert settings(run) == settings(job.arm.config)
        assert (run["seed"], run["study"]["arm"], run["study"]["stage"]) == (job.seed, job.arm.name, job.stage)
        assert run["run_dir"] == str(job.path)
    base, small = (arm.config for arm in arms)
    assert small["model"]["ffn"]["hidden"] != base["model"]["ffn"]["hidden"]
    assert (base["trainer"]["max_steps"], small["trainer"]["max_steps"]) == (200, 100)
    assert [job.arm.config["optimizer"]["lr"] for job in jobs] == [1e-5, 1e-5, 0.003, 0.003]


@pytest.mark.parametrize(
    "override", ["++model.depth=3", "++model.dim=128", "++model.ffn.hidden=96", "optimizer.lr=1e-05"]
)
def test_a_later_override_gives_what_hydra_composes(plan, override):
    _, [arm, _], _ = plan
    changed = arm.with_override(override)
    assert changed.config != arm.config
    assert changed.config == plain(compose_config("train", [*arm.overrides, override]))


def test_what_interpolates_a_changed_value_follows_it(plan):
    _, [arm, _], _ = plan
    assert (arm.config["data"]["context"], arm.with_override("model.context=32").config["data"]["context"]) == (64, 32)
    assert arm.config["data"]["context"] == 64, "the arm itself stays as it is"


def test_runs_are_checked_without_weights(plan, monkeypatch):
    _, arms, _ = plan
    build, built = parts.Decoder, []
    monkeypatch.setattr(parts, "Decoder", lambda *args: built.append(build(*args)) or built[-1])
    check_runs(arms)
    assert len(built) == 2 and all(p.is_meta for decoder in built for p in decoder.parameters())


def test_a_corpus_is_opened_once(plan, monkeypatch):
    _, [base, _], _ = plan
    arms = [base, replace(base, name="same"), replace(base.with_override("data.distance=9"), name="other")]
    read, nodes = checks.read_data, []
    monkeypatch.setattr(checks, "read_data", lambda node: nodes.append(node) or read(node))
    pieces = open_corpora(arms)
    assert list(pieces) == ["base", "same", "other"] and len(nodes) == 2
    assert pieces["same"] is pieces["base"] and pieces["base"] == {64: 1}


def test_arms_that_would_share_a_folder_are_refused():
    with pytest.raises(AblateError, match="differ only in punctuation"):
        planned(arms="{base: ['model/norm=rmsnorm'], a-b: ['model/norm=layernorm'], a b: ['model/norm=none']}")
