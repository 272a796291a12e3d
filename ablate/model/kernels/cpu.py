"""Attention by plain products and sums, where torch's kernels are slow: low precision, and single queries."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.model.kernels.kernel import Scores, register
from ablate.model.kernels.sdpa import Additive


@register("grouped")
class Grouped(Additive):
    """The formula, with the queries of all heads that share a key in one matrix.

    Trains on a CPU in low precision, where torch's backward pass takes twice as long up to about 512 keys; decodes on a
    GPU.
    """

    finite = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor | None, bool], scores: Scores) -> Tensor:
        bias, causal = mask
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        (batch, heads, length, width), (groups, keys) = q.shape, k.shape[1:3]
        if causal:
            bias = torch.full((1, 1, length, keys), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        rows = q.reshape(batch, groups, -1, width) * width**-0.5
        s = (rows @ k.transpose(-1, -2)).view(batch, groups, -1, length, keys)
        if bias is not None:
            s = s + bias.unflatten(1, (min(groups, bias.shape[1]), -1))
        weights = s.softmax(-1, dtype=torch.float32).to(v.dtype).view(batch, groups, -1, keys)
        return (weights @ v).view(batch, heads, length, width).transpose(1, 2)


@register("shared_rows")
class SharedRows(Additive):
    """scaled_dot_product_attention for one query per row: the query heads that share a key become its rows.

    In low precision, torch's CPU kernel is slow for a single row.
    """

    decoding_only = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor | None, bool], scores: Scores) -> Tensor:
        bias, _ = mask
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        (batch, heads, _, width), groups = q.shape, k.shape[1]
        rows = q.reshape(batch, groups, -1, width)
        if bias is not None:
            bias = bias.expand(-1, heads, -1, -1).reshape(-1, groups, rows.shape[2], bias.shape[-1])
        if heads == groups:
            rows = rows.expand(-1, -1, 2, -1)  # twice: torch's kernel is slow for a single row
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=bias)
        return out[:, :, : heads // groups].reshape(q.shape).transpose(1, 2)


@register("sums")
class Sums(Additive):
    """The formula for one query per row, as sums: torch.compile makes loops of them, cheaper than a kernel call."""

    decoding_only = True
    finite = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor | None, bool], scores: Scores) -> Tensor:
        bias, _ = mask
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        (batch, heads, _, width), groups = q.shape, k.shape[1]
        rows = q.float() * width**-0.5
        rows = rows.as_strided(q.shape, (heads * width, width, width, 1))  # computed once, not again for each key
        s = (rows.view(batch, groups, -1, 1, width) * k.float().unsqueeze(2)).sum(-1)
        if bias is not None:
            s = s + bias.expand(-1, heads, -1, -1).reshape(-1, groups, heads // groups, bias.shape[-1])
        weights = s.softmax(-1)
        out = (weights.unsqueeze(-1) * v.float().unsqueeze(2)).sum(-2).to(q.dtype).view(q.shape)
        return out.transpose(1, 2)
