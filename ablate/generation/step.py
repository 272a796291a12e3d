"""One decoding step, ids `[B]` -> logits `[B, V]`: eager; or compiled; on a GPU captured as a CUDA graph, and replayed.

Compiled and captured steps do the same work at the same places each time. They read the first `span` slots of the
cache, empty ones behind a mask, and `span` doubles when it is full:

    tokens held    1 ... 256    257 ... 512    513 ... 1024
    span                 256            512            1024      one graph each
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as once
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ablate.errors import AblateError

if TYPE_CHECKING:
    from ablate.model.cache import Cache
    from ablate.model.decoder import Decoder

FIRST_SPAN = 256
WARM_UP = 3  # steps before one is captured, in which libraries choose and allocate


def span_of(tokens: int) -> int:
    """The smallest span that holds so many tokens."""
    return max(FIRST_SPAN, 1 << (tokens - 1).bit_length())


@contextmanager
def steps(model: "Decoder", batch: int, tokens: int, compile: bool = False) -> Iterator["Step"]:
    """Steps with an empty cache for `batch` rows of up to `tokens` tokens.

    Where steps are compiled or captured, the cache is as long as their last span, so that other prompts find the
    same shapes. What is captured stays with the model, for the next who asks for as many rows and as long a cache.
    """
    captures = model.embedding.weight.is_cuda
    length = span_of(tokens) if compile or captures else tokens
    if not captures:
        yield Step(model, model.new_cache(batch, length), compile)
        return
    tensors = [*model.parameters(), *model.buffers()]  # whose addresses are part of a graph
    key = (batch, length, compile, *((t.data_ptr(), t.dtype) for t in tensors))
    known, step = _kept.pop(model, (None, None))  # out of the reach of a second stream, while this one lasts
    if known != key:
        step = Step(model, model.new_cache(batch, length), compile)
    step.cache.clear()
    try:
        yield step
    finally:
        _kept[model] = key, step


_kept: "weakref.WeakKeyDictionary[Decoder, tuple[Any, Step]]" = weakref.WeakKeyDictionary()


def forget() -> None:
    """Frees what is captured, and its caches."""
    _kept.clear()


class Step:
    """Steps of one model with one cache.

    compile: by torch.compile, which takes a while at the first step, and again when a shape is new.
    """

    def __init__(self, model: "Decoder", cache: "Cache", compile: bool = False):
        self._model, self.cache = weakref.ref(model), cache
        self._captures = cache.length.is_cuda
        self._decode = compiled(decode, dynamic=False, in_cpp=not self._captures) if compile else decode
        self._fixed = compile or self._captures
        self._seen: set[int] = set()  # spans that torch.compile has checked the model and the cache for
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._ids = torch.zeros_like(cache.length)

    def __call__(self, ids: Tensor) -> Tensor:
        """Adds `ids` to the cache; the logits stay valid until the next call."""
        if not self._fixed:
            return self._decode(self._model(), ids, self.cache)
        self.cache.span = min(span_of(self.cache.filled + 1), self.cache.max_length)
        try:
            if not self._captures:
                with torch.compiler.set_stance("default", skip_guard_eval_unsafe=self.cache.span in self._seen):
                    logits = self._decode(self._model(), ids, self.cache)
                self._seen.add(self.cache.span)
                return logits
            self._ids.copy_(ids)
            graph, logits = self._graph(self.cache.span)
            graph.replay()
            return logits
        finally:
            self.cache.span = None
            self.cache.filled += 1

    def _graph(self, span: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if span not in self._graphs:
            self._graphs[span] = self._capture()
        return self._graphs[span]

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._decode(self._model(), self._ids, self.cache)
                self.cache.length.sub_(1)  # the next one writes to the same slots
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._decode(self._model(), self._ids, self.cache)
        return graph, logits


def decode(model: "Decoder", ids: Tensor, cache: "Cache") -> Tensor:
    """One token a row, `[B]` -> logits `[B, V]`."""
    return model(ids.unsqueeze(1), cache=cache)[:, 0]


def prefill(model: "Decoder", tokens: Tensor, documents: Tensor | None, cache: "Cache") -> Tensor:
    """Prompts, or a part of them, `[B, T]` -> hidden states `[B, T, D]`."""
    return model.hidden(tokens, documents=documents, cache=cache)


@once
def compiled(function: Callable, dynamic: bool, in_cpp: bool = False) -> Callable:
    """Once for all models: torch.compile finds out what differs between them.

    in_cpp: what calls the kernels is compiled as well.

    Raises, when it is called:
        AblateError: this machine cannot compile, as without a C++ compiler.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # sizes of batch and cache
    options = {"cpp_wrapper": True} if in_cpp else None
    quick = torch.compile(function, fullgraph=not dynamic, dynamic=dynamic, options=options)

    def call(*args):
        try:
            return quick(*args)
        except (TorchDynamoException, InductorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AblateError(f"compile=true: torch.compile fails here ({reason}); leave it out") from error

    return call
