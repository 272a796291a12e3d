"""Kernels: how attention is computed, never what it computes.

    queries [B, T, H, d]   keys, values [B, S, G, d]   ->   [B, T, H, d]      (G divides H)

What a layer asks for is its `Scores`. A kernel declares what of that it supports, and where; turns
a pattern and a layout into the mask form that it wants, once per forward pass (`prepare`); and is
then called by every layer with that pattern.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.errors import AblateError, did_you_mean
from ablate.model.axes.pattern import Layout, Pattern, dense_mask


@dataclass(frozen=True)
class Scores:
    """What one layer's attention computes, apart from its weights.

    softcap: scores s become softcap * tanh(s / softcap).
    bias: (head, query position, key position) -> what is added to a score then; elementwise, or None.
    """

    pattern: Pattern
    heads: int
    kv_heads: int
    head_dim: int
    softcap: float | None = None
    bias: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Place:
    """Where and for what attention is computed."""

    device: str  # "cpu", "cuda"
    dtype: torch.dtype
    gradient: bool  # whether a backward pass may follow
    cached: bool = False  # whether keys come from a cache


class Kernel:
    """The contract. The class attributes declare what a kernel can do; the default is all of it, everywhere."""

    patterns: Literal["any", "bands"] = "any"  # bands: every query attends to its last w keys
    bias = True
    softcap = True
    cache = True  # keys that are not the queries' own tokens; a kernel without it leaves such passes to others
    devices: tuple[str, ...] | None = None  # None: any
    gradient_devices: tuple[str, ...] | None = None  # None: any of `devices`
    dtypes: tuple[torch.dtype, ...] | None = None  # None: any
    head_dims: range | None = None  # on a GPU; None: any

    def refusal(self, scores: Scores) -> str | None:
        """What this kernel cannot do of a layer, wherever it runs."""
        if self.patterns == "bands" and scores.pattern.band() is None:
            return f"cannot mask the pattern {scores.pattern}"
        if scores.bias is not None and not self.bias:
            return "cannot add a position's bias to the scores"
        if scores.softcap is not None and not self.softcap:
            return "has no soft-cap"
        return None

    def refusal_at(self, scores: Scores, place: Place) -> str | None:
        """Why this kernel cannot compute a layer there."""
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

    def missing(self) -> str | None:
        """What this machine, which has one of `devices`, lacks for it: a package, a newer GPU."""
        return None

    def prepare(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> Any:
        """The mask, and the position's bias, of a pass that lies as `layout` says, for scores in `dtype`."""
        raise NotImplementedError

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scores: Scores) -> Tensor:
        raise NotImplementedError


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


@register("reference")
class Reference(Kernel):
    """softmax(q k^T / sqrt(d)) v, written out: the judge of the others (Vaswani et al. 2017)."""

    def prepare(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return dense_mask(scores.pattern, layout), dense_bias(scores, layout)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor, Tensor | None], scores: Scores) -> Tensor:
        allowed, bias = mask
        groups = q.shape[2] // k.shape[2]
        k, v = (t.repeat_interleave(groups, dim=2).transpose(1, 2) for t in (k, v))
        found = (q.transpose(1, 2) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()
        if scores.softcap is not None:
            found = scores.softcap * torch.tanh(found / scores.softcap)
        if bias is not None:
            found = found + bias
        weights = found.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(-1)
        return (weights.to(v.dtype) @ v).transpose(1, 2)


@register("sdpa")
class SDPA(Kernel):
    """torch's scaled_dot_product_attention: plain causal where that is all, else a dense mask."""

    softcap = False

    def prepare(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
        keys, pattern = layout.key.shape[-1], scores.pattern
        bias = dense_bias(scores, layout)
        if bias is None:
            band = pattern.band()
            if layout.square and band is not None and band >= keys:
                return None, True
            if layout.newest and band is not None:
                return None, False
            bias = torch.zeros((), device=layout.key.device)
        # Added to the scores, in their own precision: SDPA would convert a boolean mask in every layer.
        return bias.where(dense_mask(pattern, layout), float("-inf")).to(dtype), False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor | None, bool], scores: Scores) -> Tensor:
        bias, causal = mask
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if q.shape[2] == 1 and not q.requires_grad:
            return _one_query(q, k, v, bias).transpose(1, 2)
        if _short_low_precision_training(q, k):
            return _grouped(q, k, v, bias, causal).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)


