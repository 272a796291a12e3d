"""Decoding on a fake GPU (tests/fake_cuda.py): all tensors are on it, and the host never waits for it."""

import pytest
import torch
from fake_cuda import fake_cuda, on_cuda
from torch._subclasses.fake_tensor import DataDependentOutputException

from ablate.generation import Sampling, decode, step, stream_tokens
from ablate.generation.sampling import choose
from ablate.model.cache import Cache

from .models import tiny

EQUAL = [[3, 1, 4, 1], [5, 9, 2, 6]]
RAGGED = [[3, 1, 4, 1], [5]]
COUNT = 12
ALL = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}
WIDE = {"name": "gqa", "kv_heads": 2, "head_dim": 16}  # heads that every kernel takes
MODELS = [
    *({"pattern": pattern} for pattern in ("full", "local", "strided", "fixed")),
    *({"position": position} for position in ("alibi", "learned", "none")),
    *({"attention": attention} for attention in ("mha", "mqa")),
    {"ffn": "moe"},
]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Replaces what fake tensors cannot have: a generator on the GPU and CUDA graphs. A replay runs the step again."""
    monkeypatch.setattr(decode, "seeded", lambda device, seed: None)
    monkeypatch.setattr(step, "capture_on", lambda device: (lambda run, undo: run) if device.type == "cuda" else None)
    monkeypatch.setattr(step, "FIRST_SPAN", 4)  # so that steps have spans 4, 8 and 16
    yield
    step.forget()


def built(**choice):
    with torch.device("meta"):
        model = tiny(**{"attention": WIDE, **choice})
    for length in (16, len(EQUAL[0]) + COUNT):  # counted once per length, on the host
        model.cache_shapes(length)
    return model


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("choice", MODELS, ids=str)
def test_the_host_sends_the_prompts_and_then_never_waits(choice, use_cache):
    model = built(**choice)
    with fake_cuda() as watch:
        on_cuda(model, torch.bfloat16)
        steps = list(stream_tokens(model, EQUAL, COUNT, sampling=Sampling(**ALL), use_cache=use_cache))
        assert [ids.shape for ids in steps] == [(2,)] * COUNT
    assert watch.sent == [[2, 4 if use_cache else 4 + COUNT - 1], [2]]  # token ids, and lengths


@pytest.mark.parametrize("prompts", [EQUAL, RAGGED], ids=["equal", "ragged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_the_cache_ragged_prompts_do_not_wait_either(prompts, dtype):
    model = built()
    with fake_cuda() as watch:
        on_cuda(model, dtype)
        assert len(list(stream_tokens(model, prompts, COUNT, use_cache=False))) == COUNT
    assert len(watch.sent) == 2


def test_with_the_cache_ragged_prompts_wait_where_their_padding_is_checked(monkeypatch):
    model = built()
    with fake_cuda():
        on_cuda(model)
        with pytest.raises(DataDependentOutputException):
            next(stream_tokens(model, RAGGED, COUNT))

    def unchecked(cache: Cache, documents: torch.Tensor) -> torch.Tensor:
        cache.ragged = True
        return documents >= 0

    monkeypatch.setattr(Cache, "_padding_checked", unchecked)
    step.forget()
    model = built()
    with fake_cuda() as watch:
        on_cuda(model)
        assert len(list(stream_tokens(model, RAGGED, COUNT, sampling=Sampling(**ALL), prefill_chunk=3))) == COUNT
    assert len(watch.sent) == 2


def test_the_loop_waits_for_rows_to_stop_at_every_sixteenth_step():
    model, steps = built(), []
    with fake_cuda():
        on_cuda(model)
        with pytest.raises(DataDependentOutputException):
            for ids in stream_tokens(model, EQUAL, decode.LOOK_EVERY + 3, stop=7):
                steps.append(ids)
    assert len(steps) == 3
    model, step_count = built(), decode.LOOK_EVERY
    with fake_cuda():
        on_cuda(model)
        assert len(list(stream_tokens(model, EQUAL, step_count, stop=7))) == step_count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, *({name: value} for name, value in ALL.items()), {"temperature": 0.0}, ALL], ids=str
)
def test_choosing_a_token(options, dtype):
    with fake_cuda() as watch:
        logits = torch.empty(2, 31, dtype=dtype, device="cuda")
        seen = torch.empty(2, 31, dtype=torch.bool, device="cuda")
        assert choose(logits, Sampling(**options), None, seen).shape == (2,)
    assert watch.sent == []
