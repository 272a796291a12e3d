"""Law 6 on a GPU, where all kernels compute: pytest -m gpu. Tests that can run on the CPU run there, too."""

import subprocess
import sys

import pytest
import torch
from zoo import (
    build,
    documents_of,
    given,
    kernels_here,
    label,
    labels,
    models,
    nodes,
    random_tokens,
    singles,
    small,
    twin,
)

from ablate.generation import generate_tokens
from ablate.model.axes.pattern import PATTERNS
from ablate.model.axes.position import POSITIONS
from ablate.model.kernels import KERNELS, Place, Scores, choose_kernel
from ablate.model.loss import next_token_loss
from ablate.model.masks import Layout, document_runs

LENGTH, WIDTH = 300, 64  # not a multiple of a block; a head width that every kernel takes
OTHERS = [name for name in KERNELS if name != "reference"]
BF16, FP32 = torch.bfloat16, torch.float32
CLOSE = {BF16: 0.02, FP32: 1e-4}  # distance over norm
DOCUMENTS = {
    "one document": None,
    "packed": torch.cat([documents_of([100, 1, 150, 49]), documents_of([1] * 40 + [260])]),
    "padded": torch.cat([documents_of([300]), torch.tensor([[0] * 128 + [-1] * 172])]),
}
LAYERS = [
    *((node, "gqa") for node in singles("pattern")),
    *((small("pattern", "full"), name) for name in ("mha", "mqa")),
]
EVERYWHERE = pytest.mark.parametrize(
    ("device", "kernel"),
    [
        *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in OTHERS),
        *(("cpu", name) for name in OTHERS if name in kernels_here(gradient=True)),
    ],
)
KV_HEADS = {"mha": 4, "gqa": 2, "mqa": 1}


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "cpu"])
def device(request) -> str:
    return request.param


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


def layout_of(documents: torch.Tensor | None, length: int, device: str, most: int | None = None) -> Layout:
    if documents is None:
        index = torch.arange(length, device=device).unsqueeze(0)
        return Layout(index, index, square=True, query_position=index, key_position=index)
    run, index = document_runs(documents.to(device))
    return Layout(index, index, run, run, query_position=index, key_position=index, max_documents=most)


def check(kernel: str, scores: Scores, layout: Layout, dtype: torch.dtype, batch: int = 2) -> None:
    """Output and gradients are the reference's in fp32; or a skip where the kernel says that it cannot."""
    device, length = layout.query.device, layout.query.shape[-1]
    reason = KERNELS[kernel].refusal(scores, Place(device.type, dtype, gradient=True))
    if reason is not None:
        pytest.skip(f"{kernel}: {reason}")
    generator = torch.Generator().manual_seed(0)
    heads = (scores.heads, scores.kv_heads, scores.kv_heads, scores.heads)
    *parts, direction = (
        torch.randn(batch, length, n, scores.head_dim, generator=generator).to(device, dtype) for n in heads
    )
    results = []
    for each, precision in ((KERNELS["reference"], FP32), (KERNELS[kernel], dtype)):
        leaves = [part.to(precision).requires_grad_() for part in parts]
        out = each(*leaves, each.make_mask(scores, layout, precision), scores)
        results.append([out, *torch.autograd.grad((out * direction.to(precision)).sum(), leaves)])
    for name, expected, found in zip(("out", "query", "key", "value"), *results, strict=True):
        assert distance(found, expected) < CLOSE[dtype], name


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize(
    ("pattern", "attention"), LAYERS, ids=lambda node: node if isinstance(node, str) else label(node)
)
@EVERYWHERE
def test_output_and_gradients_are_the_references(device, kernel, pattern, attention, documents, dtype):
    scores = Scores(PATTERNS.build(pattern), 4, KV_HEADS[attention], WIDTH)
    check(kernel, scores, layout_of(DOCUMENTS[documents], LENGTH, device), dtype)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
@EVERYWHERE
def test_soft_caps_and_biases(device, kernel, softcap, biased):
    bias = POSITIONS.build({"name": "alibi"}, given(heads=4)).bias if biased else None
    scores = Scores(PATTERNS.build({"name": "full"}), 4, 2, WIDTH, softcap, bias)
    check(kernel, scores, layout_of(DOCUMENTS["packed"], LENGTH, device), BF16)


@pytest.mark.parametrize("window", [1, 127, 128, 129])
@pytest.mark.parametrize("kernel", OTHERS)
@pytest.mark.gpu
def test_windows_in_long_rows(kernel, window):
    documents = torch.cat([documents_of([1000, 24, 1024]), documents_of([2048])])
    scores = Scores(PATTERNS.build({"name": "local", "window": window}), 4, 2, WIDTH)
    check(kernel, scores, layout_of(documents, 2048, "cuda", most=4), BF16)


