"""Law 1: every component, option and scalar changes parameters, logits or cost. And what a new component takes."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from zoo import (
    SCALARS,
    all_pairs,
    altered,
    alternatives,
    build,
    config,
    cycles,
    label,
    labels,
    models,
    nodes,
    random_tokens,
    singles,
    small,
    visible,
)

from ablate.errors import AblateError
from ablate.model.axes.ffn import FeedForward
from ablate.model.axes.norm import NORMS
from ablate.model.axes.position import POSITIONS
from ablate.model.config import AXES, DecoderConfig
from ablate.model.context import Record
from ablate.model.decoder import Decoder
from ablate.model.given import Given
from ablate.model.kernels import KERNELS, Place
from ablate.model.masks import Pattern

TOLERANCE = {"rtol": 0, "atol": 1e-5}
HERE = Place("cpu", torch.float32, gradient=True)


def changes(before: Decoder, after: Decoder) -> set[str]:
    """In what two models differ: parameters, cost, auxiliary losses, logits after a step."""
    found = set()
    if {n: p.shape for n, p in before.named_parameters()} != {n: p.shape for n, p in after.named_parameters()}:
        found.add("parameters")
    lengths = [model.config.context for model in (before, after)]
    if before.new_cache(1, lengths[0]).nbytes != after.new_cache(1, lengths[1]).nbytes:
        found.add("cache")
    pairs = [[layer.pattern.pairs(32) for layer in model.layers] for model in (before, after)]
    if pairs[0] != pairs[1]:
        found.add("pairs")
    outputs, losses = [], []
    for model in (before, after):
        record, tokens = Record(), random_tokens(2, 24) % model.config.vocab_size
        model.hidden(tokens, record=record)
        model.after_step()
        outputs.append(model(tokens))
        losses.append({name: value.item() for name, value in record.losses.items()})
    if losses[0] != losses[1]:
        found.add("losses")
    if outputs[0].shape != outputs[1].shape or (outputs[0] - outputs[1]).abs().max() > 1e-4:
        found.add("logits")
    return found


OPTIONS = [(axis, name, option) for axis in AXES for name in AXES[axis].names() for option in AXES[axis].options(name)]


@pytest.mark.parametrize("axis, name, option", OPTIONS, ids=["-".join(triple) for triple in OPTIONS])
def test_every_option_is_alive(axis, name, option):
    before, after = AXES[axis].check(small(axis, name)), altered(axis, name, option)
    assert {key for key in before if before[key] != after[key]} == {option}
    assert changes(build(**{axis: before}), build(**{axis: after}))


COUPLES = [
    (axis, one, two) for axis in AXES for i, one in enumerate(AXES[axis].names()) for two in AXES[axis].names()[i + 1 :]
]


@pytest.mark.parametrize("axis, one, two", COUPLES, ids=["-".join(triple) for triple in COUPLES])
def test_no_two_components_are_the_same(axis, one, two):
    assert changes(build(**{axis: one}), build(**{axis: two}))


@pytest.mark.parametrize("axis", AXES)
def test_a_cycle_is_neither_of_its_members(axis):
    for node in cycles(axis):
        cycle = build(**{axis: node})
        assert all(changes(cycle, build(**{axis: member})) for member in node["cycle"])


@pytest.mark.parametrize("axis", AXES)
def test_a_cycle_begins_with_its_first_member_and_starts_again(axis):
    for node in nodes(axis):
        members = [AXES[axis].check(member) for member in node.get("cycle", [node])]
        layers = config(**{axis: node}, depth=5).layers()
        assert [layer[axis] for layer in layers] == [members[n % len(members)] for n in range(5)]


SCALAR_FIELDS = [field for field in dataclasses.fields(DecoderConfig) if field.name not in (*AXES, "kernel")]


@pytest.mark.parametrize("field", SCALAR_FIELDS, ids=lambda field: field.name)
def test_every_scalar_is_alive(field):
    """In some model: `context` counts where positions are learned."""
    value = SCALARS.get(field.name, field.default)
    found = set()
    for position in singles("position"):
        before = build(position=position, **{field.name: value})
        for other in alternatives(field.type, value):
            try:
                after = build(position=position, **{field.name: other})
            except AblateError:
                continue
            if "parameters" in changes(before, after) or "logits" in changes(before, after):
                found.add(position["name"])
            break
    assert found


def test_every_kernel_can_be_asked_for():
    """What it then computes is in test_kernels."""
    assert {"reference", "sdpa"} <= set(KERNELS)
    assert build(kernel="reference").kernels(HERE) != build(kernel="auto").kernels(HERE)


@pytest.mark.parametrize("row", models(), ids=labels)
def test_building_and_running_is_deterministic(row):
    tokens = random_tokens(2, 9)
    assert torch.equal(build(**row)(tokens), build(**row)(tokens))


# --- the helpers of these tests --------------------------------------------------------------------------


def test_all_pairs_meet():
    domains = {"a": [1, 2, 3], "b": list("xyzw"), "c": [True, False], "d": [7], "e": [0, 1, 2, 3, 4]}
    rows = all_pairs(domains)
    assert rows == all_pairs(domains)
    for one in domains:
        for two in domains:
            if one != two:
                met = {(row[one], row[two]) for row in rows}
                assert met == {(x, y) for x in domains[one] for y in domains[two]}
    assert len(rows) <= 1.5 * 4 * 5


def test_every_component_is_in_some_model():
    met = {
        (axis, member["name"]) for row in models() for axis, node in row.items() for member in node.get("cycle", [node])
    }
    assert met >= {(axis, name) for axis in AXES for name in AXES[axis].names()}


# --- a component of the user's own -----------------------------------------------------------------------


class Halve(nn.Module):
    def __init__(self, given: Given, *, factor: float = 0.5):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Skip(Pattern):
    """Nothing but the predicate, and an option, in an ordinary class: itself and every n-th before."""

    def __init__(self, *, n: int = 3):
        self.n = n

    def allowed(self, query, key):
        return ((query - key) % self.n == 0) & (query - key < 4 * self.n)


@dataclass(frozen=True, kw_only=True)
class SkipDataclass(Pattern):
    n: int = 3

    def allowed(self, query, key):
        return ((query - key) % self.n == 0) & (query - key < 4 * self.n)


class Square(FeedForward):
    def __init__(self, given: Given, *, power: int = 2):
        super().__init__()
        self.power = power
        self.inner, self.out = (nn.Linear(given.dim, given.dim, bias=given.bias) for _ in range(2))

    def forward(self, x, context):
        return self.out(self.inner(x) ** self.power)


def cached(model, tokens, chunks):
    cache = model.new_cache(len(tokens), tokens.shape[1])
    return torch.cat([model(part, cache=cache) for part in tokens.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize(
    "axis, component, option, value",
    [
        ("norm", Halve, "factor", 2.0),
        ("ffn", Square, "power", 3),
        ("pattern", Skip, "n", 2),
        ("pattern", SkipDataclass, "n", 2),
    ],
)
def test_a_component_of_ones_own_works_by_being_registered(enrol, axis, component, option, value):
    enrol(axis, "mine", component)
    model, tokens = build(**{axis: {"name": "mine"}}), random_tokens(2, 32)
    torch.testing.assert_close(cached(model, tokens, [5, 1, 1, 20, 1, 4]), model(tokens), **TOLERANCE)
    assert changes(model, build(**{axis: {"name": "mine", option: value}}))
    again = DecoderConfig.from_dict(model.config.to_dict())
    assert again.layers()[0][axis][option] == model.config.layers()[0][axis][option]
    with pytest.raises(AblateError, match=option):
        config(**{axis: {"name": "mine", "wrong": 1}})


@pytest.mark.parametrize("component", [Skip, SkipDataclass])
def test_two_settings_of_ones_own_pattern_stay_apart(enrol, component):
    """In one model, layer by layer, and in what is counted of them: with or without @dataclass."""
    enrol("pattern", "mine", component)
    three, two = ({"name": "mine", "n": n} for n in (3, 2))
    model, tokens = build(pattern={"cycle": [three, two]}), random_tokens(2, 32)
    for layer, n in zip(model.layers, (3, 2), strict=True):
        table = visible(layer.pattern, 32)
        assert layer.pattern.pairs(32) == sum(map(sum, table))
        assert layer.pattern.reach(32) == 3 * n + 1
    assert changes(model, build(pattern=three)) >= {"logits"}
    torch.testing.assert_close(cached(model, tokens, [5, 1, 1, 20, 1, 4]), model(tokens), **TOLERANCE)


def test_a_position_of_ones_own_works_by_being_registered(enrol):
    class Doubled(POSITIONS.component("rope")):
        def rotation(self, positions):
            return super().rotation(2 * positions)

    enrol("position", "mine", Doubled)
    tokens = random_tokens(2, 16)
    model, rope = build(position={"name": "mine"}), build(position="rope")
    torch.testing.assert_close(model(tokens), rope(tokens, positions=2 * torch.arange(16).expand(2, -1)), **TOLERANCE)
    torch.testing.assert_close(cached(model, tokens, [5, 1, 10]), model(tokens), **TOLERANCE)


def test_the_registry_is_left_as_it_was():
    assert all("mine" not in registry.names() for registry in AXES.values())
    assert Halve not in NORMS._components.values()


def test_labels_name_the_members():
    assert label({"cycle": [{"name": "a"}, {"name": "b"}]}) == "a+b"
