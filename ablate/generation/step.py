"""One decoding step, ids `[B]` -> logits `[B, V]`: eager; or compiled; on a GPU captured as a CUDA graph, and replayed.

Compiled and captured steps do the same work at the same places each time. They read the first `span` slots of the
cache, empty ones behind a mask, and `span` doubles when it is full:

    tokens held    1 ... 512    513 ... 1024    1025 ... 2048
    span                 512            1024             2048      one graph each
"""

from collections.abc import Callable
from functools import cache as once
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ablate.model.cache import Cache
    from ablate.model.decoder import Decoder

FIRST_SPAN = 512
WARM_UP = 3  # steps before one is captured, in which libraries choose and allocate


def span_of(tokens: int) -> int:
    """The smallest span that holds so many tokens."""
    return max(FIRST_SPAN, 1 << (tokens - 1).bit_length())


class Step:
    """Steps of one model with one cache.

    compile: by torch.compile, which takes a while at the first step, and again when a shape is new.
    """

    def __init__(self, model: "Decoder", cache: "Cache", compile: bool = False):
        self._model, self._cache = model, cache
        self._decode = compiled(decode, dynamic=False) if compile else decode
        self._captures = cache.length.is_cuda
        self._fixed = compile or self._captures
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._ids = torch.zeros_like(cache.length)

    def __call__(self, ids: Tensor) -> Tensor:
        """Adds `ids` to the cache; the logits stay valid until the next call."""
        if not self._fixed:
            return self._decode(self._model, ids, self._cache)
        self._cache.span = min(span_of(self._cache.filled + 1), self._cache.max_length)
        try:
            if not self._captures:
                return self._decode(self._model, ids, self._cache)
            self._ids.copy_(ids)
            graph, logits = self._graph(self._cache.span)
            graph.replay()
            return logits
        finally:
            self._cache.span = None
            self._cache.filled += 1

    def _graph(self, span: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if span not in self._graphs:
            self._graphs[span] = self._capture()
        return self._graphs[span]

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._decode(self._model, self._ids, self._cache)
                self._cache.length.sub_(1)  # the next one writes to the same slots
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._decode(self._model, self._ids, self._cache)
        return graph, logits


def decode(model: "Decoder", ids: Tensor, cache: "Cache") -> Tensor:
    """One token a row, `[B]` -> logits `[B, V]`."""
    return model(ids.unsqueeze(1), cache=cache)[:, 0]


def prefill(model: "Decoder", tokens: Tensor, documents: Tensor | None, cache: "Cache") -> Tensor:
    """Prompts, or a part of them, `[B, T]` -> hidden states `[B, T, D]`."""
    return model.hidden(tokens, documents=documents, cache=cache)


@once
def compiled(function: Callable, dynamic: bool) -> Callable:
    """Once for all models: torch.compile finds out what differs between them."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # sizes of batch and cache
    return torch.compile(function, dynamic=dynamic)
