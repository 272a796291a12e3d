"""Tiny runs in this process, the real commands in this process, and what they leave behind."""

import csv
import importlib.util
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ablate.compose import compose_config
from ablate.training import job
from ablate.training.module import LanguageModel

ROOT = Path(__file__).parent.parent.parent
TIMING = ("train/tokens_per_s", "train/mfu")
STEPS = 10
PEAK_FLOPS = 1e11
SCALARS = ["model.dim=32", "model.depth=2", "model.heads=4", "model.context=32"]

# A plugin is loaded by every rank: what it does to this step happens in the rank and at the step that it names.
PLUGIN = """
import os, signal
from ablate.errors import AblateError
from ablate.training.module import LanguageModel

original = LanguageModel.training_step

def training_step(self, batch, batch_idx):
    if (self.trainer.global_rank, self.trainer.global_step) == ({rank}, 4):
        {action}
    return original(self, batch, batch_idx)

LanguageModel.training_step = training_step
"""


def write_corpus(folder: Path, documents: int = 24, words: int = 120) -> Path:
    """Documents of random words, one in each file: enough for 34 batches of 4 x 32."""
    chance = random.Random(0)
    known = ["def", "return", "self", "value", "for", "in", "if", "else", "import", "class", "list", "none", "while"]
    folder.mkdir(parents=True)
    for number in range(documents):
        text = " ".join(chance.choice(known) for _ in range(words + number))
        (folder / f"{number:02}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Place:
    """Where the runs of a test go: `overrides` are those of a tiny run on a small corpus."""

    corpus: Path
    runs: Path
    data: Path

    @property
    def overrides(self) -> list[str]:
        return [
            *SCALARS,
            "data=text",
            f"data.path={self.corpus}",
            "data.vocab_size=300",
            "data.batch_size=4",
            "data.val_fraction=0.2",
            f"trainer.max_steps={STEPS}",
            "trainer.val_check_interval=4",
            "trainer.log_every_n_steps=1",
            "trainer.accelerator=cpu",
            "trainer.precision=32-true",
            "sample.max_new_tokens=4",
            f"paths.runs={self.runs}",
            f"paths.data={self.data}",
        ]

    def train(self, *overrides: str) -> Path:
        """Makes a run as `train.py` does; returns its folder."""
        merged = [*self.overrides, *overrides]
        config = compose_config("train", merged)
        job.train(config, merged)
        return Path(config.run_dir)

    def folders(self) -> list[Path]:
        return run_folders(self.runs)


def run_folders(place: Path) -> list[Path]:
    return sorted(p.parent for p in place.rglob("checkpoints")) if place.exists() else []


def resume(path: Path, *overrides: str) -> Path:
    merged = [f"resume='{path}'", *overrides]
    job.train(compose_config("train", merged), merged)
    return path


def without_end(run: Path, to: Path) -> Path:
    """A copy of a finished run, as it was after its second to last checkpoint."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "model")
    (to / f"checkpoints/step={STEPS}.ckpt").unlink()
    return to


def before_step(patch: pytest.MonkeyPatch, action) -> None:
    """Calls `action(module, batch)` before the loss of every micro-batch of training."""
    original = LanguageModel.training_step

    def training_step(self, batch, batch_idx):
        action(self, batch)
        return original(self, batch, batch_idx)

    patch.setattr(LanguageModel, "training_step", training_step)


def signal_at(patch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    """Sends a signal to this process during optimiser step `step`, counted from 1, in its first micro-batch."""
    sent = []

    def send(module, batch):
        if module.trainer.global_step == step - 1 and not sent:
            sent.append(step)
            signal.raise_signal(signum)

    before_step(patch, send)


def recorded(patch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Records the tokens of every micro-batch from now on."""
    seen = []
    before_step(patch, lambda module, batch: seen.append(batch["tokens"].clone()))
    return seen


def curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in TIMING}


def strict_json(path: Path) -> dict:
    """Reads standard JSON, without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path.name} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def summary(run: Path) -> dict:
    return strict_json(run / "summary.json")


def checkpoint(run: Path, step: int = STEPS) -> dict:
    return torch.load(run / "checkpoints" / f"step={step}.ckpt", weights_only=True)


def assert_same(run: Path, straight: Path) -> None:
    """Asserts that two runs ended alike, bit for bit, in everything but times."""
    assert summary(run)["status"] == summary(straight)["status"] == "finished"
    assert (run / "model/model.safetensors").read_bytes() == (straight / "model/model.safetensors").read_bytes()
    assert [untimed(row) for row in curves(run)] == [untimed(row) for row in curves(straight)]
    assert untimed(summary(run)["metrics"]) == untimed(summary(straight)["metrics"])
    assert summary(run)["steps"] == summary(straight)["steps"]
    assert summary(run).get("sample") == summary(straight).get("sample")
    last = summary(straight)["steps"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(checkpoint(run, last)[part], checkpoint(straight, last)[part], part)


def assert_same_to_rounding(run: Path, one: Path) -> None:
    """Asserts that several processes have the curves of one, which sums in another order."""
    for row, expected in zip(curves(run), curves(one), strict=True):
        assert row.keys() == expected.keys()
        for name, value in untimed(row).items():
            if value or expected[name]:
                assert float(value) == pytest.approx(float(expected[name]), rel=1e-5, abs=1e-6), name


def assert_equal(a, b, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


def in_processes(log: Path, *arguments: str, plugins: Path | None = None) -> Outcome:
    """A command in its own process; its output goes to the folder `log`."""
    path = os.pathsep.join(str(p) for p in (ROOT, plugins) if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (log / "out").open("w") as out, (log / "err").open("w") as err:
        process = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=err, timeout=300
        )
    return Outcome(process.returncode, (log / "out").read_text(), (log / "err").read_text())


def with_plugin(folder: Path, rank: int, action: str) -> Path:
    """A plugin `ranks_plugin` in `folder`, which does `action` at step 4, counted from 0, in one rank."""
    (folder / "ranks_plugin.py").write_text(PLUGIN.format(rank=rank, action=action))
    return folder


class Commands:
    """The entry points, called as a shell would call them, in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
        self._patch, self._capfd = patch, capfd

    def __call__(self, script: str, *args: str) -> Outcome:
        with self._patch.context() as patch:
            patch.delenv("HYDRA_FULL_ERROR", raising=False)
            patch.setattr(sys, "argv", [script, *args])
            patch.setattr(sys, "path", list(sys.path))
            handlers, level = list(logging.root.handlers), logging.root.level
            self._capfd.readouterr()
            status = 0
            try:
                self._main(script)()
            except SystemExit as end:
                status = end.code or 0
            finally:
                logging.root.handlers[:] = handlers
                logging.root.setLevel(level)
            out, err = self._capfd.readouterr()
            return Outcome(status, out, err)

    def _main(self, script: str):
        spec = importlib.util.spec_from_file_location(f"entry_{Path(script).stem}", ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main


def assert_refused(outcome: Outcome, *said: str) -> None:
    """Asserts exit status 1 and one line that names all of `said`."""
    assert outcome.status == 1, outcome
    assert outcome.err.count("\n") == 1 and outcome.err.endswith("\n"), outcome.err
    assert outcome.err.startswith("error: "), outcome.err
    for words in said:
        assert words in outcome.err, outcome.err
