"""Laws 2, 3, 4 and 7: which tokens a token sees."""

import inspect

import pytest
import torch
from zoo import (
    build,
    cycles,
    documents_of,
    embedded,
    hand_reach,
    kernels_here,
    label,
    labels,
    models,
    nodes,
    random_tokens,
    singles,
    small,
    spans,
    visible,
)

from ablate.model.axes.pattern import PATTERNS
from ablate.model.axes.position import POSITIONS, Position
from ablate.model.cache import BEYOND
from ablate.model.masks import Layout, Pattern, dense_mask, document_runs

LENGTHS = [5, 1, 9, 3, 6]
TOLERANCE = {"rtol": 0, "atol": 1e-5}

# docs/pattern.md in plain Python: options, query i, key j <= i
DEFINITIONS = {
    "full": lambda o, i, j: True,
    "local": lambda o, i, j: i - j < o["window"],
    "strided": lambda o, i, j: (
        (o["part"] != "stride" and i - j < o["stride"]) or (o["part"] != "local" and (i - j) % o["stride"] == 0)
    ),
    "fixed": lambda o, i, j: (
        (o["part"] != "summary" and i // o["block"] == j // o["block"])
        or (o["part"] != "block" and (j % o["block"] >= o["block"] - o["summary"] or i == j))
    ),
}


def reached(model, length: int, documents=None) -> torch.Tensor:
    """`[T, T]`, True where the gradient of logit t with respect to embedding s is not exactly zero."""
    tokens = random_tokens(1, length).expand(length, -1)  # a copy of the row for each t
    if documents is not None:
        documents = documents.expand(length, -1)
    logits, x = embedded(model, tokens, documents=documents)
    direction = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(3))
    own = logits[torch.arange(length), torch.arange(length)]
    return (torch.autograd.grad((own @ direction).sum(), x)[0] != 0).any(-1)


def product_of_masks(model, length: int, documents=None) -> torch.Tensor:
    """What a path through the layers can join: each layer's mask, or the residual."""
    if documents is None:
        documents = torch.zeros(1, length, dtype=torch.int64)
    run, index = (t[0].tolist() for t in document_runs(documents))
    joined = torch.eye(length, dtype=torch.bool)
    for layer in model.layers:
        table = visible(layer.pattern, length)
        step = torch.tensor(
            [[t == s or (s < t and run[s] == run[t] and table[index[t]][index[s]]) for s in range(length)]
             for t in range(length)]
        )  # fmt: skip
        joined = (step.float() @ joined.float()) > 0
    return joined


@pytest.mark.parametrize("kernel", kernels_here(gradient=True))
@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_a_logit_depends_on_exactly_the_inputs_that_the_masks_join(pattern, kernel):
    model = build(pattern=pattern, depth=3, kernel=kernel)
    assert torch.equal(reached(model, 20), product_of_masks(model, 20))


@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_documents_cut_the_reach(pattern):
    model = build(pattern=pattern, depth=3)
    documents = torch.tensor([[0] * 7 + [1] + [0] * 8 + [3] * 2 + [-1] * 2])  # 0 comes again, as another document
    assert torch.equal(reached(model, 20, documents), product_of_masks(model, 20, documents))


@pytest.mark.parametrize("row", models(), ids=labels)
def test_reach_is_the_masks_whatever_else_the_model_is_made_of(row):
    model = build(**row)
    assert torch.equal(reached(model, 12), product_of_masks(model, 12))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_local_layers_reach_depth_times_window_less_one(depth, window):
    model = build(pattern=small("pattern", "local", window=window), depth=depth)
    distance = torch.arange(16).unsqueeze(1) - torch.arange(16)
    assert torch.equal(reached(model, 16), (distance >= 0) & (distance <= depth * (window - 1)))


@pytest.mark.parametrize("row", models(), ids=labels)
def test_editing_a_document_leaves_the_others_bit_identical(row):
    model, documents, tokens = build(**row), documents_of(LENGTHS), random_tokens(1, sum(LENGTHS))
    for edited, span in enumerate(spans(LENGTHS)):
        others = documents[0] != edited
        results = []
        for shift in (0, 7):
            changed = tokens.clone()
            changed[:, span] = (changed[:, span] + shift) % 61
            logits, x = embedded(model, changed, documents=documents)
            gradient = torch.autograd.grad(logits[:, others].square().sum(), x)[0]
            results.append((logits, gradient))
        (logits, gradient), (new_logits, new_gradient) = results
        assert torch.equal(logits[:, others], new_logits[:, others])
        assert torch.equal(gradient[:, others], new_gradient[:, others])
        assert not gradient[:, span].any() and not new_gradient[:, span].any()
        assert not torch.equal(logits[:, span], new_logits[:, span])  # the edit did change something


