"""A run with mixtures of experts: curves of the routers, resuming, accumulation, saved files."""

from types import SimpleNamespace

import pytest
import torch

import ablate
from ablate.model.axes.moe import MixtureOfExperts
from ablate.training.callbacks import RouterStatistics

from .harness import STEPS, assert_same, checkpoint, curves, recorded, resume, signal_at, summary

MOE = [
    "model/ffn=cycle",
    "model.ffn.cycle=[{name:moe,experts:4,hidden:16,bias_update:0.01,capacity_factor:1.25},{name:moe,experts:3,hidden:16}]",
]
LOADS = {0: 4, 1: 3}  # layer -> experts


def shares(row, layer):
    return [float(row[f"train/router_load/{layer}.{expert}"]) for expert in range(LOADS[layer])]


def biases(state):
    return {name: tensor for name, tensor in state.items() if name.endswith("selection_bias")}


@pytest.fixture(scope="module")
def sparse(shared):
    return shared.train(*MOE)


def test_losses_and_router_statistics_are_in_the_curves(sparse):
    rows = [row for row in curves(sparse) if row["train/loss"]]
    assert len(rows) == STEPS
    for row in rows:
        for layer in LOADS:
            assert sum(shares(row, layer)) == pytest.approx(1)
        assert 0 < float(row["train/router_entropy"]) <= 1.4  # log 4
        assert 0 <= float(row["train/router_dropped"]) < 0.5
        assert float(row["train/balance_loss"]) == pytest.approx(2 * 0.01, rel=0.2)
        assert float(row["train/z_loss"]) > 0
    assert len({str(shares(row, 0)) for row in rows}) > 1
    assert any(float(row["train/router_dropped"]) > 0 for row in rows)


def test_router_statistics_come_with_the_other_curves_of_a_step_and_only_then(place):
    rows = curves(place.train(*MOE, "trainer.log_every_n_steps=3", "trainer.accumulate_grad_batches=2"))
    logged = {row["step"] for row in rows if row["train/loss"]}
    assert logged == {row["step"] for row in rows if row["train/router_load/1.2"]} == {"2", "5", "8"}


def test_a_run_without_mixtures_has_no_router_curves(straight):
    assert not [key for key in curves(straight.path)[0] if "router" in key]


def test_shares_are_those_of_the_last_batch():
    logged = []
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((values, step)))
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, log_every_n_steps=1, global_step=5, world_size=1, loggers=[logger]
    )
    statistics = {
        "router_load": {1: torch.tensor([3, 1]), 4: torch.tensor([0, 8])},
        "router_entropy": {1: torch.tensor(0.5), 4: torch.tensor(0.25)},
        "router_dropped": {1: torch.tensor(0.0), 4: torch.tensor(0.5)},
    }
    RouterStatistics().on_train_batch_end(trainer, None, {"statistics": statistics}, None, 7)
    load = {"1.0": 0.75, "1.1": 0.25, "4.0": 0.0, "4.1": 1.0}
    means = {"train/router_entropy": 0.375, "train/router_dropped": 0.25}
    assert logged == [({**means, **{f"train/router_load/{key}": share for key, share in load.items()}}, 4)]


def test_the_selection_bias_is_in_checkpoint_and_model(sparse):
    saved = biases(checkpoint(sparse)["state_dict"])
    loaded = biases(ablate.load(sparse).model.state_dict())
    assert list(saved) == ["decoder.blocks.0.ffn.selection_bias"]
    assert all(torch.equal(tensor, loaded[name.removeprefix("decoder.")]) for name, tensor in saved.items())
    steps = saved["decoder.blocks.0.ffn.selection_bias"] / 0.01
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert steps.any() and steps.abs().max() <= STEPS


def test_a_loaded_mixture_has_the_logits_of_the_saved_one(sparse):
    """Save, load: same logits, by the biased choice."""
    model, tokens = ablate.load(sparse).model, torch.arange(20).unsqueeze(0)
    state = {name.removeprefix("decoder."): t for name, t in checkpoint(sparse)["state_dict"].items()}
    twin = type(model)(model.config, seed=5).eval()
    twin.load_state_dict(state)
    assert torch.equal(model(tokens), twin(tokens))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_straight_run(place, monkeypatch, accumulate):
    options = [*MOE, f"trainer.accumulate_grad_batches={accumulate}"]
    whole = place.train(*options)
    with monkeypatch.context() as patch:
        signal_at(patch, 6)
        with pytest.raises(SystemExit):
            place.train(*options)
    stopped = next(folder for folder in place.folders() if folder != whole)
    assert summary(stopped)["status"] == "interrupted"
    assert_same(resume(stopped), whole)


def test_micro_batches_count_together_for_the_bias(place, monkeypatch):
    """The bias moves once a step, by the load of all its micro-batches."""
    moves, loads = [], []
    original = MixtureOfExperts.after_step

    def after_step(self):
        if self.bias_update:
            loads.append(self.load.sum().item())
            before = self.selection_bias.clone()
            original(self)
            moves.append((self.selection_bias - before).abs().max().item())

    monkeypatch.setattr(MixtureOfExperts, "after_step", after_step)
    seen = recorded(monkeypatch)
    place.train(*MOE, "trainer.accumulate_grad_batches=2")
    assert len(seen) == 2 * STEPS and len(loads) == STEPS
    assert loads == [2 * 4 * 32 * 2] * STEPS  # micro-batches, rows, context, top_k
    assert max(moves) == pytest.approx(0.01, abs=1e-6)


@pytest.mark.slow
def test_a_compiled_run_is_nearly_the_eager_run(place):
    eager, compiled = curves(place.train(*MOE)), curves(place.train(*MOE, "compile=true"))
    for one, other in zip(eager, compiled, strict=True):
        assert one.keys() == other.keys()
        assert float(one["train/loss"]) == pytest.approx(float(other["train/loss"]), abs=1e-4)
        assert float(one["train/balance_loss"]) == pytest.approx(float(other["train/balance_loss"]), rel=1e-3)
