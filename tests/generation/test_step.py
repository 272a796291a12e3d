"""Decoding steps of fixed shapes, compiled and captured. test_gpu.py tests what needs a real CUDA graph."""

import gc
from itertools import pairwise

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ablate.errors import AblateError
from ablate.generation import generate_tokens, step, stream_tokens
from ablate.generation.step import Step, capture_on, cuda_graph, decode, span_of

from .models import CONTEXT, PAIRS, VOCAB, tiny
from .test_decode import cached

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 7]]
COUNT = CONTEXT - 8
PATTERNS = ["full", "local", "strided", "fixed"]


@pytest.fixture
def short_spans(monkeypatch):
    """Short enough that tiny models double them."""
    monkeypatch.setattr(step, "FIRST_SPAN", 4)


@pytest.fixture
def uncompiled(monkeypatch, short_spans):
    monkeypatch.setattr(step, "compiled", lambda function, **options: function)


@pytest.fixture
def captures(monkeypatch, short_spans):
    """Captures steps on the CPU too; a replay runs the step again. Returns the span of each capture."""
    spans = []

    def capture(run, undo):
        step_, span = run.__self__, run.__self__.cache.span
        spans.append(span)

        def replay():
            assert step_.cache.span == span  # a real graph would read this many slots, whatever cache.span is
            return run()

        run()
        undo()
        return replay

    monkeypatch.setattr(step, "capture_on", lambda device: capture)
    return spans


# All pairs take half a minute: every fifth always runs, the others with -m slow.
SOME_PAIRS = [
    pytest.param(pair, marks=[pytest.mark.slow] * bool(number % 5), id="-".join(name for _, name in pair))
    for number, pair in enumerate(PAIRS)
]


@pytest.mark.parametrize("choice", SOME_PAIRS)
def test_steps_of_one_shape_are_the_eager_ones(choice, uncompiled):
    model = tiny(**dict(choice))
    assert generate_tokens(model, PROMPTS, COUNT, compile=True) == generate_tokens(model, PROMPTS, COUNT)