def alone(model, tokens, lengths) -> torch.Tensor:
    return torch.cat([model(tokens[:, span]) for span in spans(lengths)], dim=1)


@pytest.mark.parametrize("row", models(), ids=labels)
def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone(row):
    model, tokens = build(**row), random_tokens(2, sum(LENGTHS))
    packed = model(tokens, documents=documents_of(LENGTHS, batch=2))
    torch.testing.assert_close(packed, alone(model, tokens, LENGTHS), **TOLERANCE)


@pytest.mark.parametrize("row", models(), ids=labels)
def test_rows_are_packed_each_in_its_own_way(row):
    model, tokens, lengths = build(**row), random_tokens(3, 24), ([24], [1, 20, 3], [11, 13])
    packed = model(tokens, documents=torch.cat([documents_of(n) for n in lengths]))
    for number, each in enumerate(lengths):
        one = tokens[number : number + 1]
        torch.testing.assert_close(packed[number : number + 1], alone(model, one, each), **TOLERANCE)


@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
@pytest.mark.parametrize("position", singles("position"), ids=label)
def test_an_id_that_comes_again_names_another_document(pattern, position):
    model, tokens = build(pattern=pattern, position=position), random_tokens(1, 12)
    packed = model(tokens, documents=torch.tensor([[0] * 4 + [1] * 3 + [0] * 5]))
    torch.testing.assert_close(packed, alone(model, tokens, [4, 3, 5]), **TOLERANCE)


@pytest.mark.parametrize("position", nodes("position"), ids=label)
def test_positions_restart_in_each_document_unless_given(position):
    model, tokens = build(position=position), random_tokens(1, sum(LENGTHS))
    restarting = torch.cat([torch.arange(n) for n in LENGTHS]).unsqueeze(0)
    documents = documents_of(LENGTHS)
    default = model(tokens, documents=documents)
    assert torch.equal(default, model(tokens, positions=restarting, documents=documents))


@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
@pytest.mark.parametrize("name", POSITIONS.names())
def test_only_absolute_positions_need_to_restart(name, pattern):
    """The content of "RoPE makes packing free of resets". Patterns always count within the document."""
    model, tokens = build(position=name, pattern=pattern), random_tokens(1, sum(LENGTHS))
    going_on = torch.arange(sum(LENGTHS)).unsqueeze(0)
    packed = model(tokens, positions=going_on, documents=documents_of(LENGTHS))
    apart = (packed - alone(model, tokens, LENGTHS)).abs()
    assert apart[:, : LENGTHS[0]].max() <= 1e-5
    assert (apart.max() > 1e-2) if POSITIONS.component(name).absolute else (apart.max() <= 1e-5)


@pytest.mark.parametrize("name", POSITIONS.names())
def test_given_positions_are_read(name):
    """Moving the tokens apart changes the logits under any component that does something with positions."""
    methods = [method for method, value in vars(Position).items() if inspect.isfunction(value)]
    component = POSITIONS.component(name)
    reads = any(getattr(component, method) is not getattr(Position, method) for method in methods)
    model, tokens = build(position=name), random_tokens(1, 8)
    apart = model(tokens, positions=torch.arange(0, 24, 3).unsqueeze(0))
    assert torch.allclose(model(tokens), apart, rtol=0, atol=1e-4) != reads


# --- law 7 ---------------------------------------------------------------------------------------------

PAIRS_OF_64 = {"full": 2080, "local": 484, "strided": 708, "fixed": 512}
COUNTED = [1, 2, 3, 4, 5, 6, 9, 16, 31]


@pytest.mark.parametrize("name", [name for name in PATTERNS.names() if name in DEFINITIONS])
def test_a_pattern_is_its_definition(name):
    node = PATTERNS.check(small("pattern", name))
    table = visible(PATTERNS.build(node), 33)
    assert table == [[j <= i and bool(DEFINITIONS[name](node, i, j)) for j in range(33)] for i in range(33)]


@pytest.mark.parametrize("name", [name for name in PATTERNS.names() if name in PAIRS_OF_64])
def test_patterns_of_eight_on_64_tokens_have_their_known_pairs(name):
    eight = {"window": 8, "stride": 8, "block": 8, "summary": 1}
    node = {"name": name, **{key: value for key, value in eight.items() if key in PATTERNS.options(name)}}
    assert PATTERNS.build(node).pairs(64) == PAIRS_OF_64[name]


@pytest.mark.parametrize("length", COUNTED)
@pytest.mark.parametrize("name", PATTERNS.names())
def test_counts_are_those_of_a_double_loop(name, length):
    pattern = PATTERNS.build(small("pattern", name))
    table = visible(pattern, length)
    assert pattern.pairs(length) == sum(map(sum, table))
    assert pattern.reach(length) == hand_reach(table)


