"""A corpus of a user's own costs one class and one YAML file, outside of the tree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.compose import compose_config
from ablate.data import CORPORA, Corpus

ROOT = Path(__file__).parent.parent.parent
MODULE = '''
from ablate.data import CORPORA, Corpus


@CORPORA.register("counting")
class Numbers(Corpus):
    """The numbers in order, some to a document."""

    def __init__(self, *, length: int = 20):
        self.length = length

    def documents(self):
        for first in range(50):
            yield " ".join(str(first + i) for i in range(self.length))

    def fingerprint(self):
        return f"counting {self.length}"
'''
YAML = """
defaults:
  - /base_corpus
  - _self_

name: counting
length: 20
"""
TASK_YAML = """
# @package _global_
defaults:
  - /base_task
  - _self_

data:
  name: parity
  symbols: 2
"""
NAMED = {"stdlib": {}, "text": {"path": "x"}, "hub": {"path": "x"}}
TINY = ["model.dim=32", "model.depth=1", "model.context=32", "data.batch_size=4", "data.vocab_size=270"]
QUICK = ["trainer.max_steps=2", "trainer.accelerator=cpu", "sample=null", "paths.data=prepared", "run_dir=run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's own folder: the module and its YAML, nothing else."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_corpus.py").write_text(MODULE, encoding="utf-8")
    group = folder / "my_conf" / "data"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text(YAML, encoding="utf-8")
    return folder


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([".", str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    mine = ["plugins=[my_corpus]", "hydra.searchpath=[file://my_conf]", "data=mine"]
    command = [sys.executable, str(ROOT / "train.py"), *mine, *TINY, *QUICK, *overrides]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_it_trains_from_one_class_and_one_yaml(folder):
    done = train(folder, "data.length=30")
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "finished"
    assert summary["corpus"]["train_documents"] + summary["corpus"]["val_documents"] == 50
    (prepared,) = (folder / "prepared").iterdir()
    assert prepared.name.startswith("counting-")  # the registered name, not that of the class
    assert json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))["corpus"] == "counting"


def test_its_options_are_checked_as_those_of_any_corpus(folder):
    done = train(folder, "data.length=many")
    assert done.returncode == 1
    assert done.stderr.startswith("error: data.length='many': expected a whole number"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_corpus_that_is_not_registered_has_no_name():
    with pytest.raises(LookupError, match=r"Nameless is not registered; use @CORPORA.register"):
        _ = type("Nameless", (Corpus,), {})().name
    assert {name: CORPORA.build({"name": name, **path}).name for name, path in NAMED.items()} == {n: n for n in NAMED}


def test_a_task_of_ones_own_has_short_local_windows_as_well(folder):
    (folder / "my_conf" / "data" / "parity.yaml").write_text(TASK_YAML, encoding="utf-8")
    search = f"hydra.searchpath=[file://{folder / 'my_conf'}]"
    config = compose_config("train", [search, "data=parity", "model/pattern=alternating"])
    assert config.model.pattern.window == 4 and config.data.vocab_size == 3
