"""Diagnostic tasks as runs: their folder, their metric, resuming, and what is refused before training."""

import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import ablate
from ablate.compose import compose_config, config_dir
from ablate.data import CORPORA, Task
from ablate.training import job
from ablate.training.module import LanguageModel
from ablate.training.parts import assemble

from .harness import assert_refused, assert_same, curves, recorded, resume, signal_at, summary

CONF = Path(config_dir()) / "data"
TASKS = [name for name in CORPORA.names() if issubclass(CORPORA.component(name), Task)]
SMALL = {
    "copy": ["data.distance=5"],
    "recall": ["data.pairs=3"],
    "induction": ["data.symbols=12", "data.longest=8"],
    "leak": ["data.document_mask=false"],
}
TINY = [
    "model.dim=32",
    "model.context=16",
    "data.batch_size=4",
    "data.val_rows=10",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
]


def overrides(task: str, path: Path, *more: str) -> list[str]:
    return [f"data={task}", *SMALL[task], *TINY, f"paths.runs={path / 'runs'}", f"paths.data={path / 'data'}", *more]


def train(task: str, path: Path, *more: str) -> Path:
    merged = overrides(task, path, *more)
    config = compose_config("train", merged)
    job.train(config, merged)
    return Path(config.run_dir)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_leaves_a_whole_run_folder(task, tmp_path):
    run = train(task, tmp_path)
    said = summary(run)
    assert said["status"] == "finished" and said["steps"] == 4
    assert said["corpus"]["name"] == task and said["corpus"]["val_rows"] == 10
    assert said["metrics"].keys() >= {"train/loss", "val/loss", "val/accuracy"}
    assert "val/bpb" not in said["metrics"] and "val/bpb" not in curves(run)[0]
    assert {file.name for file in (run / "model").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (tmp_path / "data").exists()  # nothing was prepared
    loaded = ablate.load(run)
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size == said["corpus"]["vocabulary"]
    text = ablate.generate(loaded.model, loaded.tokenizer, "3 0 5", max_new_tokens=4)
    assert "3 0 5" + text == "3 0 5" + "".join(f" {i}" for i in loaded.tokenizer.encode(text))


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_is_the_share_of_scored_targets_whose_logit_is_the_largest(task, tmp_path):
    run = train(task, tmp_path, "model.logit_softcap=5")
    model = ablate.load(run).model
    batch = assemble(compose_config("train", overrides(task, tmp_path)))
    batch = batch.corpus.open(batch.data, 0, tmp_path).val[range(10)]
    with torch.no_grad():
        logits = model(batch["tokens"], batch["positions"], batch.get("documents"))
    right = scored = 0
    for row, targets in zip(logits.tolist(), batch["targets"].tolist(), strict=True):
        for scores, target in zip(row, targets, strict=True):
            scored += target != -100
            right += target != -100 and max(scores) == scores[target]
    assert scored == summary(run)["corpus"]["val_targets"]
    assert summary(run)["metrics"]["val/accuracy"] == pytest.approx(right / scored, abs=1e-6)


def test_a_stopped_run_goes_on_with_the_rows_that_come_next(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        batches = recorded(patch)
        straight = train("recall", tmp_path)
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        with pytest.raises(SystemExit) as stop:
            train("recall", tmp_path, f"run_dir={tmp_path / 'stopped'}")
    assert stop.value.code == 128 + signal.SIGTERM
    later = recorded(monkeypatch)
    assert_same(resume(tmp_path / "stopped"), straight)
    assert len(batches) == 4 and [torch.equal(*pair) for pair in zip(later, batches[3:], strict=True)] == [True]
    assert len(torch.cat(batches).unique(dim=0)) == 16  # no row comes twice


def test_max_rows_brings_the_same_rows_again(tmp_path, monkeypatch):
    batches = recorded(monkeypatch)
    train("copy", tmp_path, "debug=overfit", "trainer.max_steps=3")
    assert len(torch.cat(batches)) == 12 and len(torch.cat(batches).unique(dim=0)) == 4


def test_two_models_of_a_seed_see_the_same_rows(tmp_path, monkeypatch):
    batches = recorded(monkeypatch)
    for more in (["seed=1"], ["seed=1", "model/pattern=local", "data.workers=1"], ["seed=2"]):
        train("recall", tmp_path, *more)
    one, same, other = (torch.cat(batches[i : i + 4]) for i in (0, 4, 8))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_run_says_accuracy_and_chance(command, tmp_path):
    outcome = command("train.py", *overrides("copy", tmp_path, f"run_dir={tmp_path / 'run'}"))
    assert outcome.status == 0, outcome
    accuracy = summary(tmp_path / "run")["metrics"]["val/accuracy"]
    assert f"{accuracy:.4f}, where chance is 0.0312" in outcome.out
    assert "copy: rows without end" in outcome.out and "bpb" not in outcome.out
    outcome = command("generate.py", f"run={tmp_path / 'run'}", "prompt='3 17 5'", "max_new_tokens=2", "temperature=0")
    assert outcome.status == 0 and outcome.out.startswith("3 17 5"), outcome
    assert_refused(command("generate.py", f"run={tmp_path / 'run'}", "prompt='def '"), "'def '", "vocabulary")


# --- configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_yaml_shows_the_options_with_their_defaults(task):
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{task}.yaml"))["data"]
    kind = CORPORA.component(task)
    options = {name: node.pop(name) for name in CORPORA.options(task)}
    assert options == {name: parameter.default for name, parameter in CORPORA.options(task).items()}
    shared = OmegaConf.to_container(OmegaConf.load(CONF.parent / "base_task.yaml"))["data"]
    assert {*node, *shared} == {"name", *kind.Settings.__dataclass_fields__}


def test_the_command_line_has_the_last_word_over_a_task():
    config = compose_config("train", ["trainer.max_steps=7", "data=copy", "model.dim=16", "model=gpt2"])
    assert (config.trainer.max_steps, config.model.dim, config.model.depth) == (7, 16, 2)
    assert config.model.vocab_size == 33
    assert compose_config("train", ["data=copy", "data.symbols=5"]).model.vocab_size == 6


def test_windows_are_small_where_rows_are_short():
    def window(*overrides):
        return compose_config("train", list(overrides)).model.pattern.get("window")

    for task in TASKS:
        assert window(f"data={task}") is None
        for pattern in ("local", "alternating"):
            assert window(f"data={task}", f"model/pattern={pattern}") == 4
    assert window("data=copy", "model/pattern=local", "model.pattern.window=9") == 9
    assert window("model/pattern=local") == 128


@pytest.mark.parametrize(
    ("task", "wrong", "said"),
    [
        ("copy", ["data.symbols=1"], ["data.symbols=1", "at least 2"]),
        ("copy", ["data.symbols=many"], ["data.symbols='many'", "a whole number"]),
        ("copy", ["data.distance=16"], ["data.distance=16", "context of 16"]),
        ("recall", ["data.pairs=5"], ["data.pairs=5", "20 tokens", "context of 16"]),
        ("recall", ["data.symbols=4"], ["data.pairs=3", "data.symbols=4"]),
        ("induction", ["data.longest=15", "data.symbols=20"], ["data.longest=15", "context of 16"]),
        ("leak", ["model.context=15"], ["data.context=15", "even"]),
        ("copy", ["data.vocab_size=40"], ["data.vocab_size=40", "33"]),
        ("copy", ["data.val_rows=0"], ["data.val_rows=0"]),
        ("copy", ["data.packing=concat"], ["data.packing"]),
        ("copy", ["+data.packing=concat"], ["data.packing", "'copy' has no option"]),
        ("copy", ["+data.tokenizer=gpt2"], ["data.tokenizer", "'copy' has no option"]),
        ("copy", ["data.document_mask=false"], ["data.document_mask"]),
        ("copy", ["+data.document_mask=false"], ["data.document_mask", "'copy' has no option"]),
    ],
)
def test_a_task_that_cannot_be_is_refused_before_training(task, wrong, said, command, tmp_path, monkeypatch):
    monkeypatch.setattr(LanguageModel, "training_step", None)
    assert_refused(command("train.py", *overrides(task, tmp_path, *wrong)), *said)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
