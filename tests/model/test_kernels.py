"""Law 6: kernels agree with the reference, and the reference with a double loop."""

import math
from dataclasses import replace

import pytest
import torch
from zoo import (
    build,
    documents_of,
    given,
    gradients,
    kernels_here,
    label,
    labels,
    models,
    nodes,
    random_tokens,
    singles,
    small,
    stirred,
    twin,
)

from ablate.errors import AblateError
from ablate.model.axes.attention import ATTENTIONS
from ablate.model.axes.pattern import PATTERNS
from ablate.model.context import ForwardContext
from ablate.model.kernels import KERNELS, Place, Scores
from ablate.model.masks import Layout, dense_mask

TOLERANCE = {"rtol": 0, "atol": 1e-5}
TRAINING = [name for name in kernels_here(gradient=True) if name != "reference"]
INFERRING = [name for name in kernels_here(gradient=False) if name != "reference"]


def pair(kernel: str, gradient: bool, **axes):
    """The same weights under the reference and under `kernel`; or a skip where that says that it cannot."""
    reference = build(kernel="reference", **axes)
    place = Place("cpu", torch.float32, gradient)
    reasons = [KERNELS[kernel].refusal(layer.scores, place) for layer in reference.layers]
    if any(reasons):
        with pytest.raises(AblateError, match=f"model.kernel={kernel}"):
            twin(reference, kernel=kernel)(random_tokens(1, 2))
        pytest.skip(f"{kernel} refuses, aloud")
    return reference, twin(reference, kernel=kernel)


def check_gradients(reference, other, tokens, **kwargs) -> None:
    """Of every parameter, to within 1e-5 of its size."""
    expected = gradients(reference, tokens, **kwargs)
    for name, gradient in gradients(other, tokens, **kwargs).items():
        off = (gradient - expected[name]).norm() / expected[name].norm()
        assert off <= 1e-5, f"{name}: {off}"


DOCUMENTS = {
    "one document": None,
    "packed": documents_of([5, 1, 9, 5]).repeat(2, 1),
    "packed otherwise": torch.cat([documents_of([1, 1, 11, 7]), documents_of([20])]),
    "padded": torch.tensor([[0] * 20, [0] * 13 + [-1] * 7]),
}


@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("attention", singles("attention"), ids=label)
@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
@pytest.mark.parametrize("kernel", INFERRING)
@torch.no_grad()
def test_logits_agree_with_the_reference(kernel, pattern, attention, documents):
    reference, other = pair(kernel, False, pattern=pattern, attention=attention)
    tokens = random_tokens(2, 20)
    expected = reference(tokens, documents=documents)
    torch.testing.assert_close(other(tokens, documents=documents), expected, **TOLERANCE)


@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("attention", singles("attention"), ids=label)
@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
@pytest.mark.parametrize("kernel", TRAINING)
def test_gradients_agree_with_the_reference(kernel, pattern, attention, documents):
    reference, other = pair(kernel, True, pattern=pattern, attention=attention)
    check_gradients(reference, other, random_tokens(2, 20), documents=documents)


