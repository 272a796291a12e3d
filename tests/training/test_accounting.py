"""Laws 7 and 9: budgets are those of the built model, and FLOPs are counted pair by pair."""

import pytest
import torch

import ablate
from ablate.data.rows import pieces_of

from .harness import SCALARS
from .test_config import PRESETS

DIM, DEPTH, HEADS, CONTEXT, VOCAB = 32, 2, 4, 32, 300
SIZE = [*SCALARS, f"model.vocab_size={VOCAB}"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_budget_is_what_was_built(preset):
    model = ablate.build(preset, SIZE)
    budget = ablate.budget(model)
    assert budget.total == sum(p.numel() for p in model.parameters())
    assert (budget.active < budget.total) == (preset == "mixtral")
    assert budget.training_flops_per_token == 3 * budget.flops_per_token
    blocks = sum(p.numel() for part in (model.blocks, model.final_norm) for p in part.parameters())
    assert budget.non_embedding == blocks


def test_tied_embeddings_count_once():
    tied, untied = (
        ablate.budget(ablate.build("gqa_rope", [*SIZE, f"model.tie_embeddings={t}"])) for t in (True, False)
    )
    assert untied.total - tied.total == VOCAB * DIM
    assert untied.non_embedding == tied.non_embedding
    assert untied.flops_per_token == tied.flops_per_token


def projections(kv_heads=2, hidden=96, ffn_matrices=3):
    """FLOPs of a token in one layer's matrices, 2 per multiply-add."""
    attention = 2 * DIM * DIM + 2 * DIM * (DIM // HEADS * kv_heads)
    return 2 * (attention + ffn_matrices * DIM * hidden)


def pairs_full():
    return CONTEXT * (CONTEXT + 1) / 2


def pairs_local(window):
    return sum(min(place + 1, window) for place in range(CONTEXT))


def attention(pairs):
    """Scores and weighted values: 2 products of width DIM for each pair of query and key."""
    return 2 * 2 * DIM * pairs / CONTEXT


HEAD = 2 * DIM * VOCAB


def test_flops_of_gqa_rope_by_hand():
    expected = HEAD + DEPTH * (projections() + attention(pairs_full()))
    assert ablate.budget(ablate.build("gqa_rope", SIZE)).flops_per_token == expected


def test_flops_of_alternating_layers_by_hand():
    overrides = [*SIZE, "model/pattern=alternating", "model.pattern.window=5"]
    expected = HEAD + 2 * projections() + attention(pairs_full()) + attention(pairs_local(5))
    assert ablate.budget(ablate.build("gqa_rope", overrides)).flops_per_token == expected


@pytest.mark.parametrize("pattern", ["full", "local", "strided"])
def test_training_flops_count_the_pairs_that_pattern_and_packing_leave(pattern):
    overrides = [*SIZE, f"model/pattern={pattern}", *(["model.pattern.window=5"] if pattern == "local" else [])]
    model = ablate.build("gqa_rope", overrides)
    documents = torch.tensor([[0] * 20 + [1] * 12, [0] * 3 + [1] * 28 + [-1]])
    here, there = torch.arange(CONTEXT), torch.arange(CONTEXT)[:, None]
    allowed = model.layers[0].pattern.allowed(there, here) & (here <= there)
    pairs = sum(int((allowed & (row[:, None] == row)).sum()) for row in documents)
    expected = 3 * (HEAD + DEPTH * (projections() + attention(pairs / len(documents))))
    assert ablate.budget(model, pieces_of(documents.numpy())).training_flops_per_token == pytest.approx(expected)


def test_flops_of_gpt2_by_hand():
    expected = HEAD + DEPTH * (projections(kv_heads=HEADS, hidden=4 * DIM, ffn_matrices=2) + attention(pairs_full()))
    assert ablate.budget(ablate.build("gpt2", SIZE)).flops_per_token == expected


@pytest.mark.parametrize(("attention", "kv_heads"), [("mha", 4), ("gqa", 2), ("mqa", 1)])
def test_cache_bytes_by_hand(attention, kv_heads):
    model = ablate.build("gqa_rope", [*SIZE, f"model/attention={attention}"])
    expected = DEPTH * 2 * kv_heads * (DIM // HEADS) * 4
    assert ablate.budget(model).kv_bytes_per_token == expected
    assert ablate.budget(model.to(torch.bfloat16)).kv_bytes_per_token == expected // 2
    assert ablate.budget(model.double()).kv_bytes_per_token == expected * 2


def test_cache_bytes_are_those_of_the_cache():
    model = ablate.build("gqa_rope", SIZE)
    assert model.new_cache(1, 9).nbytes - model.new_cache(1, 8).nbytes == ablate.budget(model).kv_bytes_per_token


def test_counting_changes_nothing():
    model = ablate.build("gqa_rope", SIZE).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    ablate.budget(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_kernel_does_not_change_the_budget():
    sdpa, reference = (ablate.build("gqa_rope", [*SIZE, f"model.kernel={kernel}"]) for kernel in ("sdpa", "reference"))
    assert ablate.budget(sdpa) == ablate.budget(reference)
