"""Follows docs/your_own.md to the letter: adds a norm, a pattern, a metric, an optimiser and a corpus."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/your_own.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w./]+)`:\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
TINY = ["model.dim=32", "model.depth=2", "model.context=32", "data.batch_size=4", "data.vocab_size=260"]
QUICK = [
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=1",
    "trainer.log_every_n_steps=1",
    "sample.max_new_tokens=4",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's own folder, with the files of the page and a small corpus."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(20):
        (corpus / f"{number}.txt").write_text(f"text number {number} of a small corpus. " * 20, encoding="utf-8")
    return folder


def run(folder: Path, command: list[str], **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([".", str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def command_with(word: str) -> list[str]:
    """The words of the page's command that holds `word`."""
    (line,) = [line for line in COMMANDS if word in line]
    return shlex.split(line.replace("$ABLATE", str(ROOT)))


def test_the_page_has_its_files():
    """One class and one YAML file each; a metric is a row."""
    modules, nodes = ([name for name in FILES if name.endswith(end)] for end in (".py", ".yaml"))
    assert sorted(modules) == ["my_corpus.py", "my_parts.py", "my_training.py"]
    assert len(nodes) == sum(FILES[name].count(".register(") for name in modules) == 6
    assert FILES["my_training.py"].count("METRICS.add(") == 1


def test_the_model_of_the_page_trains(folder):
    python, *command = command_with("model/norm=scalenorm")
    assert python == "python"
    places = ["data=text", "data.path=corpus", "paths.data=prepared", "run_dir=run"]
    done = run(folder, [*command, *TINY, *QUICK, *places])
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in ("scalenorm", "dilated", "dilation=2", "reglu"))


def test_the_optimiser_schedule_metric_and_corpus_of_the_page_train(folder):
    _, *command = command_with("optimizer=sgd")
    done = run(folder, [*command, *TINY, *QUICK, "paths.data=prepared", "run_dir=trained"])
    assert done.returncode == 0, done.stderr
    assert "val/perplexity" in done.stdout and "numbers:" in done.stdout
    summary = json.loads((folder / "trained/summary.json").read_text())
    with (folder / "trained/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val/perplexity"]) == summary["metrics"]["val/perplexity"]
    assert float(rows[0]["train/lr"]) == pytest.approx(0.1)
    assert list((folder / "prepared").glob("numbers-*"))


def test_the_laws_run_over_the_parts_of_the_page(folder):
    setting, _, *arguments, tests = command_with("pytest")
    name, value = setting.split("=")
    chosen = "alive and (scalenorm or dilated or reglu)"
    done = run(folder, [*arguments, tests, "-q", "-k", chosen, "-p", "no:cacheprovider"], **{name: value})
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b4 passed", done.stdout), done.stdout  # eps, window, dilation, hidden