OPTIONS = {
    "soft-cap": {"softcap": 0.5},  # below most scores, so that it bends them
    "norm of heads": {"qk_norm": "head"},
    "norm of all": {"qk_norm": "width", "softcap": 5.0},
    "biases": {"bias": ["query", "value"], "head_dim": 6},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@pytest.mark.parametrize("pattern", singles("pattern"), ids=label)
@pytest.mark.parametrize("kernel", INFERRING)
@torch.no_grad()
def test_options_of_attention_mean_the_same_to_every_kernel(kernel, pattern, position, options):
    reference, other = pair(
        kernel, False, pattern=pattern, position=position, attention=small("attention", "gqa", **options)
    )
    tokens, documents = random_tokens(2, 20), DOCUMENTS["packed otherwise"]
    expected = reference(tokens, documents=documents)
    torch.testing.assert_close(other(tokens, documents=documents), expected, **TOLERANCE)


@pytest.mark.parametrize("kernel", [name for name in INFERRING if KERNELS[name].softcap])
@torch.no_grad()
def test_layers_that_differ_in_their_soft_cap_alone_keep_it(kernel):
    """They share a mask."""
    attention = {"cycle": [small("attention", "gqa", softcap=cap) for cap in (0.2, 5.0)]}
    reference, other = pair(kernel, False, attention=attention)
    torch.testing.assert_close(other(random_tokens(2, 20)), reference(random_tokens(2, 20)), **TOLERANCE)


@pytest.mark.parametrize("row", models(), ids=labels)
@pytest.mark.parametrize("kernel", TRAINING)
def test_gradients_agree_in_every_model(kernel, row):
    reference, other = pair(kernel, True, **row)
    check_gradients(reference, other, random_tokens(2, 20), documents=DOCUMENTS["packed"])


@pytest.mark.parametrize("row", models(), ids=labels)
@pytest.mark.parametrize("kernel", INFERRING)
@torch.no_grad()
def test_logits_agree_in_every_model(kernel, row):
    reference, other = pair(kernel, False, **row)
    tokens, documents = random_tokens(2, 20), DOCUMENTS["padded"]
    expected = reference(tokens, documents=documents)
    torch.testing.assert_close(other(tokens, documents=documents), expected, **TOLERANCE)


@pytest.mark.parametrize("row", models(), ids=labels)
@pytest.mark.parametrize("kernel", [name for name in INFERRING if KERNELS[name].cache])
@torch.no_grad()
def test_kernels_agree_with_a_cache(kernel, row):
    reference, other = pair(kernel, False, **row)
    caches = [model.new_cache(2, 32) for model in (reference, other)]
    lengths = [[9, 4], [3, 5], [1, 1], [1, 0], [6, 8], [1, 1], [1, 1]]
    for step, counts in enumerate(lengths):
        tokens = random_tokens(2, max(counts), seed=step)
        real = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
        documents = None if real.all() else torch.where(real, 0, -1)
        expected, found = (
            model(tokens, documents=documents, cache=cache)
            for model, cache in zip((reference, other), caches, strict=True)
        )
        torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", kernels_here(gradient=False))
@torch.no_grad()
def test_the_kernel_named_is_the_one_that_computes(kernel, monkeypatch):
    called = []
    for name in kernels_here(gradient=False):
        kind = type(KERNELS[name])

        def spy(self, *args, name=name, compute=kind.__call__):
            called.append(name)
            return compute(self, *args)

        monkeypatch.setattr(kind, "__call__", spy)
    build(kernel=kernel, depth=3)(random_tokens(1, 4))
    assert called == [kernel] * 3


@pytest.mark.parametrize("documents", [None, documents_of([3, 1, 5])], ids=["whole", "packed"])
@pytest.mark.parametrize("name", PATTERNS.names())
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_reference_is_a_double_loop(kv_heads, name, documents):
    pattern, heads, width, length = PATTERNS.build(small("pattern", name)), 4, 6, 9
    scores = Scores(pattern, heads, kv_heads, width)
    q, k, v = (torch.randn(2, length, h, width, dtype=torch.float64) for h in (heads, kv_heads, kv_heads))
    document = torch.zeros(length, dtype=torch.int64) if documents is None else documents[0]
    start = [document.tolist().index(d) for d in document.tolist()]
    index = (torch.arange(length) - torch.tensor(start)).unsqueeze(0)
    layout = Layout(index, index, document.unsqueeze(0), document.unsqueeze(0))
    kernel = KERNELS["reference"]
    found = kernel(q, k, v, kernel.make_mask(scores, layout, torch.float64), scores)

    for b in range(2):
        for h in range(heads):
            shared = h // (heads // kv_heads)
            for i in range(length):
                seen = [
                    j
                    for j in range(i + 1)
                    if document[i] == document[j] and bool(pattern.allowed(index[0, i], index[0, j]))
                ]
                scores = [math.exp(float(q[b, i, h] @ k[b, j, shared]) / math.sqrt(width)) for j in seen]
                total = sum(scores)
                expected = sum(s / total * v[b, j, shared] for s, j in zip(scores, seen, strict=True))
                torch.testing.assert_close(found[b, i, h], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", kernels_here(gradient=True))
def test_multi_head_attention_is_torchs(kernel):
    """Forward and backward, weights copied into torch.nn.MultiheadAttention."""
    ours = stirred(ATTENTIONS.build({"name": "mha"}, given(bias=True)))
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    pattern, index = PATTERNS.build(small("pattern", "local")), torch.arange(12).unsqueeze(0)
    layout = Layout(index, index, square=True)
    compute, scores = KERNELS[kernel], Scores(pattern, 4, 4, 8)
    mask = compute.make_mask(scores, layout, torch.float32)
    context = ForwardContext(0, scores, lambda x: x, compute, mask)
    x = torch.randn(2, 12, 32, requires_grad=True)
    expected, _ = theirs(x, x, x, attn_mask=~dense_mask(pattern, layout)[0, 0], need_weights=False)
    found = ours(x, context)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    direction = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * direction).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * direction).sum(), x)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-5)


