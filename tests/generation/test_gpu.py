"""Generation on a GPU, where decoding steps are captured as CUDA graphs: pytest -m gpu."""

import gc
import weakref

import pytest
import torch

from ablate.errors import AblateError
from ablate.generation import generate_tokens, step, stream_tokens
from ablate.generation.step import cuda_graph

from .models import CONTEXT, tiny

pytestmark = pytest.mark.gpu

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 7]]
COUNT = CONTEXT - 8
MODELS = [
    *({"pattern": pattern, "position": position} for pattern in ("full", "local", "strided", "fixed")
      for position in ("rope", "alibi", "learned")),
    *({"attention": attention} for attention in ("mha", "gqa", "mqa")),
    {"ffn": "moe"},
    {"placement": "post", "norm": "layernorm"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def short_spans(monkeypatch):
    monkeypatch.setattr(step, "FIRST_SPAN", 4)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("choice", MODELS, ids=str)
def test_greedy_tokens_are_those_of_the_cpu_without_a_cache(choice, compile):
    model = tiny(**choice)
    expected = generate_tokens(model, PROMPTS, COUNT, use_cache=False)
    assert generate_tokens(model.cuda(), PROMPTS, COUNT, compile=compile) == expected
    assert generate_tokens(model, PROMPTS, COUNT, use_cache=False) == expected


@pytest.fixture
def captures(monkeypatch) -> list[int]:
    """The span of each captured graph."""
    spans = []

    def counted(run, undo):
        spans.append(run.__self__.cache.span)
        return cuda_graph(run, undo)

    monkeypatch.setattr(step, "capture_on", lambda device: counted)
    return spans


@pytest.mark.parametrize("choice", MODELS, ids=str)
def test_captured_steps_give_the_ids_of_eager_ones(choice, monkeypatch):
    model = tiny(**choice).cuda()
    captured = generate_tokens(model, PROMPTS, COUNT)
    monkeypatch.setattr(step, "capture_on", lambda device: None)
    assert generate_tokens(model, PROMPTS, COUNT) == captured


def test_each_span_is_captured_once(captures):
    model = tiny().cuda()
    for prompts in (PROMPTS, PROMPTS[::-1]):
        generate_tokens(model, prompts, COUNT)
    assert captures == [16, 32]


def test_weights_that_have_moved_are_captured_anew(captures):
    model = tiny().cuda()
    generate_tokens(model, PROMPTS, COUNT)
    with torch.no_grad():
        model.final_norm.weight.mul_(2)  # in the same memory: the graphs read the new values
    assert generate_tokens(model, PROMPTS, COUNT) == generate_tokens(model, PROMPTS, COUNT, use_cache=False)
    assert captures == [16, 32]
    model.final_norm.weight.data = model.final_norm.weight.data * 3
    assert generate_tokens(model, PROMPTS, COUNT) == generate_tokens(model, PROMPTS, COUNT, use_cache=False)
    assert captures == [16, 32] * 2


def test_memory_does_not_grow_from_text_to_text():
    def allocated() -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    model = tiny().cuda()
    generate_tokens(model, PROMPTS, COUNT)
    before = allocated()
    for _ in range(5):
        generate_tokens(model, PROMPTS, COUNT)
        assert allocated() == before


def test_graphs_that_are_replaced_are_freed():
    model = tiny().cuda()
    generate_tokens(model, PROMPTS, COUNT)
    replaced = weakref.ref(step._kept[model][1])
    model.final_norm.weight.data = model.final_norm.weight.data.clone()
    generate_tokens(model, PROMPTS, COUNT)
    gc.collect()
    assert replaced() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choice", [{}, {"pattern": "local"}, {"ffn": "moe"}], ids=str)
def test_replayed_steps_never_wait_for_the_gpu(choice, dtype):
    model = tiny(**choice).cuda().to(dtype)
    steps = stream_tokens(model, PROMPTS, COUNT)
    for _ in range(9):  # the last span is captured by now
        next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(found) == COUNT - 9


def test_rows_that_have_stopped_end_the_stream_within_sixteen_steps():
    model = tiny().cuda()
    whole = generate_tokens(model, PROMPTS[:1], COUNT)
    stop = whole[0][0]
    assert generate_tokens(model, PROMPTS[:1], COUNT, stop=stop) == [[]]


def test_sampling_is_the_same_for_the_same_seed():
    model = tiny().cuda()
    options = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}
    first = generate_tokens(model, PROMPTS, COUNT, seed=1, **options)
    assert generate_tokens(model, PROMPTS, COUNT, seed=1, **options) == first


def test_a_cache_beyond_the_gpus_memory_is_refused():
    model = tiny(position="rope").cuda()
    with pytest.raises(AblateError, match="GiB"):
        stream_tokens(model, [[1]], 10**12)
