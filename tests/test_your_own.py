"""docs/your_own.md is followed to the letter."""

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
QUICK = ["trainer.max_steps=2", "trainer.accelerator=cpu", "sample.max_new_tokens=4", "data=text"]


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


def test_the_page_has_its_files():
    assert len(FILES) == 4 and "my_parts.py" in FILES


def test_the_model_of_the_page_trains(folder):
    (line,) = [line for line in COMMANDS if "train.py" in line]
    python, script, *overrides = shlex.split(line)
    assert python == "python"
    places = ["data.path=corpus", "paths.data=prepared", "run_dir=run"]
    done = run(folder, [str(ROOT / script), *overrides, *TINY, *QUICK, *places])
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in ("scalenorm", "dilated", "dilation=2", "reglu"))


def test_the_laws_run_over_the_parts_of_the_page(folder):
    (line,) = [line for line in COMMANDS if "pytest" in line]
    setting, _, *arguments, tests = shlex.split(line)
    name, value = setting.split("=")
    chosen = "alive and (scalenorm or dilated or reglu)"
    done = run(folder, [*arguments, str(ROOT / tests), "-q", "-k", chosen, "-p", "no:cacheprovider"], **{name: value})
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b4 passed", done.stdout), done.stdout  # eps, window, dilation, hidden
