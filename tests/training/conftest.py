import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ablate import hardware
from ablate.model.config import AXES
from ablate.training import finish

from .harness import PEAK_FLOPS, Commands, Outcome, Place, before_step, in_processes, write_corpus


@pytest.fixture(scope="package", autouse=True)
def known_peak():
    """Replaces the measured rate of matrix products: measuring it takes as long as one of these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "peak_flops", lambda device, dtype: PEAK_FLOPS)
        yield


@pytest.fixture(scope="package")
def shared(tmp_path_factory) -> Place:
    """A corpus, prepared once for all tests."""
    folder = tmp_path_factory.mktemp("shared")
    return Place(write_corpus(folder / "text"), folder / "runs", folder / "data")


@pytest.fixture
def place(shared, tmp_path) -> Place:
    """The shared corpus, and a folder for the runs of one test."""
    return Place(shared.corpus, tmp_path / "runs", shared.data)


@dataclass(frozen=True)
class Straight:
    """A run that was never stopped, and copies of its folder during it, as SIGKILL would have left it."""

    path: Path
    killed: dict[int, Path]  # during step k, counted from 1
    unsaved: Path  # after the last checkpoint, before the model was written
    batches: list[torch.Tensor]

    def killed_at(self, step: int, to: Path) -> Path:
        return Path(shutil.copytree(self.killed[step], to))


@pytest.fixture(scope="package")
def straight(shared, tmp_path_factory) -> Straight:
    folder = tmp_path_factory.mktemp("killed")
    killed, batches = {}, []

    def snapshot(module, batch):
        step = module.trainer.global_step + 1
        killed[step] = Path(shutil.copytree(module.trainer.default_root_dir, folder / f"step-{step}"))
        batches.append(batch["tokens"].clone())

    def save_model(to, *args):
        shutil.copytree(to.parent, folder / "unsaved")
        save(to, *args)

    with pytest.MonkeyPatch.context() as patch:
        save = finish.save_model
        before_step(patch, snapshot)
        patch.setattr(finish, "save_model", save_model)
        path = shared.train()
    return Straight(path, killed, folder / "unsaved", batches)


@pytest.fixture
def command(monkeypatch, capfd) -> Commands:
    """command("train.py", "model.dim=32") -> status, out, err"""
    return Commands(monkeypatch, capfd)


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """run("train.py", ...) in processes of its own -> status, out, err"""

    def start(*arguments: str, plugins: Path | None = None) -> Outcome:
        return in_processes(tmp_path_factory.mktemp("log"), *arguments, plugins=plugins)

    return start


@pytest.fixture
def registries():
    """Removes what a test registers after the test."""
    with ExitStack() as scopes:
        for registry in AXES.values():
            scopes.enter_context(registry.scoped())
        yield AXES
