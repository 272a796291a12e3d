"""Models that can learn a diagnostic task do so, at the defaults. Bounds: experiments/diagnostics, with some room."""

import pytest

from ablate.compose import compose_config
from ablate.training import job

from .harness import summary

pytestmark = pytest.mark.slow
LEARNED = [
    (["data=copy"], 0.95),
    (["data=copy", "model/pattern=local", "model.pattern.window=33"], 0.95),
    (["data=copy", "model/pattern=alternating"], 0.95),
    (["data=recall"], 0.95),
    (["data=induction"], 0.9),
    (["data=leak", "data.document_mask=false"], 0.95),
]
NOT_LEARNED = [
    (["data=copy", "model/pattern=local"], 0.05),
    (["data=recall", "model/pattern=local"], 0.3),
    (["data=induction", "model.depth=1"], 0.5),
    (["data=leak"], 0.07),
]


def accuracy(overrides, tmp_path):
    merged = [*overrides, f"run_dir={tmp_path / 'run'}", "trainer.accelerator=cpu"]
    job.train(compose_config("train", merged), merged)
    return summary(tmp_path / "run")["metrics"]["val/accuracy"]


@pytest.mark.parametrize(("overrides", "least"), LEARNED)
def test_what_can_be_answered_is_learned(overrides, least, tmp_path):
    assert accuracy(overrides, tmp_path) >= least


@pytest.mark.parametrize(("overrides", "most"), NOT_LEARNED)
def test_what_cannot_be_answered_is_not(overrides, most, tmp_path):
    assert accuracy(overrides, tmp_path) <= most
