"""Law 10: a resumed run equals the straight run, bit for bit. The same seed twice gives the same run."""

import json
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from torch import nn

from ablate.errors import AblateError
from ablate.training.callbacks import delay_signals
from ablate.training.module import LanguageModel

from .harness import (
    STEPS,
    assert_same,
    before_step,
    checkpoint,
    curves,
    recorded,
    resume,
    signal_at,
    summary,
    weights,
)


@pytest.mark.parametrize("step", [3, 5, 8, 9])  # 3: before the first checkpoint
def test_a_killed_run_goes_on_from_its_last_validation(straight, tmp_path, step):
    run = straight.killed_at(step, tmp_path / "run")
    assert summary(run)["status"] == "running"
    assert_same(resume(run), straight.path)


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_a_signalled_run_goes_on_from_the_step_it_finished(straight, place, monkeypatch, step):
    signal_at(monkeypatch, step)
    with pytest.raises(SystemExit) as stop:
        place.train()
    assert stop.value.code == 128 + signal.SIGTERM
    (run,) = place.folders()
    assert summary(run)["status"] == "interrupted"
    assert summary(run)["steps"] == step
    assert checkpoint(run, step)["global_step"] == step
    assert not (run / "model").exists()
    seen = recorded(monkeypatch)
    assert_same(resume(run), straight.path)
    assert len(seen) == STEPS - step  # nothing is trained twice


