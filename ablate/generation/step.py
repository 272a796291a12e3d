"""One decoding step: ids `[B]` -> logits `[B, V]`.

    eager       on a CPU, by default: attention reads the slots of the cache that are in use
    compiled    with compile=true: by torch.compile
    captured    on a GPU: recorded once as a CUDA graph, then replayed; with compile=true it is compiled first

A compiled or captured step must have the same shapes every time. It reads the first `span` slots of the cache, and a
mask hides those that are still empty. When they are full, the span doubles and the step is compiled or captured again:

    tokens in the cache    1 ... 256    257 ... 512    513 ... 1024
    span                         256            512            1024
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as once
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ablate.errors import AblateError, first_line

if TYPE_CHECKING:
    from ablate.model.cache import Cache
    from ablate.model.decoder import Decoder

FIRST_SPAN = 256
WARM_UP = 3  # runs before the captured one, in which libraries choose kernels and allocate memory

Run = Callable[[], Tensor]
Capture = Callable[[Run, Callable[[], None]], Run]


def span_of(tokens: int) -> int:
    """The smallest span that holds `tokens` tokens."""
    return max(FIRST_SPAN, 1 << (tokens - 1).bit_length())


@contextmanager
def steps(model: "Decoder", batch: int, tokens: int, compile: bool = False) -> Iterator["Step"]:
    """A `Step` with an empty cache for `batch` rows of up to `tokens` tokens.

    The cache of a compiled or captured step is as long as its last span, so that other prompts need the same shapes.
    Each model keeps its last captured step: the next caller with the same number of rows and the same cache length
    gets it again, unless the weights have moved in memory.
    """
    captured = capture_on(model.embedding.weight.device) is not None
    length = span_of(tokens) if compile or captured else tokens
    if not captured:
        yield Step(model, model.new_cache(batch, length), compile)
        return
    key = (batch, length, compile, _addresses(model))
    kept, step = _kept.pop(model, (None, None))  # removed: a second stream of this model must not share its cache
    if kept != key:
        step = Step(model, model.new_cache(batch, length), compile)
    step.cache.clear()
    try:
        yield step
    finally:
        _kept[model] = key, step


_kept: "weakref.WeakKeyDictionary[Decoder, tuple[Any, Step]]" = weakref.WeakKeyDictionary()


def forget() -> None:
    """Frees the captured steps and their caches."""
    _kept.clear()


def _addresses(model: "Decoder") -> list[tuple[int, torch.dtype]]:
    """The addresses and types of the weights. A CUDA graph reads the weights at these addresses."""
    return [(tensor.data_ptr(), tensor.dtype) for tensor in (*model.parameters(), *model.buffers())]


class Step:
    """Decoding steps of one model with one cache.

    compile: runs them through torch.compile; the first step with new shapes takes long.
    """

    def __init__(self, model: "Decoder", cache: "Cache", compile: bool = False):
        self._model, self.cache = weakref.ref(model), cache  # `steps` keeps a step only as long as its model lives
        self._capture = capture_on(cache.length.device)
        self._decode = compiled(decode, dynamic=False, in_cpp=self._capture is None) if compile else decode
        self._fixed = compile or self._capture is not None  # whether the shapes stay the same
        self._checked: set[int] = set()  # spans at which torch.compile has checked that model and cache fit its code
        self._replays: dict[int, Run] = {}  # by span
        self._ids = torch.zeros_like(cache.length)  # a captured step reads its ids here

    def __call__(self, ids: Tensor) -> Tensor:
        """Adds `ids` `[B]` to the cache; returns logits `[B, V]`, which the next call may overwrite."""
        if not self._fixed:
            return self._decode(self._model(), ids, self.cache)
        self.cache.span = min(span_of(self.cache.filled + 1), self.cache.max_length)
        try:
            return self._compiled(ids) if self._capture is None else self._replayed(ids)
        finally:
            self.cache.span = None
            self.cache.filled += 1

    def _compiled(self, ids: Tensor) -> Tensor:
        span = self.cache.span
        # The checks before compiled code take about as long as a small model's step: once per span is enough.
        with torch.compiler.set_stance("default", skip_guard_eval_unsafe=span in self._checked):
            logits = self._decode(self._model(), ids, self.cache)
        self._checked.add(span)
        return logits

    def _replayed(self, ids: Tensor) -> Tensor:
        span = self.cache.span
        self._ids.copy_(ids)
        if span not in self._replays:
            self._replays[span] = self._capture(self._run, self._undo)
        return self._replays[span]()

    def _run(self) -> Tensor:
        return self._decode(self._model(), self._ids, self.cache)

    def _undo(self) -> None:
        """Takes back one run: the next one writes to the same slots of the cache."""
        self.cache.length.sub_(1)


def capture_on(device: torch.device) -> Capture | None:
    """The function that captures a step on a device; None: steps are not captured there."""
    return cuda_graph if device.type == "cuda" else None


def cuda_graph(run: Run, undo: Callable[[], None]) -> Run:
    """Captures `run` as a CUDA graph. Returns the function that replays it, with the same tensor as result each time.

    Before the capture, `run` is called a few times, and `undo` after each call. The capture itself computes nothing.
    """
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            run()
            undo()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def decode(model: "Decoder", ids: Tensor, cache: "Cache") -> Tensor:
    """One token in each row: ids `[B]` -> logits `[B, V]`."""
    return model(ids.unsqueeze(1), cache=cache)[:, 0]


def prefill(model: "Decoder", tokens: Tensor, documents: Tensor | None, cache: "Cache") -> Tensor:
    """Prompts, or a chunk of them: token ids `[B, T]` -> hidden states `[B, T, D]`."""
    return model.hidden(tokens, documents=documents, cache=cache)


@once
def compiled(function: Callable, dynamic: bool, in_cpp: bool = False) -> Callable:
    """`function` by torch.compile. All models share it; torch compiles it again where a model differs.

    dynamic: compiles for all lengths at once rather than for each.
    in_cpp: also compiles the Python code that calls the kernels, to C++.

    Raises, when it is called:
        AblateError: this machine cannot compile, for example because it has no C++ compiler.
    """
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    # Each size of batch and cache is one compilation.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    options = {"cpp_wrapper": True} if in_cpp else None
    fast = torch.compile(function, fullgraph=not dynamic, dynamic=dynamic, options=options)

    def call(*args):
        try:
            return fast(*args)
        except (TorchDynamoException, InductorError) as error:
            reason = first_line(error)
            raise AblateError(f"compile=true: torch.compile fails here ({reason}); leave it out") from error

    return call