@pytest.mark.parametrize("node", [*singles("pattern"), small("pattern", "strided", part="local")], ids=str)
def test_a_band_is_the_last_keys_and_nothing_else(node):
    pattern = PATTERNS.build(node)
    table, band = visible(pattern, 33), pattern.band()
    if band is None:
        reach = hand_reach(table)
        assert table != [[0 <= i - j < reach for j in range(33)] for i in range(33)]
    else:
        assert table == [[0 <= i - j < band for j in range(33)] for i in range(33)]


CLOSED_FORMS = [
    (name, count)
    for name in PATTERNS.names()
    for count in ("pairs", "reach")
    if getattr(PATTERNS.component(name), count) is not getattr(Pattern, count)
]


@pytest.mark.parametrize("length", [1, 4, 5, 6, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize(("name", "count"), CLOSED_FORMS)
def test_closed_forms_agree_with_counting(name, count, length):
    pattern = PATTERNS.build(small("pattern", name))
    assert getattr(pattern, count)(length) == getattr(Pattern, count)(pattern, length)


def joined(*patterns, length=64) -> int:
    """How many pairs a stack of layers with these patterns joins."""
    steps = [torch.tensor(visible(PATTERNS.build(pattern), length)).float() for pattern in patterns]
    reach = torch.eye(length)
    for step in steps:
        reach = (step @ reach > 0).float()
    return int(reach.sum())


def test_two_sparse_layers_join_every_pair():
    """Merged, or split over the two layers; for the fixed pattern the blocks come first."""
    strided, fixed = {"name": "strided", "stride": 8}, {"name": "fixed", "block": 8, "summary": 1}
    assert joined(strided, strided) == joined(fixed, fixed) == 2080
    local, stride = ({**strided, "part": part} for part in ("local", "stride"))
    block, summary = ({**fixed, "part": part} for part in ("block", "summary"))
    assert joined(local, stride) == joined(stride, local) == joined(block, summary) == 2080
    assert joined(summary, block) == 2080 - 1568


@pytest.mark.parametrize(
    "whole, parts",
    [
        ({"name": "strided", "stride": 5}, ("local", "stride")),
        ({"name": "fixed", "block": 6, "summary": 2}, ("block", "summary")),
    ],
    ids=["strided", "fixed"],
)
def test_the_merged_form_is_the_union_of_its_parts(whole, parts):
    tables = [torch.tensor(visible(PATTERNS.build({**whole, "part": part}), 40)) for part in parts]
    assert torch.equal(tables[0] | tables[1], torch.tensor(visible(PATTERNS.build(whole), 40)))


@pytest.mark.parametrize("name", PATTERNS.names())
def test_every_query_sees_itself(name):
    assert all(row[i] for i, row in enumerate(visible(PATTERNS.build(small("pattern", name)), 33)))


@pytest.mark.parametrize("length", COUNTED)
@pytest.mark.parametrize("name", PATTERNS.names())
def test_the_dense_mask_is_the_double_loop(name, length):
    pattern = PATTERNS.build(small("pattern", name))
    index = torch.arange(length).unsqueeze(0)
    mask = dense_mask(pattern, Layout(index, index, square=True))
    assert mask.shape == (1, 1, length, length)
    assert mask[0, 0].tolist() == visible(pattern, length)


@pytest.mark.parametrize("name", PATTERNS.names())
def test_the_dense_mask_keeps_documents_empty_slots_and_later_keys_out(name):
    pattern = PATTERNS.build(small("pattern", name))
    table = visible(pattern, 20)
    query = torch.tensor([[0, 7, 12, 19], [3, 4, 0, 1]])
    key = torch.tensor([[16, 1, -1, 3, 19, BEYOND, 12], [0, 1, 2, 3, 4, 0, 1]])
    query_document = torch.tensor([[0, 0, 0, 0], [5, 5, 6, 6]])
    key_document = torch.tensor([[0] * 7, [5, 5, 5, 5, 5, 6, 6]])
    mask = dense_mask(pattern, Layout(query, key, query_document, key_document))
    for b in range(2):
        for t, i in enumerate(query[b].tolist()):
            for s, j in enumerate(key[b].tolist()):
                same = query_document[b, t] == key_document[b, s]
                assert mask[b, 0, t, s] == bool(same and 0 <= j <= i and table[i][j]), (b, i, j)


def test_a_document_is_a_run_of_equal_ids():
    run, index = document_runs(torch.tensor([[4, 4, 4, 0, 4, 4, -1, -1], [0, 1, 1, 2, 3, 3, 3, 3]]))
    assert index.tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1, 2, 3]]
    for row in run.tolist():
        assert len(set(row)) == sum(a != b for a, b in zip(row[1:], row, strict=False)) + 1
        assert row == sorted(row)


def test_cycles_of_patterns_are_enrolled():
    assert any("full" in label(node) and "local" in label(node) for node in cycles("pattern"))
