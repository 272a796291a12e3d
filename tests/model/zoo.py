"""Tiny decoders, drawn from the registries, so that the laws test every registered component.

ABLATE_PLUGINS=my_parts,more adds the components of your own modules.
"""

import os
import typing
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from ablate.errors import AblateError
from ablate.model.axes.position import POSITIONS
from ablate.model.config import AXES, DecoderConfig, load_plugins
from ablate.model.decoder import Decoder
from ablate.model.given import Given
from ablate.model.kernels import KERNELS, Place

load_plugins([module for module in os.environ.get("ABLATE_PLUGINS", "").split(",") if module])

SCALARS = {"dim": 32, "depth": 2, "heads": 4, "context": 32, "vocab_size": 61}
BASE = {
    "norm": "rmsnorm",
    "placement": "pre",
    "attention": "gqa",
    "position": "rope",
    "pattern": "full",
    "ffn": "swiglu",
}
# Values of options in a tiny model, for every component whose signature has the option.
SMALL = {
    "window": 5,
    "kv_heads": 2,
    "stride": 3,
    "block": 4,
    "summary": 1,
    "experts": 4,
    "top_k": 2,
    "original_context": 16,
}


# --- nodes ---------------------------------------------------------------------------------------


def small(axis: str, name: str, **options) -> dict:
    """A component's node, with the options that it has set to sizes that matter in a tiny model."""
    takes = AXES[axis].options(name)
    return {"name": name, **{key: value for key, value in SMALL.items() if key in takes}, **options}


def singles(axis: str) -> list[dict]:
    """Every component, also with each of its options that name a variant (a `Literal`) at every choice."""
    found = []
    for name in AXES[axis].names():
        found.append(small(axis, name))
        for option, hint in typing.get_type_hints(AXES[axis].component(name).__init__).items():
            if option in AXES[axis].options(name):
                default = AXES[axis].options(name)[option].default
                found += [small(axis, name, **{option: choice}) for choice in choices(hint) if choice != default]
    return found


def choices(hint: object) -> list:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [choice for part in typing.get_args(hint) for choice in choices(part)]


def cycles(axis: str) -> list[dict]:
    """Cycles of two: each component with the next, so that each is in two of them."""
    names = AXES[axis].names()
    if axis == "position":
        names = [name for name in names if not POSITIONS.component(name).absolute]
    members = [small(axis, name) for name in names]
    if len(members) == 1:  # then with itself, another way
        options = list(AXES[axis].options(names[0]))
        members += [altered(axis, names[0], option) for option in options[:1]]
    pairs = list(zip(members, members[1:] + members[:1], strict=True)) if len(members) > 1 else []
    return [{"cycle": [first, second]} for first, second in pairs]


def nodes(axis: str) -> list[dict]:
    return singles(axis) + cycles(axis)


def settled(row: dict) -> dict:
    """The row with all experts of a mixture chosen: rounding cannot make it choose others, which is no small change."""

    def settle(node: dict) -> dict:
        if "cycle" in node:
            return {"cycle": [settle(member) for member in node["cycle"]]}
        return {**node, "top_k": node["experts"]} if "experts" in node else node

    return {axis: settle(node) for axis, node in row.items()}


def label(node: dict) -> str:
    members = node.get("cycle", [node])
    return "+".join("=".join(v for k, v in member.items() if isinstance(v, str)) for member in members)


def labels(row: dict) -> str:
    return "-".join(label(node) for node in row.values())


def all_pairs(domains: dict[str, list]) -> list[dict]:
    """Rows in which any two values of any two axes meet: greedy, and the same every time."""
    axes = list(domains)
    missing = {
        ((a, i), (b, j))
        for a, b in combinations(axes, 2)
        for i in range(len(domains[a]))
        for j in range(len(domains[b]))
    }
    order = {axis: place for place, axis in enumerate(axes)}

    def pair(a: str, i: int, b: str, j: int) -> tuple:
        return ((a, i), (b, j)) if order[a] < order[b] else ((b, j), (a, i))

    used = {(axis, i): 0 for axis in axes for i in range(len(domains[axis]))}
    rows = []
    while missing:
        first, second = min(missing, key=lambda p: (order[p[0][0]], p[0][1], order[p[1][0]], p[1][1]))
        row = dict([first, second])
        for axis in axes:
            if axis not in row:
                gains = [
                    (sum(pair(axis, i, other, j) in missing for other, j in row.items()), -used[axis, i], -i)
                    for i in range(len(domains[axis]))
                ]
                row[axis] = -max(gains)[2]
        missing -= {pair(a, row[a], b, row[b]) for a, b in combinations(axes, 2)}
        for axis, i in row.items():
            used[axis, i] += 1
        rows.append({axis: domains[axis][row[axis]] for axis in axes})
    return rows


