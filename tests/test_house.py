"""The rules of the house: who may import whom, what `import ablate` costs, what no file may hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CONFIGURATION = {"hydra", "omegaconf"}
TRAINERS = {"lightning", "lightning_fabric", "pytorch_lightning", "wandb"}
ENTRY_POINTS = {"train", "generate", "benchmark", "compare", "explain", "export"}

LOW = {"ablate.errors", "ablate.model", "ablate.data"}
RUNS = {"ablate.accounting", "ablate.compose", "ablate.run"}
TRAINED = {"ablate.generation", "ablate.training"}

# package: (what it may import of ablate, which other packages it never imports)
CONTRACT = {
    "ablate.model": (
        {"ablate.errors", "ablate.model"},
        CONFIGURATION | TRAINERS | {"datasets", "transformers"},
    ),
    "ablate.data": ({"ablate.errors", "ablate.model.registry", "ablate.data"}, CONFIGURATION | TRAINERS),
    "ablate.generation": (LOW | {"ablate.generation"}, set()),
    "ablate.interop": (LOW | RUNS | {"ablate.generation", "ablate.interop"}, set()),
    "ablate.training": (LOW | RUNS | {"ablate.generation", "ablate.training"}, set()),
    "ablate.benchmark": (
        LOW | RUNS | {"ablate.generation", "ablate.training", "ablate.page", "ablate.benchmark"},
        set(),
    ),
    "ablate.page": (LOW | RUNS | {"ablate.page"}, set()),
    "ablate": ({"ablate"}, ENTRY_POINTS),
}

LAZY = {"datasets", "lightning", "pandas", "plotly", "scipy", "statsmodels", "transformers", "wandb"}

MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:(?:home|Users|tmp)/[\w.-]+|root)/")


def within(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def files_of(package: str) -> list[Path]:
    place = ROOT / package.replace(".", "/")
    return sorted(place.rglob("*.py")) if place.is_dir() else sorted(place.parent.glob(f"{place.name}.py"))


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Every import in the file, also inside functions: its line and the full dotted name."""
    found = []
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *([node.module] if node.module else [])]
            found += [(node.lineno, ".".join([*parts, alias.name])) for alias in node.names]
    return found


def committed_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("package", CONTRACT)
def test_imports_run_one_way(package):
    may, never = CONTRACT[package]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files_of(package)
        for line, name in imports_of(path)
        if within(name, never) or (within(name, {"ablate"}) and not within(name, may))
    ]
    assert not wrong, "\n".join(wrong)


def test_import_ablate_is_light():
    code = f"""
import sys, time
import ablate
print(round(time.process_time(), 2), *sorted({LAZY!r} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, *loaded = output.split()
    assert not loaded
    assert float(seconds) < 3.0  # processor time: a busy machine does not count


def test_no_file_names_a_path_of_one_machine():
    wrong = []
    for path in committed_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        wrong += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert not wrong, "\n".join(wrong)


def test_python_files_stay_short():
    sizes = {path.relative_to(ROOT): len(path.read_bytes().splitlines()) for path in committed_files()}
    long = {str(path): n for path, n in sizes.items() if path.suffix == ".py" and path.parts[0] != "tests" and n > 400}
    assert not long
