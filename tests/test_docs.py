"""The pages under docs/ agree with the code."""

import importlib.util
import re
from pathlib import Path

import pytest

from ablate.model.config import AXES
from ablate.model.kernels import KERNELS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_current(page, generate):
    text = page.read_text(encoding="utf-8")
    assert generate.filled(text) == text, f"{page.name} is behind the code: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (DOCS / target).exists(), target


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_has_a_page_with_every_component(axis):
    text = (DOCS / f"{axis}.md").read_text(encoding="utf-8")
    assert all(f"### `{name}`" in text for name in AXES[axis].names())


OPTIONS = [(axis, name, option) for axis in AXES for name in AXES[axis].names() for option in AXES[axis].options(name)]


@pytest.mark.parametrize("axis, name, option", OPTIONS, ids=["-".join(triple) for triple in OPTIONS])
def test_every_option_is_explained_where_its_component_is(axis, name, option, generate):
    assert generate.explained(AXES[axis].component(name), option)


def test_every_kernel_is_described():
    text = (DOCS / "kernels.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in KERNELS)


LAWS = re.findall(r"^\| (\d+) [^|]*\|[^|]*\| (.*) \|$", (DOCS / "laws.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_there_are_twelve_laws():
    assert [int(number) for number, _ in LAWS] == list(range(1, 13))


@pytest.mark.parametrize(("number", "tests"), LAWS)
def test_the_tests_of_a_law_name_it(number, tests):
    folder = DOCS.parent
    for name in re.findall(r"`([^`]+)`", tests):
        file = DOCS.parent / name if "/" in name else folder / name
        folder = file.parent
        text = file.read_text(encoding="utf-8")
        assert re.search(rf"[Ll]aws? (\d+[, and]+)*{number}\b", text), f"{file.name} does not name law {number}"


def test_the_way_of_a_token_is_the_code():
    """Each line of docs/one_token.md that names a file and a class or function names one that is there."""
    page = (DOCS / "one_token.md").read_text(encoding="utf-8")
    folders = {"data", "training", "model", "generation"}
    places = re.findall(r"^ +([a-z]+/[a-z_]+\.py)\s+([A-Za-z_]+)(?:\.([a-z_]+))?", page, re.MULTILINE)
    assert len(places) > 15
    for file, name, method in places:
        path = Path("ablate") / file if file.split("/")[0] in folders else Path("ablate/model") / file
        text = (DOCS.parent / path).read_text(encoding="utf-8")
        assert re.search(rf"(class|def) {name}\b|self\.{name}\b", text), f"{file}: no {name}"
        assert not method or f"def {method}(" in text or method == "forward", f"{file}: no {name}.{method}"