@pytest.mark.parametrize("width", [16, 32, 128])
@pytest.mark.parametrize("length", [1, 2, 100, 128, 256])
@pytest.mark.parametrize("kernel", OTHERS)
@pytest.mark.gpu
def test_rows_and_heads_of_other_sizes(kernel, length, width):
    check(kernel, Scores(PATTERNS.build({"name": "full"}), 4, 2, width), layout_of(None, length, "cuda"), BF16)


def loss_and_gradients(model, batch: dict, hidden=None, low: bool = True) -> list[torch.Tensor]:
    hidden = hidden or (lambda **kwargs: next_token_loss(model.hidden(**kwargs), model.head.weight, batch["targets"]))
    with torch.autocast(batch["targets"].device.type, BF16, enabled=low):
        loss = hidden(**{name: item for name, item in batch.items() if name != "targets"})
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def batch_on(device: str, documents: str = "packed") -> dict:
    return {
        "tokens": random_tokens(2, LENGTH).to(device),
        "targets": random_tokens(2, LENGTH, seed=1).to(device),
        "documents": DOCUMENTS[documents].to(device),
        "max_documents": 64,
    }


ROWS = [{**row, "ffn": small("ffn", "swiglu")} for row in models()[::6]]  # low precision could flip a router's choices


@pytest.mark.parametrize("row", ROWS, ids=labels)
def test_whole_models_in_bf16_are_as_near_to_fp32_as_the_reference_is(device, row):
    reference = build(kernel="reference", dim=128, context=LENGTH, **row).to(device)
    other, batch = twin(reference, kernel="auto").to(device), batch_on(device)
    exact = joined(loss_and_gradients(reference, batch, low=False))
    noise = distance(joined(loss_and_gradients(reference, batch)), exact)
    assert distance(joined(loss_and_gradients(other, batch)), exact) < 2 * noise + 0.01


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.detach().flatten() for part in parts])


@pytest.mark.parametrize("pattern", nodes("pattern")[::3], ids=label)
@EVERYWHERE
def test_hidden_states_and_loss_compile_to_one_graph(device, kernel, pattern):
    place = Place(device, BF16, gradient=True)
    scores = [layer.scores for layer in build(dim=128, pattern=pattern).layers]
    if any(KERNELS[kernel].refusal(s, place) for s in scores):
        pytest.skip(f"{kernel} refuses")
    model, batch = build(kernel=kernel, dim=128, context=LENGTH, pattern=pattern).to(device), batch_on(device)

    def loss(**kwargs) -> torch.Tensor:
        return next_token_loss(model.hidden(**kwargs), model.head.weight, batch["targets"])

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    for found, expected in zip(
        loss_and_gradients(model, batch, compiled), loss_and_gradients(model, batch), strict=True
    ):
        assert distance(found, expected) < 0.05


@pytest.mark.gpu
def test_auto_chooses_kernels_of_the_gpu():
    full, fixed = (Scores(PATTERNS.build({"name": name}), 4, 2, WIDTH) for name in ("full", "fixed"))
    assert choose_kernel("auto", full, Place("cuda", BF16, gradient=True)) in ("varlen", "flash")
    assert choose_kernel("auto", fixed, Place("cuda", BF16, gradient=True)) == "flex"


@pytest.mark.parametrize("pattern", ["full", "local", "fixed"])
def test_greedy_generation_is_the_same_with_a_cache(device, pattern):
    model = build(dim=128, pattern=pattern).to(device)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]
    cached, whole = (generate_tokens(model, prompts, max_new_tokens=16, use_cache=cache) for cache in (True, False))
    assert cached == whole


@pytest.mark.parametrize("kernel", OTHERS)
@pytest.mark.gpu
def test_the_same_step_twice(kernel, record_property):
    """To be read, not held to: the backward pass of FlashAttention adds in any order."""
    scores = Scores(PATTERNS.build({"name": "full"}), 4, 2, 32)
    if KERNELS[kernel].refusal(scores, Place("cuda", BF16, gradient=True)):
        pytest.skip(f"{kernel} refuses")
    model, batch = build(kernel=kernel, dim=128, context=LENGTH).to("cuda"), batch_on("cuda")
    first, second = loss_and_gradients(model, batch), loss_and_gradients(model, batch)
    identical = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    record_property("bit_identical", identical)
    print(f"{kernel}: bit-identical={identical}")
    assert torch.equal(first[0], second[0])


@pytest.mark.gpu
def test_more_documents_than_promised_stop_the_run():
    """In a process of its own: a GPU is of no use to one after an assertion."""
    code = (
        "import torch; from ablate.model.kernels.varlen import sequence_bounds as bounds;"
        "bounds(torch.arange(8, device='cuda').view(1, 8), 4); torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "ssert" in done.stderr