@pytest.mark.parametrize("position", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_replayed_steps_are_the_uncached_ones(pattern, position, captures):
    model = tiny(pattern=pattern, position=position)
    for prompts, spans in ((PROMPTS, [16, 32]), (PROMPTS[:1], [8, 16, 32])):  # after 8 tokens, and after 7
        expected = generate_tokens(model, prompts, COUNT, use_cache=False)
        captures.clear()
        for _ in range(2):  # the second time reuses what the first has captured
            assert generate_tokens(model, prompts, COUNT) == expected
        assert captures == spans


def test_captured_steps_are_kept_for_the_weights_that_they_read(captures):
    model = tiny()
    generate_tokens(model, PROMPTS, COUNT)
    captured = len(captures)
    generate_tokens(model, PROMPTS[::-1], COUNT - 1)
    assert len(captures) == captured
    with torch.no_grad():
        model.final_norm.weight.mul_(2)  # in the same memory: a graph reads the new values
    assert generate_tokens(model, PROMPTS, COUNT) == generate_tokens(model, PROMPTS, COUNT, use_cache=False)
    assert len(captures) == captured
    model.final_norm.weight.data = model.final_norm.weight.data * 3  # in other memory
    assert generate_tokens(model, PROMPTS, COUNT) == generate_tokens(model, PROMPTS, COUNT, use_cache=False)
    assert len(captures) == 2 * captured


def test_other_numbers_of_rows_are_captured_anew(captures):
    model = tiny()
    for rows in (4, 3, 4):
        generate_tokens(model, PROMPTS[:rows], COUNT)
    assert captures == [16, 32] * 3  # a model keeps only the last captured step


def test_two_streams_of_one_model_do_not_meet(captures):
    model = tiny()
    expected = generate_tokens(model, PROMPTS[:1], COUNT)
    pairs = zip(*(stream_tokens(model, PROMPTS[:1], COUNT) for _ in range(2)), strict=True)
    assert [int(a) for a, b in pairs if int(a) == int(b)] == expected[0]


def test_captured_steps_go_with_their_model(captures):
    model = tiny()
    generate_tokens(model, PROMPTS, COUNT)
    assert model in step._kept
    del model
    gc.collect()
    assert len(step._kept) == 0


def test_captured_steps_can_be_given_up(captures):
    model = tiny()
    generate_tokens(model, PROMPTS, COUNT)
    step.forget()
    assert len(step._kept) == 0
    generate_tokens(model, PROMPTS, COUNT)
    assert captures == [16, 32] * 2


def test_only_a_gpu_captures():
    assert capture_on(torch.device("cpu")) is None and capture_on(torch.device("cuda")) is cuda_graph


@pytest.mark.parametrize("pattern", PATTERNS)
def test_shapes_change_when_the_span_doubles_and_at_no_other_step(pattern, uncompiled, monkeypatch):
    model, seen = tiny(pattern=pattern), []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, *rest, **options):
        seen.append(tuple(key.shape))
        return kernel(query, key, *rest, **options)

    cache = model.new_cache(1, CONTEXT)
    one = Step(model, cache, compile=True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    shapes = []
    with torch.no_grad():
        for _ in range(CONTEXT):
            seen.clear()
            one(torch.tensor([1]))
            shapes.append(tuple(seen))
    bounds = [0, 4, 8, 16, CONTEXT]
    for first, end in pairwise(bounds):
        assert len(set(shapes[first:end])) == 1
    assert cache.filled == CONTEXT and cache.length.tolist() == [CONTEXT] and cache.span is None


def test_spans_double():
    assert [span_of(n) for n in (1, 256, 257, 512, 513, 5000)] == [256, 256, 512, 512, 1024, 8192]


def test_a_step_that_fails_leaves_the_cache_usable(uncompiled):
    model = tiny()
    cache = model.new_cache(1, 8)
    one = Step(model, cache, compile=True)
    with pytest.raises(IndexError), torch.no_grad():
        one(torch.tensor([VOCAB + 7]))
    assert cache.span is None


@pytest.mark.parametrize("model", [{}, {"pattern": "fixed", "position": "alibi"}, {"attention": "mqa", "ffn": "gelu"}])
def test_a_step_is_one_graph(model, short_spans):
    """A step compiles without graph breaks, and compiles again only when the span doubles."""
    model = tiny(**model)
    torch._dynamo.reset()
    one, graphs = Step(model, model.new_cache(2, 16)), CompileCounter()
    one._decode, one._fixed = torch.compile(decode, fullgraph=True, dynamic=False, backend=graphs), True
    plain = Step(model, model.new_cache(2, 16))
    with torch.no_grad():
        for id in range(6):
            ids = torch.tensor([id, 6 - id])
            torch.testing.assert_close(one(ids), plain(ids), rtol=0, atol=1e-5)
    assert graphs.frame_count == 2  # spans 4 and 8


@pytest.mark.slow
def test_the_prompts_pass_compiles_for_any_length():
    model = tiny(pattern="local")
    torch._dynamo.reset()
    quick = torch.compile(step.prefill, dynamic=True, backend="eager")
    for rows, chunk in (([[1, 2, 3]], None), ([[1, 2, 3, 4, 5]], None), (PROMPTS, None), (PROMPTS, 3)):
        plain, other = (cached(model, rows, chunk) for _ in "12")
        other._hidden = quick
        with torch.no_grad():
            torch.testing.assert_close(other.prefill(), plain.prefill(), rtol=0, atol=1e-5)
            ids = torch.tensor([3] * len(rows))
            torch.testing.assert_close(other.step(ids), plain.step(ids), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["full", "local"])
def test_compiled_steps_generate_the_same(pattern):
    model = tiny(pattern=pattern)
    for prompts in (PROMPTS[:1], PROMPTS):
        assert generate_tokens(model, prompts, COUNT, compile=True) == generate_tokens(model, prompts, COUNT)


@pytest.mark.parametrize(
    "options, key", [({"compile": True, "use_cache": False}, "compile=true"), ({"compile": 1}, "compile=1")]
)
def test_what_compile_refuses(options, key):
    with pytest.raises(AblateError, match=key):
        stream_tokens(tiny(), [[1]], 4, **options)


@pytest.mark.slow
def test_without_a_compiler_compile_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(AblateError, match=r"compile=true: torch\.compile fails here"):
        generate_tokens(tiny(seed=3), [[1]], 4, compile=True)