def models() -> list[dict]:
    """Every component, and a cycle or two, of every axis, next to every one of every other."""
    cycled = {axis: cycles(axis) for axis in AXES}
    return all_pairs({axis: singles(axis) + (cycled[axis] if axis == "pattern" else cycled[axis][:1]) for axis in AXES})


def given(**sizes) -> Given:
    """What a component on its own is given."""
    return Given(
        **{"dim": 32, "heads": 4, "bias": False, "context": 64, "depth": 2, "layer": 0, "head_dim": 8, **sizes}
    )


# --- models --------------------------------------------------------------------------------------


def config(**changes) -> DecoderConfig:
    """The base model, changed: scalars by value, axes by name or node."""
    plain = {**SCALARS, **{axis: small(axis, name) for axis, name in BASE.items()}}
    for key, value in changes.items():
        plain[key] = small(key, value) if key in AXES and isinstance(value, str) else value
    return DecoderConfig.from_dict(plain)


def build(*, seed: int = 0, **changes) -> Decoder:
    """A decoder in which no parameter is at a value that hides it (biases 0, gains 1)."""
    model = Decoder(config(**changes), seed=seed)
    unnormed = any(layer["norm"]["name"] == "none" for layer in model.config.layers())
    return stirred(model, by=0.05 if unnormed else 0.15)  # without norms, activations grow from layer to layer


def stirred(model: Decoder, seed: int = 1, by: float = 0.15) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


def twin(model: Decoder, **changes) -> Decoder:
    """The same weights in a model that is configured otherwise."""
    other = Decoder(DecoderConfig.from_dict({**model.config.to_dict(), **changes}))
    other.load_state_dict(model.state_dict())
    return other


def kernels_here(gradient: bool) -> list[str]:
    """The kernels that compute a plain layer here."""
    scores = Decoder(config()).layers[0].scores
    return [name for name in KERNELS if KERNELS[name].refusal(scores, Place("cpu", torch.float32, gradient)) is None]


def random_tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(SCALARS["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def documents_of(lengths: list[int], batch: int = 1) -> Tensor:
    """`[batch, sum(lengths)]`: document 0, 1, ... one after another."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).expand(batch, -1)


def spans(lengths: list[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def embedded(model: Decoder, tokens: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
    """Logits, and the token embeddings `[B, T, D]` that they were computed from."""
    seen = []
    handle = model.embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    logits = model(tokens, **kwargs)
    handle.remove()
    return logits, seen[0]


def gradients(model: Decoder, tokens: Tensor, **kwargs) -> dict[str, Tensor]:
    """Of a random linear functional of the logits, with respect to every parameter."""
    logits = model(tokens, **kwargs)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((logits * direction).sum(), parameters), strict=True))


# --- what an option may be changed to --------------------------------------------------------------


def altered(axis: str, name: str, option: str) -> dict:
    """The component's small node with one option at another valid value."""
    node = AXES[axis].check(small(axis, name))
    hint = typing.get_type_hints(AXES[axis].component(name).__init__)[option]
    for value in alternatives(hint, node[option]):
        changed = {**node, option: value}
        try:
            Decoder(config(**{axis: changed}))
        except AblateError:
            continue
        return changed
    raise AssertionError(f"no other valid value found for {axis} {name}.{option}: teach zoo.alternatives")


def alternatives(hint: object, value: object) -> list:
    """Other values of a type, the likeliest to be valid first."""
    if typing.get_origin(hint) is typing.Literal:
        return [choice for choice in typing.get_args(hint) if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, value - 1, value // 2, value * 4]
    if isinstance(value, float):
        return [0.5 if value < 0.01 else value * 2, value / 2]
    if hint == str | dict:  # the expert of a mixture
        return [name for name in AXES["ffn"].names() if name != value]
    if value is None:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        fresh = {bool: [True, False], int: [2, 4, 16, 64, 256], float: [0.5, 2.0], str: []}
        return [choice for kind in kinds for choice in fresh.get(kind, typing.get_args(kind))]
    return []


# --- the patterns, counted by hand -------------------------------------------------------------------


def visible(pattern, length: int) -> list[list[bool]]:
    """`visible[query][key]`, one pair at a time."""
    return [
        [key <= query and bool(pattern.allowed(torch.tensor(query), torch.tensor(key))) for key in range(length)]
        for query in range(length)
    ]


def hand_reach(table: list[list[bool]]) -> int:
    return max(query - key + 1 for query, row in enumerate(table) for key, seen in enumerate(row) if seen)
