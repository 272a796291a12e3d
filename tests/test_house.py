"""Rules for all files: which module may import which, what `import ablate` costs, what no file may contain."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CONFIGURATION = {"hydra", "omegaconf"}
TRAINERS = {"lightning", "lightning_fabric", "pytorch_lightning", "wandb"}

# The rooms of ablate/ from the ground up. A room imports from the floors below its own, and from itself.
FLOORS = [
    {"errors"},
    {"check", "words"},
    {"files", "registry", "overrides", "metrics"},
    {"model", "data", "page"},
    {"compose", "hardware", "accounting"},
    {"cli", "run", "generation"},
    {"training"},
    {"benchmark"},
    {"study"},
]
# What these rooms never import, also inside functions.
NEVER = {"model": CONFIGURATION | TRAINERS | {"datasets", "transformers"}, "data": CONFIGURATION | TRAINERS}

LAZY = {"datasets", "lightning", "pandas", "plotly", "scipy", "transformers", "wandb"}

MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:(?:home|Users|tmp)/[\w.-]+|root)/")


def within(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


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


# --- who imports whom ------------------------------------------------------------------------------


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package stands for its __init__.py."""
    paths = sorted((ROOT / "ablate").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, for their types alone too."""
    known = modules()

    def target(name: str) -> str:
        return name if name in known else target(name.rpartition(".")[0])

    return {
        module: {target(name) for _, name in imports_of(path) if within(name, {"ablate"})} - {module}
        for module, path in known.items()
    }


def rooms_of(package: str) -> dict[str, set[str]]:
    """What lies directly in a package -> what of the same package it imports. Its __init__.py only hands out."""

    def room(module: str) -> str | None:
        return module[len(package) + 1 :].partition(".")[0] or None if within(module, {package}) else None

    found: dict[str, set[str]] = {}
    for module, imported in arrows().items():
        if one := room(module):
            found.setdefault(one, set()).update(other for name in imported if (other := room(name)) not in (None, one))
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others():
    assert not circle(arrows())


@pytest.mark.parametrize("package", [name for name, path in modules().items() if path.name == "__init__.py"])
def test_the_rooms_of_a_package_import_one_way(package):
    assert not circle(rooms_of(package))


def test_every_room_has_a_floor_and_every_floor_is_there():
    named = [room for floor in FLOORS for room in floor]
    assert sorted(named) == sorted(rooms_of("ablate"))


def test_rooms_import_from_the_floors_below_alone():
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    wrong = [
        f"{room} imports {other}"
        for room, imported in rooms_of("ablate").items()
        for other in imported
        if floor_of[other] >= floor_of[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_an_entry_point():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    wrong = [
        f"{module} imports {name}"
        for module, path in modules().items()
        for _, name in imports_of(path)
        if name.partition(".")[0] in scripts
    ]
    assert scripts and not wrong


@pytest.mark.parametrize("room", NEVER)
def test_what_a_room_never_imports(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in modules().items()
        if within(module, {f"ablate.{room}"})
        for line, name in imports_of(path)
        if within(name, NEVER[room])
    ]
    assert not wrong, "\n".join(wrong)


# --- what importing costs, what files hold -----------------------------------------------------------


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
