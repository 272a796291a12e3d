"""Which kernel computes a layer: the named one, which must support the layer, or else the fastest that does."""

from types import SimpleNamespace

import pytest
import torch
from zoo import build, random_tokens, small, twin

from ablate.errors import AblateError
from ablate.model.axes.pattern import PATTERNS
from ablate.model.kernels import Place, Scores, choose_kernel

REFUSED_AT_BUILD = {
    "sdpa has no soft-cap": ("sdpa", {"attention": small("attention", "gqa", softcap=5.0)}, "has no soft-cap"),
    "varlen has no soft-cap": ("varlen", {"attention": small("attention", "mha", softcap=5.0)}, "has no soft-cap"),
    "varlen adds no bias": ("varlen", {"position": "alibi"}, "bias"),
    "varlen has windows only": ("varlen", {"pattern": "strided"}, "Strided"),
    "flash has windows only": ("flash", {"pattern": {"cycle": ["full", "fixed"]}}, "Fixed"),
}


@pytest.mark.parametrize(("kernel", "axes", "reason"), REFUSED_AT_BUILD.values(), ids=REFUSED_AT_BUILD)
def test_a_kernel_that_cannot_compute_a_layer_is_refused_when_the_model_is_built(kernel, axes, reason):
    with pytest.raises(AblateError, match=f"^model.kernel={kernel}: .*{reason}.*another kernel, or auto$"):
        build(kernel=kernel, **axes)


@pytest.mark.parametrize(("kernel", "reason"), [("varlen", "cuda"), ("flash", "cuda"), ("flex", "no gradient on cpu")])
def test_a_kernel_that_cannot_compute_here_is_refused_at_the_first_forward_pass(kernel, reason):
    with pytest.raises(AblateError, match=f"^model.kernel={kernel}: .*{reason}"):
        build(kernel=kernel)(random_tokens(1, 4))


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["flex", "varlen", "flash"])
def test_a_kernel_without_a_cache_leaves_generation_to_others(kernel):
    model, tokens = build(kernel=kernel), random_tokens(2, 9)
    expected = twin(model, kernel="reference")(tokens)
    torch.testing.assert_close(model(tokens, cache=model.new_cache(2, 9)), expected, rtol=0, atol=1e-5)


def bias(head, query, key):
    return -(query - key).float()


FULL, STRIDED = PATTERNS.build({"name": "full"}), PATTERNS.build({"name": "strided"})
BF16, FP32 = torch.bfloat16, torch.float32
CHOSEN = {
    "plain": (Scores(FULL, 4, 2, 64), BF16, "varlen", "flash"),
    "in fp16": (Scores(FULL, 4, 2, 64), torch.float16, "varlen", "flash"),
    "wide heads": (Scores(FULL, 4, 2, 256), BF16, "varlen", "flash"),
    "too wide heads": (Scores(FULL, 4, 2, 264), BF16, "sdpa", "sdpa"),
    "heads of an odd width": (Scores(FULL, 4, 2, 12), BF16, "sdpa", "sdpa"),
    "in fp32": (Scores(FULL, 4, 2, 64), FP32, "flex", "flex"),
    "in fp32, wide heads": (Scores(FULL, 4, 2, 128), FP32, "sdpa", "sdpa"),
    "in fp64": (Scores(FULL, 4, 2, 64), torch.float64, "sdpa", "sdpa"),
    "another pattern": (Scores(STRIDED, 4, 2, 64), BF16, "flex", "flex"),
    "another pattern, narrow heads": (Scores(STRIDED, 4, 2, 8), BF16, "sdpa", "sdpa"),
    "a bias": (Scores(FULL, 4, 4, 64, bias=bias), BF16, "flex", "flex"),
    "a soft-cap": (Scores(FULL, 4, 4, 64, 5.0), BF16, "flex", "flash"),
    "a soft-cap and a bias": (Scores(FULL, 4, 4, 64, 5.0, bias), BF16, "flex", "flex"),
    "a soft-cap, narrow heads": (Scores(STRIDED, 4, 4, 8, 5.0), BF16, "reference", "reference"),
}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU to choose for: gpu(major compute capability, whether flash-attn is installed)."""

    def pretend(major: int = 9, flash: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=major))
        monkeypatch.setattr("ablate.model.kernels.varlen.FLASH_ATTN", flash)

    return pretend


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("case", CHOSEN)
def test_auto_takes_the_fastest_that_can(gpu, case, flash):
    gpu(flash=flash)
    scores, dtype, *expected = CHOSEN[case]
    assert choose_kernel("auto", scores, Place("cuda", dtype, gradient=True)) == expected[flash]


def test_auto_takes_no_flash_attention_on_a_gpu_that_is_too_old_for_it(gpu):
    gpu(major=7, flash=True)
    assert choose_kernel("auto", CHOSEN["plain"][0], Place("cuda", torch.float16, gradient=True)) == "flex"


def test_auto_generates_by_sdpa(gpu):
    gpu(flash=True)
    assert choose_kernel("auto", CHOSEN["plain"][0], Place("cuda", BF16, gradient=False, cached=True)) == "sdpa"


NAMED = {
    "varlen in fp32": ("varlen", Place("cuda", FP32, True), "bfloat16 or float16, not in float32"),
    "varlen on an old GPU": ("varlen", Place("cuda", BF16, True), "8.0"),
    "flash, not installed": ("flash", Place("cuda", BF16, True), r"pip install 'ablate\[flash\]'"),
}


@pytest.mark.parametrize(("kernel", "place", "reason"), NAMED.values(), ids=NAMED)
def test_a_named_kernel_that_cannot_compute_on_this_gpu_is_refused_in_one_line(gpu, kernel, place, reason):
    gpu(major=7 if "8.0" in reason else 9)
    with pytest.raises(AblateError, match=f"^model.kernel={kernel}: .*{reason}.*$"):
        choose_kernel(kernel, CHOSEN["plain"][0], place)
