"""The contract of attention kernels, and the choice between them.

    queries [B, T, H, d]   keys, values [B, S, G, d]   ->   [B, T, H, d]      (G divides H)

`Scores` describe what a layer computes. A kernel declares which of them it supports, and where. Once per forward pass
it turns a pattern and a layout into its own kind of mask (`make_mask`); then every layer with that pattern calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ablate import check
from ablate.errors import AblateError
from ablate.model.masks import Layout, Pattern


@dataclass(frozen=True)
class Scores:
    """What the attention of one layer computes, apart from its weights.

    softcap: scores s become softcap * tanh(s / softcap).
    bias: (head, query position, key position) -> what is added to a score after the soft-cap, elementwise; or None.
    """

    pattern: Pattern
    heads: int
    kv_heads: int
    head_dim: int
    softcap: float | None = None
    bias: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Place:
    """Where a pass is computed, and what kind of pass it is.

    device: "cpu", "cuda". gradient: whether a backward pass may follow. cached: whether keys come from a cache.
    tokens: the number of tokens in each row; None: many. compiled: whether torch.compile compiles the pass.
    """

    device: str
    dtype: torch.dtype
    gradient: bool
    cached: bool = False
    tokens: int | None = None
    compiled: bool = False

    @property
    def one_query(self) -> bool:
        """Whether each row has a single query, as in a decoding step."""
        return self.tokens == 1 and not self.gradient


class Kernel:
    """The contract. Class attributes declare what a kernel can do; by default everything, everywhere."""

    patterns: Literal["any", "bands"] = "any"  # bands: every query attends to its last w keys
    bias = True
    softcap = True
    cache = True  # reads keys from a cache; passes that a named kernel cannot read are computed as under `auto`
    decoding_only = False  # computes only passes of one query per row; only `auto` can choose it
    devices: tuple[str, ...] | None = None  # None: any
    gradient_devices: tuple[str, ...] | None = None  # None: any of `devices`
    dtypes: tuple[torch.dtype, ...] | None = None  # None: any
    head_dims: range | None = None  # on a GPU; None: any

    def refusal(self, scores: Scores, place: Place | None = None) -> str | None:
        """Why this kernel cannot compute a layer at all or, given a place, there on this machine. None: it can."""
        return self.declared_refusal(scores, place) or (None if place is None else self.missing())

    def declared_refusal(self, scores: Scores, place: Place | None = None) -> str | None:
        """Like `refusal`, but only by what the kernel declares, whatever the machine."""
        return self._refusal_of(scores) or (None if place is None else self._refusal_at(place, scores))

    def missing(self) -> str | None:
        """What this machine lacks for the kernel, although it has one of `devices`: a package, a newer GPU."""
        return None

    def make_mask(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> Any:
        """The mask and the position's bias for one pass, for scores in `dtype`."""
        raise NotImplementedError

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scores: Scores) -> Tensor:
        raise NotImplementedError

    def _refusal_of(self, scores: Scores) -> str | None:
        if self.patterns == "bands" and scores.pattern.band() is None:
            return f"cannot mask the pattern {scores.pattern}"
        if scores.bias is not None and not self.bias:
            return "cannot add a position's bias to the scores"
        if scores.softcap is not None and not self.softcap:
            return "has no soft-cap"
        return None

    def _refusal_at(self, place: Place, scores: Scores) -> str | None:
        if place.cached and not self.cache:
            return "does not read a cache"
        if self.decoding_only and not place.one_query:
            return "computes decoding steps only, with one query a row"
        if self.devices is not None and place.device not in self.devices:
            return f"needs one of these devices: {', '.join(self.devices)}; this is {place.device}"
        if place.gradient and self.gradient_devices is not None and place.device not in self.gradient_devices:
            return f"has no gradient on {place.device}"
        if self.dtypes is not None and place.dtype not in self.dtypes:
            names = " or ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            return f"computes in {names}, not in {str(place.dtype).removeprefix('torch.')}"
        if place.device == "cuda" and self.head_dims is not None and scores.head_dim not in self.head_dims:
            widths = f"{self.head_dims.start} to {self.head_dims[-1]}"
            return f"takes heads {widths} wide, in steps of {self.head_dims.step}, not {scores.head_dim}"
        return None


KERNELS: dict[str, Kernel] = {}


def register(name: str) -> Callable[[type[Kernel]], type[Kernel]]:
    def enrol(kind: type[Kernel]) -> type[Kernel]:
        KERNELS[name] = kind()
        return kind

    return enrol


def dense_bias(scores: Scores, layout: Layout) -> Tensor | None:
    """The position's bias, `[B or 1, H, T, S]` fp32, or None."""
    if scores.bias is None:
        return None
    head = torch.arange(scores.heads, device=layout.query.device).view(-1, 1, 1)
    return scores.bias(head, layout.query_position[:, None, :, None], layout.key_position[:, None, None, :])


def check_kernel(name: str) -> None:
    """Raises AblateError for a `model.kernel` that is neither `auto` nor a kernel that can be named."""
    check.choice("model.kernel", name, ["auto", *(n for n, kernel in KERNELS.items() if not kernel.decoding_only)])


def choose_kernel(name: str, scores: Scores, place: Place) -> str:
    """The kernel that computes a layer at a place: the one named, or for `auto` the fastest that supports it.

    If the named kernel does not read a cache, passes with a cache are computed as under `auto`.

    Raises:
        AblateError: the named kernel cannot compute the layer, with the reason.
    """
    if name == "auto" or (place.cached and not KERNELS[name].cache):
        return next(n for n in fastest_first(place) if KERNELS[n].refusal(scores, place) is None)
    require_kernel(name, scores, place)
    return name


def require_kernel(name: str, scores: Scores, place: Place | None = None) -> None:
    """Raises AblateError if the kernel cannot compute a layer, anywhere or at a place."""
    reason = KERNELS[name].refusal(scores, place)
    if reason is not None:
        raise AblateError(f"model.kernel={name}: {reason}; choose another kernel, or auto")


SHORT = 512  # up to this many keys, a CPU trains faster by plain products in low precision, as measured


def fastest_first(place: Place) -> tuple[str, ...]:
    """Kernels by their speed at a place, the fastest first. The last one, the reference, supports everything."""
    if place.device == "cuda":
        if place.gradient:
            return "flash", "varlen", "flex", "sdpa", "reference"
        # Flex is compiled anew for every length, and without a backward pass lengths vary.
        others = ("grouped", "sdpa") if place.one_query else ("sdpa", "flex")
        return "flash", "varlen", *others, "reference"
    low = place.dtype in (torch.bfloat16, torch.float16)
    if place.one_query and place.compiled:
        return "sums", "sdpa", "reference"
    if place.one_query and place.dtype == torch.bfloat16:
        return "shared_rows", "sdpa", "reference"
    if place.gradient and low and place.tokens is not None and place.tokens <= SHORT:
        return "grouped", "sdpa", "reference"
    return "sdpa", "reference"