def test_ctrl_c_is_a_signal_too(straight, place, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    signal_at(monkeypatch, 2, signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        place.train()
    assert stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    (run,) = place.folders()
    assert_same(resume(run), straight.path)


def test_a_signal_during_the_last_step_changes_nothing(straight, place, monkeypatch):
    signal_at(monkeypatch, STEPS)
    assert_same(place.train(), straight.path)


def test_a_signal_during_validation_stops_after_the_next_step(straight, place, monkeypatch):
    original = LanguageModel.on_validation_epoch_start

    def on_validation_epoch_start(self):
        if self.trainer.global_step == 4:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    monkeypatch.setattr(LanguageModel, "on_validation_epoch_start", on_validation_epoch_start)
    with pytest.raises(SystemExit):
        place.train()
    (run,) = place.folders()
    assert summary(run)["steps"] == 5
    monkeypatch.undo()
    assert_same(resume(run), straight.path)


def test_a_run_may_be_stopped_again_and_again(straight, place, monkeypatch):
    for step in (2, 3, 6):
        with monkeypatch.context() as patch:
            signal_at(patch, step)
            with pytest.raises(SystemExit):
                resume(*place.folders()) if place.folders() else place.train()
    (run,) = place.folders()
    assert_same(resume(run), straight.path)


def test_accumulated_gradients_survive(place, tmp_path, monkeypatch):
    options = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=6"]
    killed = tmp_path / "killed"

    def snapshot(module, batch):
        if module.trainer.fit_loop.total_batch_idx == 9:  # inside step 5, the last validation was at step 4
            shutil.copytree(module.trainer.default_root_dir, killed)

    with monkeypatch.context() as patch:
        straight_batches = recorded(patch)
        before_step(patch, snapshot)
        straight = place.train(*options)
    assert len(straight_batches) == 12
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        with pytest.raises(SystemExit):
            place.train(*options, f"run_dir={tmp_path / 'signalled'}")
    batches = recorded(monkeypatch)
    assert_same(resume(tmp_path / "signalled"), straight)
    assert all(torch.equal(a, b) for a, b in zip(batches, straight_batches[6:], strict=True))
    assert_same(resume(killed), straight)


def test_a_damaged_checkpoint_is_passed_over(straight, tmp_path, capfd):
    run = straight.killed_at(10, tmp_path / "run")
    newest = run / "checkpoints/step=8.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    resume(run)
    assert "step=8.ckpt" in capfd.readouterr().out
    assert_same(run, straight.path)


def test_the_curves_of_lost_steps_are_lost_too(straight, tmp_path, monkeypatch):
    run = straight.killed_at(10, tmp_path / "run")
    (run / "checkpoints/step=8.ckpt").unlink()
    assert curves(run)[-1]["step"] == "8"
    signal_at(monkeypatch, 5)
    with pytest.raises(SystemExit):
        resume(run)
    assert [row["step"] for row in curves(run)] == ["0", "1", "2", "3", "4"]


def test_a_half_written_checkpoint_is_no_checkpoint(straight, tmp_path):
    run = straight.killed_at(10, tmp_path / "run")
    (run / "checkpoints/step=8.ckpt").rename(run / "checkpoints/.step=8.ckpt.1.tmp")
    assert_same(resume(run), straight.path)


def test_a_run_killed_before_its_model_was_written_is_finished_by_resuming(straight, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(straight.unsaved, run)
    assert not (run / "model").exists()
    seen = recorded(monkeypatch)
    assert_same(resume(run), straight.path)
    assert not seen


def test_random_numbers_go_on_where_they_were(place, monkeypatch, registries):
    @registries["norm"].register("noisy")
    class Noisy(nn.Module):
        """Draws from torch's, numpy's and Python's generators while training."""

        def __init__(self, given):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(given.dim))

        def forward(self, x):
            if self.training:
                x = nn.functional.dropout(x, 0.2) * (1 + 0.1 * np.random.rand()) * (1 + 0.1 * random.random())
            return x * self.weight

    options = ["~model.norm", "+model.norm={name:noisy}"]
    straight = place.train(*options)
    again = place.train(*options)
    signal_at(monkeypatch, 5)
    with pytest.raises(SystemExit):
        place.train(*options, f"run_dir={place.runs / 'stopped'}")
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    assert_same(resume(place.runs / "stopped"), straight)
    assert_same(again, straight)


def test_the_same_seed_twice_is_the_same_run(straight, place):
    torch.manual_seed(7)  # whatever ran before
    assert_same(place.train(), straight.path)


def test_another_seed_is_another_run(straight, place, monkeypatch):
    batches = recorded(monkeypatch)
    other = place.train("seed=1")
    assert weights(other) != weights(straight.path)
    assert curves(other)[0]["train/loss"] != curves(straight.path)[0]["train/loss"]
    assert not any(torch.equal(a, b) for a, b in zip(batches, straight.batches, strict=True))


def test_two_arms_of_one_seed_see_identical_batches(straight, place, monkeypatch):
    batches = recorded(monkeypatch)
    place.train("model/norm=layernorm", "model/ffn=gelu", "model.dim=16", "optimizer.lr=1e-4", "compile=false")
    assert len(batches) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(batches, straight.batches, strict=True))


def test_a_longer_run_starts_with_the_batches_of_a_shorter_one(straight, place, monkeypatch):
    batches = recorded(monkeypatch)
    place.train("trainer.max_steps=12")
    assert len(batches) == 12
    assert all(torch.equal(a, b) for a, b in zip(batches[:STEPS], straight.batches, strict=True))


def refusal(*args) -> str:
    with pytest.raises(AblateError) as caught:
        resume(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_resume_refuses_what_is_no_run(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")
    assert "not a run folder" in refusal(tmp_path)


def test_resume_refuses_a_finished_run_and_leaves_it_alone(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight.path, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "finished" in refusal(run)
    assert "trainer.max_steps" in refusal(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_finished_run_goes_on_to_more_steps(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight.path, run)
    resume(run, "trainer.max_steps=12")
    assert summary(run)["steps"] == 12
    assert [row["step"] for row in curves(run)] == [str(step) for step in range(12)]
    assert weights(run) != weights(straight.path)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model/norm=layernorm", "model.norm"),
        ("model.dim=64", "model.dim"),
        ("data.batch_size=2", "data.batch_size"),
        ("data.packing=best_fit", "data.packing"),
        ("optimizer.lr=1e-4", "optimizer.lr"),
        ("scheduler=constant", "scheduler"),
        ("seed=1", "seed"),
    ],
)
def test_resume_refuses_to_change_what_makes_the_run(straight, tmp_path, override, key):
    run = straight.killed_at(9, tmp_path / "run")
    message = refusal(run, override)
    assert key in message
    assert summary(run)["status"] == "running"


def test_resume_refuses_another_corpus(straight, place, tmp_path):
    run = straight.killed_at(9, tmp_path / "run")
    moved = tmp_path / "text"
    shutil.copytree(place.corpus, moved)
    (moved / "00.txt").write_text("something else\n")
    recorded_overrides = json.loads((run / "summary.json").read_text())
    recorded_overrides["overrides"] = [
        f"data.path={moved}" if o.startswith("data.path=") else o for o in recorded_overrides["overrides"]
    ]
    (run / "summary.json").write_text(json.dumps(recorded_overrides))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(place.corpus), str(moved)))
    assert "corpus" in refusal(run)


def test_a_run_without_a_readable_checkpoint_is_refused(straight, tmp_path):
    run = straight.killed_at(9, tmp_path / "damaged")
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"")
    assert "no checkpoint" in refusal(run)


def test_resume_runs_no_code_that_the_folder_names(straight, tmp_path):
    run = straight.killed_at(9, tmp_path / "run")
    content = json.loads((run / "summary.json").read_text())
    content["overrides"].append(f"+callbacks.mine={{_target_:pathlib.Path.touch,_args_:[{tmp_path / 'touched'}]}}")
    (run / "summary.json").write_text(json.dumps(content))
    assert "_target_" in refusal(run)
    assert not (tmp_path / "touched").exists()


def test_a_signal_waits_for_what_is_being_written():
    said = []
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: said.append("stopped"))
    try:
        with delay_signals():
            signal.raise_signal(signal.SIGTERM)
            said.append("written")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert said == ["written", "stopped"]
