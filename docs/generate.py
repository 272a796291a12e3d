"""Fills the generated parts of the pages in this folder: `make docs`. A test holds that they are current.

The text between `<!-- generated: NAME ARGUMENTS -->` and `<!-- end -->` is written by the function NAME below, from the
code itself: signatures, docstrings, masks, declarations.
"""

import inspect
import json
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ablate.data import CORPORA
from ablate.data.task import Task
from ablate.errors import AblateError
from ablate.model import picture
from ablate.model.config import AXES
from ablate.model.given import Given
from ablate.model.kernels import KERNELS, Place, Scores
from ablate.registry import in_words, keyword_only

FOLDER = Path(__file__).parent
CALIBRATION = FOLDER.parent / "experiments/diagnostics/results.json"
REGISTRIES = {**AXES, "data": CORPORA}
PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
BOXES = set("─│┌┐└┘├┤┬┴┼")
SMALL = {"window": 5, "stride": 4, "block": 4, "summary": 1}  # for pictures
LENGTH = 16
GIVEN = Given(dim=64, heads=8, bias=False, context=8192, depth=1, layer=0, head_dim=64)


def main() -> None:
    for page in sorted(FOLDER.glob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """A page with every generated part written anew."""

    def write(part: re.Match) -> str:
        name, *arguments = part[2].split()
        return f"{part[1]}\n{PARTS[name](*arguments)}\n\n{part[3]}"

    return PART.sub(write, page)


# --- components: their docstrings and options --------------------------------------------------------------


def components(axis: str) -> str:
    """Every component of an axis: what it is, its options, its picture."""
    return "\n\n".join(component(axis, name) for name in AXES[axis].names())


def component(axis: str, name: str) -> str:
    kind = REGISTRIES[axis].component(name)
    options = keyword_only(kind)
    parts = [f"### `{name}`", prose(inspect.cleandoc(kind.__doc__), options), options_table(axis, name)]
    return "\n\n".join(part for part in [*parts, drawing(axis, name)] if part)


def prose(doc: str, options: typing.Collection[str]) -> str:
    """A docstring without the lines that explain options; drawings become code."""
    blocks = []
    for block in doc.split("\n\n"):
        lines = block.split("\n")
        if any(set(line) & BOXES for line in lines):
            text = [line for line in lines if not set(line) & BOXES and not line.startswith(" ")]
            art = [line for line in lines if line not in text]
            blocks += ["\n".join(text), fenced("\n".join(art))]
        else:
            kept, explaining = [], False
            for line in lines:
                explaining = line.split(":")[0] in options or (explaining and line.startswith(" "))
                kept += [] if explaining else [line]
            blocks.append("\n".join(kept))
    return "\n\n".join(block for block in blocks if block.strip())


def options_table(axis: str, name: str) -> str:
    kind = REGISTRIES[axis].component(name)
    hints = typing.get_type_hints(kind.__init__)
    rows = [
        f"| `{REGISTRIES[axis].key}.{o}` | {in_words(hints[o])} | {shown(p.default)} | {explained(kind, o)} |"
        for o, p in keyword_only(kind).items()
    ]
    return "\n".join(["| option | type | default | |", "| --- | --- | --- | --- |", *rows]) if rows else "No options."


def shown(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "(needed)"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def explained(kind: type, option: str) -> str:
    """What the docstrings of a class and its bases say about an option, on one line."""
    for base in kind.__mro__:
        doc = inspect.cleandoc(base.__doc__ or "")
        found = re.search(rf"^{option}: (.*(?:\n +.*)*)", doc, re.MULTILINE)
        if found:
            return " ".join(found[1].split()).replace("|", "\\|")
    return ""


def tasks() -> str:
    """Every diagnostic task: what it is, and its options."""
    names = [name for name in CORPORA.names() if issubclass(CORPORA.component(name), Task)]
    return "\n\n".join(component("data", name) for name in names)


def calibration() -> str:
    """The measured accuracies, from the file that the measurement wrote."""
    results = json.loads(CALIBRATION.read_text(encoding="utf-8"))
    lines = ["| | run | steps | chance | accuracy, lowest to highest |", "| --- | --- | --- | --- | --- |"]
    for label, arm in results["arms"].items():
        low, high = min(arm["accuracy"].values()), max(arm["accuracy"].values())
        command = "python train.py " + " ".join(arm["overrides"])
        lines.append(f"| {label} | `{command}` | {arm['steps']} | {arm['chance']:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


# --- pictures -------------------------------------------------------------------------------------------------


def drawing(axis: str, name: str) -> str:
    """A picture drawn from the component itself, where there is one to draw."""
    if axis == "pattern":
        takes = AXES[axis].options(name)
        node = {"name": name, **{key: value for key, value in SMALL.items() if key in takes}}
        variants = [{"part": part} for part in choices(axis, name, "part")] if "part" in takes else []
        return "\n\n".join(mask({**node, **variant}) for variant in [{}, *variants])
    if axis == "placement":
        return fenced(wiring(name))
    if axis == "attention":
        options = {"kv_heads": 2} if "kv_heads" in AXES[axis].options(name) else {}
        return fenced(picture.heads_picture(AXES[axis].build({"name": name, **options}, GIVEN)))
    if axis == "position":
        return position_drawing(name)
    return ""


def choices(axis: str, name: str, option: str) -> list:
    """The values of an option of the type `Literal[...] | None`, without null."""
    optional = typing.get_type_hints(AXES[axis].component(name).__init__)[option]
    return [choice for part in typing.get_args(optional) for choice in typing.get_args(part)]


def mask(node: dict) -> str:
    options = ", ".join(f"{key}={value}" for key, value in node.items() if key != "name")
    return f"{options}:\n\n" * bool(options) + fenced(picture.mask_picture(AXES["pattern"].build(node), LENGTH))


def documents() -> str:
    """A packed row of documents of 5, 1 and 10 tokens under a full pattern."""
    ids = torch.arange(3).repeat_interleave(torch.tensor([5, 1, 10]))
    return fenced(picture.mask_picture(AXES["pattern"].build({"name": "full"}), LENGTH, ids))


def position_drawing(name: str) -> str:
    dim = 16
    position = AXES["position"].build({"name": name}, replace(GIVEN, dim=dim, head_dim=16))
    if position.biased:
        return "Weight of equal keys, by head (down) and key (across; the query is the last):\n\n" + fenced(
            picture.bias_picture(position)
        )
    if position.rotation(torch.zeros(1, 1)) is not None:
        return "Cosine of the rotation, by pair of channels (down) and position (across):\n\n" + fenced(
            picture.rotation_picture(position)
        )
    if position.absolute and not list(position.parameters()):
        return "What is added, by channel (down) and position (across):\n\n" + fenced(
            picture.embedding_picture(position, dim)
        )
    return ""


class Term:
    """Passes through a block in place of a tensor, and writes down each call and sum, line by line."""

    def __init__(self, text: str, lines: list[str]):
        self.text, self.lines = text, lines

    def __add__(self, other: "Term") -> "Term":
        return Term(f"{self.text} + {other.text}", self.lines)

    def named(self) -> "Term":
        """Gives a sum a name, on its own line, before a sublayer or norm reads it."""
        if " + " not in self.text:
            return self
        self.lines.append(f"{'hijk'[len(self.lines)]} = {self.text}")
        self.text = self.lines[-1][0]
        return self


class Part(torch.nn.Module):
    """A sublayer or norm that writes down its call."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Term, context: None = None) -> Term:
        return Term(f"{self.name}({x.named().text})", x.lines)


def wiring(name: str) -> str:
    """The formula of a placement, traced through its code."""
    block = AXES["placement"].build({"name": name}, GIVEN, Part("attention"), Part("ffn"), lambda: Part("norm"))
    lines: list[str] = []
    lines.append("y = " + block(Term("x", lines), None).text)
    return "\n".join(lines)


# --- kernels --------------------------------------------------------------------------------------------------


def kernels() -> str:
    """A table of what the kernels declare: patterns, positions, devices down, kernels across."""
    names = [name for name, kernel in KERNELS.items() if not kernel.decoding_only]
    rows = {
        **{f"pattern `{label}`": Scores(pattern, 8, 2, 64) for label, pattern in patterns()},
        "soft-cap of scores": Scores(AXES["pattern"].build({"name": "full"}), 8, 2, 64, softcap=50.0),
        **{
            f"position `{name}`": Scores(AXES["pattern"].build({"name": "full"}), 8, 2, 64, bias=position_bias(name))
            for name in AXES["position"].names()
        },
    }
    lines = [f"| | {' | '.join(f'`{name}`' for name in names)} |", "| --- |" + " --- |" * len(names)]
    for label, scores in rows.items():
        lines.append(f"| {label} | " + " | ".join(yes(KERNELS[n].refusal(scores) is None) for n in names) + " |")
    plain = Scores(AXES["pattern"].build({"name": "full"}), 8, 2, 64)
    places = {
        "CPU, forward": Place("cpu", torch.float32, gradient=False),
        "CPU, training": Place("cpu", torch.float32, gradient=True),
        "GPU, bf16 training": Place("cuda", torch.bfloat16, gradient=True),
        "GPU, fp32 training": Place("cuda", torch.float32, gradient=True),
    }
    for label, place in places.items():
        lines.append(
            f"| {label} | " + " | ".join(yes(KERNELS[n].declared_refusal(plain, place) is None) for n in names) + " |"
        )
    lines.append("| reads a cache | " + " | ".join(yes(KERNELS[n].cache) for n in names) + " |")
    return "\n".join(lines)


def patterns() -> list[tuple[str, object]]:
    return [(name, AXES["pattern"].build({"name": name})) for name in AXES["pattern"].names()]


def position_bias(name: str) -> Callable | None:
    position = AXES["position"].build({"name": name}, GIVEN)
    return position.bias if position.biased else None


def yes(holds: bool) -> str:
    return "yes" if holds else "–"


def fenced(text: str) -> str:
    return f"```text\n{text}\n```"


PARTS: dict[str, Callable[..., str]] = {
    "components": components,
    "documents": documents,
    "kernels": kernels,
    "tasks": tasks,
    "calibration": calibration,
}

if __name__ == "__main__":
    try:
        main()
    except AblateError as error:
        sys.exit(f"docs: {error}")
