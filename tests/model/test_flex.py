"""FlexAttention: its block mask equals the double loop (laws 6 and 7), and it compiles into one graph."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from zoo import build, documents_of, random_tokens, singles, small, twin

from ablate.model.axes.pattern import PATTERNS
from ablate.model.kernels import flex
from ablate.model.kernels.flex import block_mask
from ablate.model.masks import Layout, document_runs

SHAPES = {  # the documents of each row; None: not given
    "one document": None,
    "one document, told": [[20]],
    "two rows": [[5, 1, 9, 5], [1, 1, 11, 7]],
    "documents end with blocks": [[8, 8, 4], [4, 4, 12]],
    "single tokens": [[1] * 20],
    "less than a block": [[2, 3]],
    "whole blocks": [[24], [7, 17]],
}
NODES = [
    *singles("pattern"),
    *({"name": "local", "window": w} for w in (1, 2, 7, 8, 9, 16, 17, 100)),
    {"name": "strided", "stride": 5, "part": "local"},
    {"name": "strided", "stride": 9, "part": "stride"},
    {"name": "fixed", "block": 8, "summary": 2},
    {"name": "fixed", "block": 8, "summary": 8},
]


def layout_of(lengths: list[list[int]] | None, length: int = 20) -> Layout:
    if lengths is None:
        index = torch.arange(length).unsqueeze(0)
        return Layout(index, index, square=True)
    run, index = document_runs(torch.cat([documents_of(row) for row in lengths]))
    return Layout(index, index, run, run)


def listed(number: torch.Tensor, which: torch.Tensor) -> list[list[set[int]]]:
    """For each row and block of one side, which blocks of the other."""
    return [
        [set(w[:n].tolist()) for n, w in zip(numbers.tolist(), row, strict=True)]
        for numbers, row in zip(number[:, 0], which[:, 0], strict=True)
    ]


def by_hand(pattern, layout: Layout, block: int) -> tuple[list[list[set[int]]], list[list[set[int]]]]:
    """Blocks with some allowed pair and without all, and those with all; a pair beyond the row is not allowed."""
    partial, full = [], []
    length = layout.query.shape[1]
    documents = torch.zeros_like(layout.query) if layout.query_document is None else layout.query_document
    for index, document in zip(layout.query.tolist(), documents.tolist(), strict=True):
        seen = [
            [
                k <= q
                and document[q] == document[k]
                and bool(pattern.allowed(torch.tensor(index[q]), torch.tensor(index[k])))
                for k in range(length)
            ]
            for q in range(length)
        ]
        counts = [
            [sum(sum(row[j : j + block]) for row in seen[i : i + block]) for j in range(0, length, block)]
            for i in range(0, length, block)
        ]
        partial.append([{j for j, n in enumerate(row) if 0 < n < block**2} for row in counts])
        full.append([{j for j, n in enumerate(row) if n == block**2} for row in counts])
    return partial, full


def turned(rows: list[list[set[int]]]) -> list[list[set[int]]]:
    return [[{i for i, keys in enumerate(row) if j in keys} for j in range(len(row))] for row in rows]


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("node", NODES, ids=str)
def test_blocks_are_those_of_a_double_loop(node, lengths, chunk, monkeypatch):
    pattern, layout = PATTERNS.build(node), layout_of(lengths)
    if chunk is not None:
        if pattern.band() is not None:
            return  # its blocks are not counted
        monkeypatch.setattr(flex, "_CHUNK", chunk)
    mask = block_mask(pattern, layout, 8)
    partial, full = by_hand(pattern, layout, 8)
    assert listed(mask.kv_num_blocks, mask.kv_indices) == partial
    assert listed(mask.full_kv_num_blocks, mask.full_kv_indices) == full
    assert listed(mask.q_num_blocks, mask.q_indices) == turned(partial)
    assert listed(mask.full_q_num_blocks, mask.full_q_indices) == turned(full)
    assert mask.seq_lengths == layout.query.shape[1:] * 2


@pytest.mark.parametrize("lengths", [None, [[300], [100, 1, 199]]], ids=["one document", "packed"])
@pytest.mark.parametrize(
    "node",
    [*NODES[:4], *({"name": "local", "window": w} for w in (127, 128, 129)), {"name": "strided", "stride": 130}],
    ids=str,
)
def test_blocks_are_torchs_own(node, lengths):
    """Of 128, in rows that are no multiple of it, without looking at any pair where the pattern is a band."""
    pattern, layout = PATTERNS.build(node), layout_of(lengths, 300)
    mask = block_mask(pattern, layout)
    rows = layout.query.shape[0]
    theirs = create_block_mask(mask.mask_mod, rows, None, 300, 300, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        ours, expected = (
            listed(getattr(m, f"{name}_num_blocks"), getattr(m, f"{name}_indices")) for m in (mask, theirs)
        )
        assert ours == expected, name


@torch.no_grad()
def test_masks_for_inference_leave_out_what_a_backward_pass_needs():
    assert block_mask(PATTERNS.build({"name": "full"}), layout_of(None)).q_indices is None


@torch.no_grad()
def test_as_torch_traces_it(monkeypatch):
    """The other tests here and in test_kernels spare themselves that."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    attention = small("attention", "gqa", softcap=2.0)
    for window in (3, 4):
        pattern = small("pattern", "local", window=window)
        reference = build(kernel="reference", position="alibi", pattern=pattern, attention=attention)
        tokens, documents = random_tokens(2, 20), documents_of([5, 1, 14], 2)
        found = twin(reference, kernel="flex")(tokens, documents=documents)
        torch.testing.assert_close(found, reference(tokens, documents=documents), rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(
    ("pattern", "position", "packed"), [("full", "rope", True), ("fixed", "alibi", True), ("fixed", "alibi", False)]
)
def test_a_compiled_decoder_is_one_graph(pattern, position, packed, backend):
    """Pattern, documents, soft-cap and bias. On a CPU it is by `inductor` alone that the blocks are read."""
    attention = small("attention", "gqa", softcap=5.0 if position == "alibi" else None)
    model = build(kernel="flex", pattern=pattern, position=position, attention=attention)
    tokens, documents = random_tokens(2, 300), documents_of([100, 150, 1, 49], 2) if packed else None
    torch._dynamo.reset()
    compiled = torch.compile(model.hidden, backend=backend, fullgraph=True)
    expected = twin(model, kernel="reference").hidden(tokens, documents=documents)
    torch.testing.assert_close(compiled(tokens, documents=documents), expected, rtol=0, atol=2e-5)


def test_the_compiler_is_asked_for_more_shapes_than_it_allows_by_default(monkeypatch):
    limits = []
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic: lambda: limits.append(torch._dynamo.config.recompile_limit)
    )
    before = torch._dynamo.config.recompile_limit
    flex._fused.__wrapped__()()
    assert limits[0] > 100 > before == torch._dynamo.config.recompile_limit
