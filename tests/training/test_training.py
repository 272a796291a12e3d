"""What training does: schedules, decay, clipping, validation, curves, precision, divergence."""

import hashlib
import importlib.util
import json
import math
import os
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

import ablate
from ablate import hardware
from ablate.errors import AblateError
from ablate.model.roles import Role
from ablate.training import callbacks
from ablate.training.module import LanguageModel
from ablate.training.optimizer import AdamW
from ablate.training.scheduler import WSD, Constant, Cosine

from .harness import PEAK_FLOPS, SCALARS, STEPS, before_step, checkpoint, curves, strict_json, summary, weights

FROZEN = ["optimizer.lr=0", "trainer.max_steps=1"]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (120, 0.1)]
)
def test_cosine(step, factor):
    assert Cosine(warmup=0.1, final=0.1)(step, 100) == pytest.approx(factor, abs=1e-12)


def test_cosine_a_quarter_down():
    expected = 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2
    assert Cosine(warmup=0.0, final=0.2)(25, 100) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (9, 1.0), (50, 1.0), (80, 1.0), (85, 0.8), (90, 0.6), (100, 0.2), (120, 0.2)]
)
def test_wsd(step, factor):
    assert WSD(warmup=0.1, decay=0.2, final=0.2)(step, 100) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.05), (9, 0.5), (19, 1.0), (99, 1.0)])
def test_constant(step, factor):
    assert Constant(warmup=0.2)(step, 100) == pytest.approx(factor, abs=1e-12)


def test_the_learning_rate_follows_the_schedule(straight):
    rates = [float(row["train/lr"]) for row in curves(straight.path)]
    schedule = Cosine(warmup=0.05, final=0.1)
    expected = [2e-3 * schedule(step, STEPS) for step in range(STEPS)]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_decay_is_on_matrices_only():
    model = ablate.build("gpt2", SCALARS)
    groups = AdamW(lr=1e-3, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)(model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim >= 2 else 0.0), name


def test_decay_goes_by_declared_roles_and_not_by_shape():
    class Odd(torch.nn.Module):
        roles: ClassVar = {"gain": Role.VECTOR, "scale": Role.MATRIX}

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(2, 2))
            self.scale = torch.nn.Parameter(torch.ones(3))

    model = Odd()
    decayed, kept = AdamW(lr=1e-3, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)(model).param_groups
    assert decayed["weight_decay"] == 0.1 and decayed["params"][0] is model.scale
    assert kept["weight_decay"] == 0.0 and kept["params"][0] is model.gain


def test_the_groups_keep_the_order_of_the_models_parameters():
    """Checkpoints number an optimiser's states by it."""
    model = ablate.build("gpt2", SCALARS)
    place = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    groups = AdamW(lr=1e-3, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)(model).param_groups
    assert len(groups) == 2
    for group in groups:
        numbers = [place[id(parameter)] for parameter in group["params"]]
        assert len(numbers) > 1 and numbers == sorted(numbers)


def test_decay_is_decoupled():
    model = torch.nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AdamW(lr=0.5, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(model.bias, before["bias"])


def test_the_curves_have_their_names(straight):
    rows = curves(straight.path)
    assert rows[0].keys() == {
        "step",
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/tokens_per_s",
        "train/mfu",
        "val/loss",
        "val/bpb",
    }
    assert [row["step"] for row in rows] == [str(step) for step in range(STEPS)]
    assert all(row["train/loss"] and row["train/grad_norm"] for row in rows)


def test_utilisation_is_flops_per_second_over_the_machines_peak(straight):
    flops = summary(straight.path)["training_flops_per_token"]
    rows = [row for row in curves(straight.path) if row["train/tokens_per_s"]]
    assert len(rows) == STEPS - 1
    for row in rows:
        assert float(row["train/mfu"]) == pytest.approx(float(row["train/tokens_per_s"]) * flops / PEAK_FLOPS, rel=1e-5)


def test_speed_is_the_tokens_of_the_steps_over_their_seconds_without_validation(place, monkeypatch):
    """On a clock of the test's own: a step takes a quarter of a second, a batch of validation a hundred."""
    seconds = [0.0]
    before_step(monkeypatch, lambda module, batch: seconds.append(seconds[-1] + 0.25))
    original = LanguageModel.validation_step

    def validation_step(self, batch, batch_idx):
        seconds.append(seconds[-1] + 100)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "validation_step", validation_step)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: seconds[-1]))
    run = place.train()
    rates = [float(row["train/tokens_per_s"]) for row in curves(run) if row["train/tokens_per_s"]]
    assert rates == [4 * 32 / 0.25] * (STEPS - 1)
    assert summary(run)["speed"]["train_tokens_per_s"] == 4 * 32 / 0.25
    assert seconds[-1] > 100