def _short_low_precision_training(q: Tensor, k: Tensor) -> bool:
    """Where torch's CPU kernel is slow: its backward takes twice as long as the formula, up to some 512 keys."""
    low = q.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return q.device.type == "cpu" and low and torch.is_grad_enabled() and q.requires_grad and k.shape[2] <= 512


def _grouped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """The formula, with the query heads that share a key as one longer row of queries: `[B, H, T, d]`."""
    (batch, heads, length, width), (groups, keys) = q.shape, k.shape[1:3]
    if causal:
        bias = torch.full((1, 1, length, keys), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    rows = q.reshape(batch, groups, -1, width) * width**-0.5
    scores = (rows @ k.transpose(-1, -2)).view(batch, groups, -1, length, keys)
    if bias is not None:
        scores = scores + bias.unflatten(1, (min(groups, bias.shape[1]), -1))
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype).view(batch, groups, -1, keys)
    return (weights @ v).view(batch, heads, length, width)


def _one_query(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """A decoding step, `[B, H, 1, d]`; torch's kernels are made for many queries."""
    (batch, heads, _, width), groups = q.shape, k.shape[1]
    if q.device.type == "cuda" and bias is not None:
        return _grouped(q, k, v, bias, causal=False)
    if q.device.type == "cpu" and torch.compiler.is_compiling():
        return _in_sums(q, k, v, bias)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The CPU's kernel takes its time over single rows in low precision. Those that share keys are together.
        rows = q.reshape(batch, groups, -1, width)
        if bias is not None:
            bias = bias.expand(-1, heads, -1, -1).reshape(-1, groups, rows.shape[2], bias.shape[-1])
        if heads == groups:
            rows = rows.expand(-1, -1, 2, -1)
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=bias)
        return out[:, :, : heads // groups].reshape(q.shape)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=heads != groups)


def _in_sums(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The formula as sums, of which torch.compile makes loops with less around them than torch's kernel has."""
    (batch, heads, _, width), groups = q.shape, k.shape[1]
    rows = q.float() * width**-0.5
    rows = rows.as_strided(q.shape, (heads * width, width, width, 1))  # computed once, not again for each key
    scores = (rows.view(batch, groups, -1, 1, width) * k.float().unsqueeze(2)).sum(-1)
    if bias is not None:
        scores = scores + bias.expand(-1, heads, -1, -1).view(batch, groups, -1, bias.shape[-1])
    weights = scores.softmax(-1)
    return (weights.unsqueeze(-1) * v.float().unsqueeze(2)).sum(-2).to(q.dtype).view(q.shape)


def check_kernel(name: str) -> None:
    """Raises AblateError for a `model.kernel` that is neither a kernel nor `auto`."""
    if name != "auto" and name not in KERNELS:
        raise AblateError(f"model.kernel: no kernel '{name}'{did_you_mean(name, ['auto', *KERNELS])}")


def choose_kernel(name: str, scores: Scores, place: Place) -> str:
    """The kernel that computes a layer there: the one named, or for `auto` the fastest that supports it.

    A pass with a cache that the kernel named has no part in is computed as by `auto`.

    Raises:
        AblateError: the kernel named cannot compute the layer, with the reason.
    """
    if name == "auto" or (place.cached and not KERNELS[name].cache):
        able = (n for n in _by_speed(place) if n in KERNELS and objection(n, scores, place) is None)
        return next(able)  # the reference supports everything
    reason = objection(name, scores, place)
    if reason is not None:
        raise AblateError(f"model.kernel={name}: {reason}; choose another kernel, or auto")
    return name


def objection(name: str, scores: Scores, place: Place) -> str | None:
    """Why a kernel cannot compute a layer there, on this machine; None: it can."""
    kernel = KERNELS[name]
    if place.cached and not kernel.cache:
        return "does not read a cache"
    return kernel.refusal(scores) or kernel.refusal_at(scores, place) or kernel.missing()


def _by_speed(place: Place) -> tuple[str, ...]:
    if place.device != "cuda":
        return "sdpa", "reference"
    if place.gradient:
        return "flash", "varlen", "flex", "sdpa", "reference"
    # flex is compiled anew for every length, and without a backward pass lengths vary
    return "flash", "varlen", "sdpa", "flex", "reference"
