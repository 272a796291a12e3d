"""The bytes and FLOPs of a step compared with brute force: poisoned weights, filled slots, counted products."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from generation.models import tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ablate import budget
from ablate.benchmark.generation import limits
from ablate.benchmark.generation.limits import Limits, Work, measure_limits, read_bandwidth, weight_bytes
from ablate.generation.decode import _Cached, _Uncached
from ablate.generation.step import Step
from ablate.model.cache import LayerShape
from ablate.model.decoder import Decoder
from ablate.model.kernels import grouped

CYCLE = {"cycle": ["full", "local", "strided"], "window": 5, "stride": 3}
MIXTURE = {"name": "moe", "experts": 5, "top_k": 2, "hidden": 8, "shared_experts": 1}
MODELS = {
    "tied": {},
    "learned positions": {"position": "learned"},
    "multi-head, biases": {"attention": {"name": "mha", "bias": True}, "ffn": "gelu"},
    "multi-query, layer norm": {"attention": "mqa", "norm": "layernorm"},
    "every other layer a mixture": {"ffn": {"cycle": ["swiglu", MIXTURE]}},
}


def built(choice: str = "tied", pattern: str | dict = "full", tie: bool = True) -> Decoder:
    """A model of width 16 with three layers."""
    base = tiny(**MODELS[choice], pattern=pattern, kernel="reference").config
    return Decoder(dataclasses.replace(base, depth=3, tie_embeddings=tie)).eval()


def prompts(batch: int, length: int) -> list[list[int]]:
    """Prompts without a repeated token, so that each reads another row of the embedding."""
    return torch.randperm(31)[: batch * length].view(batch, length).tolist()


@torch.no_grad()
def values_read(model: Decoder, rows: list[list[int]]) -> int:
    """The number of weights that a token in each row reads: a weight counts if making it NaN changes the logits."""
    tokens, read = torch.tensor(rows), 0
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        by_part = parameter in tables or parameter.ndim == 3  # rows of a table, experts of a mixture
        for part in parameter if by_part else [parameter]:
            kept = part.clone()
            part.fill_(math.nan)
            read += part.numel() * bool(model(tokens).isnan().any())
            part.copy_(kept)
    return read


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("choice", MODELS)
def test_the_weights_of_one_token_are_those_that_it_reads(choice, tie):
    model = built(choice, tie=tie)
    expected = 4 * values_read(model, prompts(1, 1))
    assert weight_bytes(model, 1) == expected
    assert weight_bytes(model.bfloat16(), 1) == expected / 2


def test_several_tokens_read_the_experts_that_they_choose():
    model = built("every other layer a mixture", tie=False)
    read = {values_read(model, prompts(2, 1)) for _ in range(4)}
    assert len(read) > 1  # tokens may choose the same experts
    assert weight_bytes(model, 2) == 4 * max(read)
    assert weight_bytes(model, 3) - weight_bytes(model, 2) == 4 * (16 + 3 * 16 * 8)  # a row, and the fifth expert
    assert weight_bytes(model, 4) - weight_bytes(model, 3) == 4 * 16
    assert weight_bytes(model, 10**9) == 4 * budget(model).total


def test_a_dense_model_with_a_tied_head_reads_all_that_it_has():
    model = built("tied")
    assert weight_bytes(model, 1) == weight_bytes(model, 64) == 4 * budget(model).total


PATTERNS = ["full", "local", "strided", "fixed", CYCLE]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seen", [3, 5, 6, 16])
def test_a_step_reads_the_slots_of_the_cache_that_are_filled(pattern, seen):
    model = built(pattern=pattern)
    cache = model.new_cache(2, seen)
    with torch.no_grad():
        model(torch.tensor(prompts(1, seen) * 2), cache=cache)
    filled = sum(int((buffer.held() != 0).sum()) for pair in cache.buffers for buffer in pair)
    nbytes, _ = Work(model).step(2, seen)
    assert nbytes - weight_bytes(model, 2) == 4 * filled


def masked_flops(model: Decoder, query: int, keys: Callable[[LayerShape], int]) -> int:
    """FLOPs of a query's products with keys that the pattern masks. keys: the number of keys in a layer."""
    masked = 0
    for layer, shape in zip(model.layers, model.cache_shapes(query + 1), strict=True):
        allowed = sum(bool(layer.pattern.allowed(torch.tensor(query), torch.tensor(key))) for key in range(query + 1))
        masked += 4 * model.config.heads * shape.head_dim * (keys(shape) - allowed)
    return masked


@pytest.mark.parametrize("choice", MODELS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_flops_of_a_step_are_those_of_its_products(choice, pattern, monkeypatch):
    monkeypatch.setattr(grouped, "LEAST_ROWS", 1)  # no padding: what is computed is what is needed
    model, length = built(choice, pattern), 9
    rows, work, seen = prompts(2, length), Work(model), length + 1
    step = Step(model, model.new_cache(2, seen))
    cached, whole = _Cached(model, rows, step), _Uncached(model, rows, 2)
    with torch.inference_mode():
        cached.prefill()
        with FlopCounterMode(display=False) as once:
            cached.step(torch.tensor([1, 2]))
        with FlopCounterMode(display=False) as again:
            whole.step(torch.tensor([1, 2]))
    masked = masked_flops(model, length, lambda shape: shape.size)
    assert work.step(2, seen)[1] == once.get_total_flops() - 2 * masked
    masked = sum(masked_flops(model, query, lambda shape: seen) for query in range(seen))
    assert work.whole(2, seen)[1] == again.get_total_flops() - 2 * masked


@pytest.mark.parametrize("cached", [True, False])
def test_the_limit_is_the_mean_over_the_steps_of_what_takes_longest(cached):
    work = Work(built(pattern="local"))
    one = work.step if cached else work.whole
    bandwidth, rate = 1e9, 1e9 * one(2, 12)[1] / one(2, 12)[0]  # at the eighth step both take as long
    limits = Limits(bandwidth, rate)
    steps = [one(2, seen) for seen in range(5, 16)]
    expected = [max(nbytes / bandwidth, flops / rate) for nbytes, flops in steps]
    assert work.limit(limits, 2, 4, 12, cached) == pytest.approx(sum(expected) / 11)
    assert work.limit(limits, 2, 4, 1, cached) is None


def test_without_a_cache_a_step_reads_no_cache():
    model = built()
    assert Work(model).whole(2, 8)[0] == weight_bytes(model, 16)


def test_rates_are_measured_within_the_memory_that_is_there(monkeypatch):
    monkeypatch.setattr(limits, "machine_memory", lambda: 2**16)
    sizes, ones = [], torch.ones
    monkeypatch.setattr(limits.torch, "ones", lambda size, **options: sizes.append(size) or ones(size, **options))
    assert read_bandwidth(torch.device("cpu")) > 0
    assert sizes == [2**13 // 4]
    measured = measure_limits(torch.device("cpu"), torch.float32)
    assert measured.bandwidth_bytes_per_s > 0 and measured.flops_per_s == 1e11


def test_the_better_of_two_measurements_counts():
    assert Limits(1.0, 5.0).or_better(Limits(3.0, 4.0)) == Limits(3.0, 5.0)