def test_the_measured_rate_of_matrix_products_is_that_of_the_fastest(monkeypatch):
    """On a clock of the test's own, which gives one product half a second, and the others one."""
    ticks = iter([float(n) - 0.5 * (n > 12) for n in range(40)])
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert hardware.measured_flops(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.5


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ([], [3, 7, 9]),
        (["trainer.max_steps=3"], [2]),
        (["trainer.max_steps=4"], [3]),
        (["trainer.max_steps=5", "trainer.accumulate_grad_batches=2"], [1, 3, 4]),
    ],
)
def test_the_last_step_is_always_validated(straight, place, options, validated):
    run = place.train(*options) if options else straight.path
    rows = curves(run)
    assert [int(row["step"]) for row in rows if row["val/loss"]] == validated
    assert rows[-1]["val/loss"] == str(summary(run)["metrics"]["val/loss"])
    assert (run / "checkpoints" / f"step={validated[-1] + 1}.ckpt").is_file()


def test_training_lowers_the_loss(straight):
    losses = [float(row["val/loss"]) for row in curves(straight.path) if row["val/loss"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < math.log(300)


def validation_documents(place):
    """The documents whose content hash lies in the lowest fifth."""
    texts = [path.read_bytes() for path in sorted(place.corpus.iterdir())]
    chosen = [t for t in texts if int.from_bytes(hashlib.sha256(t).digest()[:8], "big") < 0.2 * 2**64]
    assert 1 < len(chosen) < len(texts)
    return [text.decode() for text in chosen]


def test_validation_is_each_document_by_itself_in_nats_and_bits(straight, place):
    """By hand: each document opened and ended by eot, in pieces of at most the context."""
    run = ablate.load(straight.path)
    documents = validation_documents(place)
    nats = torch.zeros((), dtype=torch.float64)
    targets = 0
    for document in documents:
        ids = [run.tokenizer.eot, *run.tokenizer.encode(document), run.tokenizer.eot]
        for start in range(0, len(ids) - 1, 32):
            piece = torch.tensor([ids[start : start + 33]])
            with torch.no_grad():
                log_p = run.model(piece[:, :-1]).log_softmax(-1)
            nats -= log_p.gather(-1, piece[:, 1:, None]).double().sum()
            targets += piece.shape[1] - 1
    size = sum(len(document.encode()) for document in documents)
    metrics = run.summary["metrics"]
    assert metrics["val/loss"] == pytest.approx(nats.item() / targets, rel=1e-6)
    assert metrics["val/bpb"] == pytest.approx(nats.item() / math.log(2) / size, rel=1e-6)
    assert run.summary["corpus"]["val_tokens"] == targets
    assert run.summary["corpus"]["val_bytes"] == size


@pytest.fixture(scope="module")
def frozen_loss(shared):
    return summary(shared.train(*FROZEN))["metrics"]["val/loss"]


@pytest.mark.parametrize(
    "options",
    [
        ["data.document_mask=false"],
        ["data.restart_positions=false", "data.packing=best_fit"],
        ["data.packing=padded", "data.batch_size=3"],
    ],
    ids=lambda options: ",".join(options),
)
def test_validation_does_not_depend_on_how_training_packs(place, frozen_loss, options):
    run = place.train(*FROZEN, *options)
    assert summary(run)["metrics"]["val/loss"] == pytest.approx(frozen_loss, abs=1e-6)


def test_document_mask_and_positions_do_change_training(place):
    options = ["model/position=learned", "trainer.max_steps=3"]
    switches = ([], ["data.document_mask=false"], ["data.restart_positions=false"])
    assert len({curves(place.train(*options, *switch))[-1]["train/loss"] for switch in switches}) == 3


def test_a_learning_rate_of_zero_changes_no_weight(place, straight):
    """Checks the assumption of the tests above."""
    run = place.train(*FROZEN)
    fresh = ablate.build("gqa_rope", [*SCALARS, "model.vocab_size=300"])
    loaded = ablate.load(run).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in fresh.state_dict().items())
    assert weights(run) != weights(straight.path)


def stepped_norms(monkeypatch):
    """The norm of all gradients that the optimiser stepped with, at each step."""
    seen = []
    original = LanguageModel.configure_optimizers

    def configure_optimizers(self):
        configured = original(self)

        def record(optimizer, args, kwargs):
            seen.append(torch.cat([p.grad.flatten() for p in self.decoder.parameters()]).norm().item())

        configured["optimizer"].register_step_post_hook(record)
        return configured

    monkeypatch.setattr(LanguageModel, "configure_optimizers", configure_optimizers)
    return seen


def test_gradients_are_clipped_and_their_norm_told(place, monkeypatch):
    norms = stepped_norms(monkeypatch)
    told = [float(row["train/grad_norm"]) for row in curves(place.train("trainer.gradient_clip_val=0.01"))]
    assert all(norm > 0.1 for norm in told)
    assert norms == pytest.approx([0.01] * STEPS, rel=1e-3)


def test_without_clipping_gradients_stay(place, monkeypatch):
    norms = stepped_norms(monkeypatch)
    told = [float(row["train/grad_norm"]) for row in curves(place.train("trainer.gradient_clip_val=null"))]
    assert norms == pytest.approx(told, rel=1e-5)
    assert max(norms) > 1.0


def test_accumulation_is_the_mean_over_its_batches(place, monkeypatch):
    """Two batches of 2 rows are one of 4: same tokens, same update."""
    options = ["trainer.max_steps=1", "data.packing=concat"]
    whole = place.train(*options, "data.batch_size=4")
    halves = place.train(*options, "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    for name, tensor in ablate.load(whole).model.state_dict().items():
        torch.testing.assert_close(ablate.load(halves).model.state_dict()[name], tensor, rtol=0, atol=2e-4)
    norms = [float(curves(run)[0]["train/grad_norm"]) for run in (whole, halves)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("logged_every", [1, 50])
def test_a_loss_that_is_no_number_ends_the_run_as_diverged(place, monkeypatch, logged_every):
    def poison(module, batch):
        if module.trainer.global_step == 5:
            with torch.no_grad():
                module.decoder.embedding.weight.fill_(float("nan"))

    before_step(monkeypatch, poison)
    with pytest.raises(AblateError, match="diverged"):
        place.train(f"trainer.log_every_n_steps={logged_every}")
    (run,) = place.folders()
    said = strict_json(run / "summary.json")
    assert said["status"] == "diverged"
    assert not (run / "model").exists()
    if logged_every == 1:
        assert said["steps"] == 6
        assert curves(run)[0]["train/loss"]


def test_a_run_that_fails_says_so(place, monkeypatch):
    def fail(module, batch):
        if module.trainer.global_step == 5:
            raise RuntimeError("out of memory")

    before_step(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        place.train()
    (run,) = place.folders()
    assert summary(run)["status"] == "failed"
    assert (run / "checkpoints/step=4.ckpt").is_file()


def test_bf16_mixed_trains_with_fused_adamw_and_clipping(place, straight, monkeypatch):
    fused = []
    original = LanguageModel.configure_optimizers

    def configure_optimizers(self):
        configured = original(self)
        fused.append(configured["optimizer"].param_groups[0]["fused"])
        return configured

    monkeypatch.setattr(LanguageModel, "configure_optimizers", configure_optimizers)
    run = place.train("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0")
    assert fused == [True]
    assert summary(run)["precision"] == "bf16-mixed"
    assert {tensor.dtype for tensor in checkpoint(run)["state_dict"].values()} == {torch.float32}
    loss, reference = (summary(path)["metrics"]["val/loss"] for path in (run, straight.path))
    assert loss != reference
    assert loss == pytest.approx(reference, abs=0.02)


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run_with_the_same_names(place, straight):
    run = place.train("compile=true")
    assert checkpoint(run)["state_dict"].keys() == checkpoint(straight.path)["state_dict"].keys()
    loss, reference = (summary(path)["metrics"]["val/loss"] for path in (run, straight.path))
    assert loss == pytest.approx(reference, abs=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wants wandb")
def test_without_an_account_wandb_is_offline(run, place, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = run("train.py", *place.overrides, "logger=wandb", f"run_dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    assert len(list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wants wandb")
def test_wandb_runs_of_one_process_stay_apart(place, monkeypatch, request):
    """Offline; the first fails in mid-training."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    started = []

    def look(module, batch):
        if module.trainer.global_step == 3:
            settings = wandb.run.settings
            started.append((wandb.run.id, settings.run_group, settings.run_job_type, settings.run_tags, wandb.run.name))
            if len(started) == 1:
                raise RuntimeError("out of memory")

    request.addfinalizer(wandb.finish)
    before_step(monkeypatch, look)
    options = ["logger=wandb", "model/norm=layernorm", "tags=[mine]", "trainer.max_steps=5"]
    with pytest.raises(RuntimeError, match="out of memory"):
        place.train(*options, f"run_dir={place.runs / 'study/one'}")
    assert wandb.run is None
    run = place.train(*options, "seed=1", f"run_dir={place.runs / 'study/two'}")
    assert wandb.run is None
    (first, *_), (second, group, job_type, tags, name) = started
    assert first != second
    assert (group, job_type, name) == ("study", "train", "two")
    assert {"mine", "model/norm=layernorm", "seed=1"} <= set(tags)
    for path in (place.runs / "study/one", run):
        assert len(list(path.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert curves(run)[-1]["val/loss"]
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
