"""Kernels: how attention is computed, never what it computes.

    queries [B, T, H, d]   keys, values [B, S, G, d]   ->   [B, T, H, d]      (G divides H)

A kernel turns a pattern and a layout into the mask form that it wants, once per forward pass
(`prepare`), and is then called by every layer with that pattern.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.errors import AblateError, did_you_mean
from ablate.model.pattern import Layout, Pattern, dense_mask


class Reference:
    """softmax(q k^T / sqrt(d)) v, written out: the judge of the others (Vaswani et al. 2017)."""

    def prepare(self, pattern: Pattern, layout: Layout, dtype: torch.dtype) -> Tensor:
        return dense_mask(pattern, layout)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        groups = q.shape[2] // k.shape[2]
        k, v = (t.repeat_interleave(groups, dim=2).transpose(1, 2) for t in (k, v))
        scores = q.transpose(1, 2) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = scores.float().masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)
        return (weights.to(v.dtype) @ v).transpose(1, 2)


class SDPA:
    """torch's scaled_dot_product_attention: plain causal where that is all, else a dense mask."""

    def prepare(self, pattern: Pattern, layout: Layout, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
        keys = layout.key.shape[-1]
        if layout.square and pattern.pairs(keys) == keys * (keys + 1) // 2:
            return None, True
        if layout.last and pattern.is_band(layout.last):
            return None, False
        allowed = dense_mask(pattern, layout)
        # Added to the scores, in their own precision: SDPA would convert a boolean mask in every layer.
        bias = torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, float("-inf"))
        return bias, False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor | None, bool]) -> Tensor:
        bias, causal = mask
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
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
        bias = torch.full((length, keys), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    rows = q.reshape(batch, groups, -1, width) * width**-0.5
    scores = (rows @ k.transpose(-1, -2)).view(batch, groups, -1, length, keys)
    if bias is not None:
        scores = scores + bias.unsqueeze(-3)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype).view(batch, groups, -1, keys)
    return (weights @ v).view(batch, heads, length, width)


KERNELS = {"reference": Reference, "sdpa": SDPA}


def choose_kernel(name: str) -> str:
    """The kernel that `model.kernel` means; `auto` is the fastest that supports every layer."""
    if name == "auto":
        return "sdpa"
    if name not in KERNELS:
        raise AblateError(f"model.kernel: no kernel '{name}'{did_you_mean(name, ['auto', *KERNELS])}")
    return name