DECODING = [name for name, kernel in KERNELS.items() if kernel.decoding_only]


@pytest.mark.parametrize("row", models(), ids=labels)
@pytest.mark.parametrize("kernel", DECODING)
@torch.no_grad()
def test_decoding_kernels_agree_with_the_reference(kernel, row):
    """One token a row at a time, past windows, in a ragged batch."""
    reference = build(kernel="reference", **row)
    step = Place("cpu", torch.float32, gradient=False, cached=True, tokens=1)
    if any(KERNELS[kernel].refusal(layer.scores, step) for layer in reference.layers):
        pytest.skip(f"{kernel} refuses")
    other, tokens = twin(reference, kernel="auto"), random_tokens(2, 20)
    other._kernels[replace(step, compiled=False)] = [kernel] * other.config.depth
    caches = [model.new_cache(2, 20) for model in (reference, other)]
    for at in range(20):
        documents = torch.tensor([[0], [0 if at < 7 or at > 11 else -1]])
        real = documents[:, 0] >= 0
        ragged = None if real.all() else documents
        expected, found = (
            model(tokens[:, at : at + 1], documents=ragged, cache=cache)
            for model, cache in zip((reference, other), caches, strict=True)
        )
        torch.testing.assert_close(found[real], expected[real], **TOLERANCE)


CHOSEN_ON_A_CPU = {
    "training in fp32": (Place("cpu", torch.float32, True, tokens=64), "sdpa"),
    "training in bf16": (Place("cpu", torch.bfloat16, True, tokens=512), "grouped"),
    "training in bf16, long rows": (Place("cpu", torch.bfloat16, True, tokens=513), "sdpa"),
    "a prompt": (Place("cpu", torch.bfloat16, False, True, tokens=64), "sdpa"),
    "a step in fp32": (Place("cpu", torch.float32, False, True, tokens=1), "sdpa"),
    "a step in bf16": (Place("cpu", torch.bfloat16, False, True, tokens=1), "shared_rows"),
    "a compiled step": (Place("cpu", torch.float32, False, True, tokens=1, compiled=True), "sums"),
}


@pytest.mark.parametrize(("place", "kernel"), CHOSEN_ON_A_CPU.values(), ids=CHOSEN_ON_A_CPU)
def test_what_auto_chooses_on_a_cpu_is_told(place, kernel):
    assert build().kernels(place) == [kernel] * 2
    assert build(kernel="reference").kernels(place) == ["reference"] * 2


@pytest.mark.parametrize("kernel", ["sdpa", "grouped"])
@pytest.mark.parametrize("attention", ATTENTIONS.names())
@pytest.mark.parametrize("masked", [False, True])
def test_a_kernel_trains_in_bf16_as_the_reference_does_in_fp32(attention, masked, kernel):
    """Logits and gradients, packed or not."""
    model = build(attention=small("attention", attention), kernel=kernel)
    judge = build(attention=small("attention", attention), kernel="reference")
    judge.load_state_dict(model.state_dict())
    tokens = torch.randint(model.config.vocab_size, (2, model.config.context))
    documents = (torch.arange(model.config.context) > 9).long().expand_as(tokens) if masked else None
    exact = judge(tokens, documents=documents)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(tokens, documents=documents).float()
    assert (rough - exact).norm() / exact.norm() < 0.02
    exact.square().sum().backward()
    rough.square().sum().backward()
    for (name, wanted), got in zip(judge.named_parameters(), model.parameters(), strict=True):
        assert (got.grad - wanted.grad).norm() <= 0.05 * wanted.grad.norm(), name


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "grouped"])
def test_a_token_after_a_cache_sees_all_of_it_in_bf16_with_gradients_on(kernel):
    model = build(kernel=kernel)
    tokens = torch.randint(model.config.vocab_size, (2, 9))
    cache = model.new_cache(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        whole = model(tokens)[:, -1].float()
        model(tokens[:, :-1], cache=cache)
        last = model(tokens[:, -1:], cache=cache)[:, -1].float()
    assert (last - whole).norm() / whole.norm() < 0.02
