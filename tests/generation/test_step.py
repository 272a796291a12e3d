"""Decoding steps that do the same work each time: compiled, and captured. Graphs have stand-ins on a CPU."""

import contextlib

import pytest
import torch

from ablate.errors import AblateError
from ablate.generation import generate_tokens, step, stream_tokens
from ablate.generation.step import Step, decode, span_of

from .models import CONTEXT, PAIRS, VOCAB, tiny

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 7]]
COUNT = CONTEXT - 8
PATTERNS = ["full", "local", "strided", "fixed"]


@pytest.fixture
def short_spans(monkeypatch):
    """So that tiny models come to double them."""
    monkeypatch.setattr(step, "FIRST_SPAN", 4)


@pytest.fixture
def uncompiled(monkeypatch, short_spans):
    monkeypatch.setattr(step, "compiled", lambda function, dynamic: function)


class Graph:
    """Does on replay what was done while it was captured, as a CUDA graph does."""

    def replay(self):
        self.logits.copy_(self.again())


@pytest.fixture
def graphs(monkeypatch, short_spans):
    """CUDA's part of `Step`, played on the CPU. Returns the graphs captured."""
    made = []

    @contextlib.contextmanager
    def capture(graph):
        steps = made[-1][1]
        state = [t.clone() for t in steps.tensors()]
        yield  # a capture runs nothing: what it did to the cache is undone
        for tensor, before in zip(steps.tensors(), state, strict=True):
            tensor.copy_(before)

    class Stream:
        def wait_stream(self, other):
            pass

    class Captured(Step):
        def __init__(self, model, cache, compile=False):
            super().__init__(model, cache, compile)
            self._captures = self._fixed = True

        def tensors(self):
            buffers = [b._flat for pair in self._cache.buffers for b in pair]
            return [self._cache.length, *buffers, *(b._flat for b in self._cache.positions.values())]

        def _capture(self):
            graph = Graph()
            made.append((graph, self))
            monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
            found, graph.logits = super()._capture()
            span = self._cache.span

            def again():
                self._cache.span = span
                return decode(self._model, self._ids, self._cache)

            graph.again = again
            return found, graph.logits

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda aside: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr("ablate.generation.decode.Step", Captured)
    return made


@pytest.mark.parametrize("choice", PAIRS, ids=lambda choice: "-".join(name for _, name in choice))
def test_steps_of_one_shape_are_the_uncached_ones(choice, uncompiled):
    model = tiny(**dict(choice))
    expected = generate_tokens(model, PROMPTS, COUNT, use_cache=False)
    assert generate_tokens(model, PROMPTS, COUNT, compile=True) == expected


@pytest.mark.parametrize("position", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_replayed_steps_are_the_uncached_ones(pattern, position, graphs):
    model = tiny(pattern=pattern, position=position)
    for prompts in (PROMPTS, PROMPTS[:1]):
        expected = generate_tokens(model, prompts, COUNT, use_cache=False)
        graphs.clear()
        assert generate_tokens(model, prompts, COUNT) == expected
        assert len(graphs) == 2  # from 9 tokens on: spans 16 and, cut at the cache's length, 23


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
    for first, end in zip(bounds, bounds[1:], strict=False):
        assert len(set(shapes[first:end])) == 1
    assert cache.filled == CONTEXT and cache.length.tolist() == [CONTEXT] and cache.span is None


def test_spans_double():
    assert [span_of(n) for n in (1, 512, 513, 1024, 1025, 5000)] == [512, 512, 1024, 1024, 2048, 8192]


def test_a_step_that_fails_leaves_the_cache_usable(uncompiled):
    model = tiny()
    cache = model.new_cache(1, 8)
    one = Step(model, cache, compile=True)
    with pytest.raises(IndexError), torch.no_grad():
        one(torch.tensor([VOCAB + 7]))
    assert cache.span is None


@pytest.mark.parametrize("model", [{}, {"pattern": "fixed", "position": "alibi"}, {"attention": "mqa", "ffn": "gelu"}])
def test_a_step_is_one_graph(model, short_spans):
    """Nothing in it makes the compiler stop and look."""
    model = tiny(**model)
    torch._dynamo.reset()
    one = Step(model, model.new_cache(2, 16))
    one._decode, one._fixed = torch.compile(decode, fullgraph=True, dynamic=False, backend="eager"), True
    plain = Step(model, model.new_cache(2, 16))
    with torch.no_grad():
        for id in range(6):
            ids = torch.tensor([id, 6 - id])
            torch.testing.assert_close(one(ids), plain(ids), rtol=0, atol=1e-5)


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
