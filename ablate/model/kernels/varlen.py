"""FlashAttention on packed sequences: instead of a mask it takes the start of each document, and a window.

`varlen` is the kernel in torch, `flash` the one in the package flash-attn. They share everything but the call.
"""

import importlib.util
import inspect
from importlib.machinery import PathFinder

import torch
from torch import Tensor

from ablate.errors import AblateError
from ablate.model.kernels.kernel import Kernel, Scores, register
from ablate.model.masks import Layout

_TOO_MANY = "max_documents: a row has more documents than that; pass a larger number, or None"


class Packed(Kernel):
    """A subclass defines `attend`: causal attention within each of the sequences that lie end to end."""

    patterns = "bands"
    bias = False
    softcap = False
    cache = False
    devices = ("cuda",)
    dtypes = (torch.bfloat16, torch.float16)
    head_dims = range(8, 257, 8)

    def missing(self) -> str | None:
        if torch.cuda.get_device_properties().major < 8:
            return "needs a GPU of compute capability 8.0 (Ampere, 2020) or later"
        return None

    def make_mask(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> Tensor | None:
        """The bounds of the documents, as `sequence_bounds` gives them; None if each row is one document."""
        return None if layout.query_document is None else sequence_bounds(layout.query_document, layout.max_documents)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
        (batch, length), band = q.shape[:2], scores.pattern.band()
        if mask is None:
            mask = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=q.device)
        before = -1 if band >= length else int(band) - 1  # keys before the query's own; -1: all
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        return self.attend(q, k, v, mask, length, (before, 0), scores).unflatten(0, (batch, length))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, window: tuple[int, int], scores: Scores
    ) -> Tensor:
        """Queries `[N, H, d]`, keys and values `[N, G, d]`, bounds `[sequences + 1]` int32 -> `[N, H, d]`.

        longest: an upper bound on their lengths. window: how many keys before and after its own a query sees; -1: all.
        """
        raise NotImplementedError


def sequence_bounds(documents: Tensor, max_documents: int | None) -> Tensor:
    """The start of each run of equal `documents` `[B, T]` in all rows laid end to end, then their end: int32.

    The shape is `[B max_documents + 1]`, whatever the data, so that the host need not wait for the device: the end is
    repeated, as empty sequences. With `max_documents=None` the host waits.

    Raises:
        AblateError: more runs than `max_documents` allows; on a GPU it is a device assertion.
    """
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    number = starts.flatten().cumsum(0)  # which run each token is in, from 1
    runs = _runs(number) if max_documents is None else documents.shape[0] * max_documents
    bounds = torch.searchsorted(number, torch.arange(1, runs + 2, device=number.device), out_int32=True)
    complete = bounds[-1] == number.shape[0]
    if number.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(complete, _TOO_MANY)
    elif not complete:
        raise AblateError(_TOO_MANY)
    return bounds


def _runs(number: Tensor) -> int:
    if torch.compiler.is_compiling():  # a graph break is cheaper than one sequence for each token
        return torch.compiler.disable(_last)(number)
    return _last(number)


def _last(number: Tensor) -> int:
    return int(number[-1])


@register("varlen")
class Varlen(Packed):
    """torch.nn.attention.varlen: FlashAttention 2 (Dao 2023), compiled into torch."""

    def attend(self, q, k, v, bounds, longest, window, scores) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn  # takes a second to import, and a CPU never needs it

        shared = {}
        if q.shape[1] != k.shape[1]:
            if "enable_gqa" in inspect.signature(varlen_attn).parameters:
                shared = {"enable_gqa": True}
            else:  # torch 2.11
                k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=window, **shared)


def _has_flash_attn() -> bool:
    """Whether flash-attn 2 is installed. Version 4 has the same package name, but not this module."""
    package = importlib.util.find_spec("flash_attn")
    places = package and package.submodule_search_locations
    return bool(places) and PathFinder.find_spec("flash_attn.flash_attn_interface", places) is not None


FLASH_ATTN = _has_flash_attn()


@register("flash")
class Flash(Packed):
    """The package flash-attn, version 2 (Dao 2023)."""

    softcap = True

    def missing(self) -> str | None:
        return super().missing() if FLASH_ATTN else "flash-attn is not installed: pip install 'ablate[flash]'"

    def attend(self, q, k, v, bounds, longest, window, scores) -> Tensor:
        from flash_attn.flash_attn_interface import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q,
            k,
            v,
            bounds,
            bounds,
            longest,
            longest,
            causal=True,
            window_size=window,
            softcap=scores.softcap or 0.0,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
