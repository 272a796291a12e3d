"""A user's own optimiser, schedule and metric, from outside the package: a module and a YAML file each."""

import math
from pathlib import Path

import pytest

from .harness import STEPS, Outcome, Place, assert_same, curves, summary, without_end

MODULE = """
from dataclasses import dataclass

import torch
from ablate.metrics import METRICS, Metric
from ablate.training.optimizer import OPTIMIZERS
from ablate.training.scheduler import SCHEDULES


@OPTIMIZERS.register("mine")
@dataclass(frozen=True, kw_only=True)
class Momentum:
    lr: float
    momentum: float = 0.5

    def __call__(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)


@SCHEDULES.register("halving")
@dataclass(frozen=True, kw_only=True)
class Halving:
    every: int

    def __call__(self, step, max_steps):
        return 0.5 ** (step // self.every)


METRICS.add(Metric("val/perplexity", "tokens", of=lambda val: (val.nats / val.targets).exp()))
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of the user's module, and the overrides that name the module and the folder of the YAML files."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_training.py").write_text(MODULE)
    for group, name, text in (
        ("optimizer", "mine", "lr: 0.1\nmomentum: 0.5\n"),
        ("scheduler", "halving", "every: 4\n"),
    ):
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / f"{name}.yaml").write_text(f"name: {name}\n{text}")
    return folder, ["plugins=[my_training]", f"hydra.searchpath=[file://{folder / 'conf'}]"]


@pytest.fixture(scope="module")
def trained(run, mine, shared, tmp_path_factory) -> tuple[Path, Outcome]:
    folder, words = mine
    place = Place(shared.corpus, tmp_path_factory.mktemp("runs"), shared.data)
    path = place.runs / "run"
    outcome = run(
        "train.py",
        *place.overrides,
        *words,
        "optimizer=mine",
        "optimizer.momentum=0.9",
        "scheduler=halving",
        f"run_dir={path}",
        plugins=folder,
    )
    assert (outcome.status, outcome.err) == (0, "")
    return path, outcome


def test_an_optimiser_and_a_schedule_of_ones_own_train(trained):
    path, _ = trained
    rates = [float(row["train/lr"]) for row in curves(path)]
    assert rates == pytest.approx([0.1 * 0.5 ** (step // 4) for step in range(STEPS)], rel=1e-6)
    losses = [float(row["val/loss"]) for row in curves(path) if row["val/loss"]]
    assert losses[-1] < losses[0]


def test_their_run_is_resumed_bit_for_bit(run, mine, trained, tmp_path):
    path = without_end(trained[0], tmp_path / "run")
    folder, words = mine
    outcome = run("train.py", f"resume={path}", *words, plugins=folder)
    assert (outcome.status, outcome.err) == (0, "")
    assert_same(path, trained[0])


def test_a_metric_of_ones_own_is_logged_shown_and_kept_by_its_row_alone(trained):
    path, outcome = trained
    rows = [row for row in curves(path) if row["val/loss"]]
    assert len(rows) > 1
    for row in rows:
        assert float(row["val/perplexity"]) == pytest.approx(math.exp(float(row["val/loss"])), rel=1e-6)
    last = summary(path)["metrics"]["val/perplexity"]
    assert last == float(rows[-1]["val/perplexity"])
    shown = f"{last:,.0f}" if last >= 100 else f"{last:.4f}"
    assert f"val/perplexity {shown}" in outcome.out  # while it trains
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("val/perplexity")]  # and at the end
    assert line.split() == ["val/perplexity", shown, "tokens"]
