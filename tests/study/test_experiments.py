"""Every shipped study can run: its arms compose, differ from the baseline, and reach the baseline's budget."""

from pathlib import Path

import pytest

from ablate.compose import compose_config, config_dir, plain
from ablate.overrides import settings
from ablate.study.plan.arms import Job, plan_arms, same_as_baseline, shared_overrides
from ablate.study.plan.checks import check_metric
from ablate.study.plan.match import TOLERANCE
from ablate.study.question import read_study

STUDIES = sorted(
    path.stem for path in Path(config_dir(), "experiment").glob("*.yaml") if "override /study" in path.read_text()
)


def test_studies_are_shipped():
    assert len(STUDIES) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_can_be_run(name, scale):
    arguments = [f"experiment={name}", f"scale={scale}"]
    study, _ = read_study(plain(compose_config("train", arguments).study))
    shared, seeds = shared_overrides(arguments, study)
    arms = plan_arms(study, lambda overrides: compose_config("train", overrides), shared)
    check_metric(study, arms[0])
    assert study.name == name and len(seeds) >= 6
    assert not same_as_baseline(arms)
    for arm in arms:
        run = compose_config("train", Job(arm, 0, Path("run")).overrides)
        assert settings(plain(run)) == settings(arm.config)
    if study.match != "none":
        assert all(abs(arm.matched.difference) <= TOLERANCE for arm in arms)
