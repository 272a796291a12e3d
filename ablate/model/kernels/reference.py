"""The formula of attention, written out."""

import torch
from torch import Tensor

from ablate.model.kernels.kernel import Kernel, Scores, dense_bias, register
from ablate.model.masks import Layout, dense_mask


@register("reference")
class Reference(Kernel):
    """softmax(q k^T / sqrt(d)) v, against which the other kernels are tested (Vaswani et al. 2017)."""

    def make_mask(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return dense_mask(scores.pattern, layout), dense_bias(scores, layout)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor, Tensor | None], scores: Scores) -> Tensor:
        allowed, bias = mask
        groups = q.shape[2] // k.shape[2]
        k, v = (t.repeat_interleave(groups, dim=2).transpose(1, 2) for t in (k, v))
        s = (q.transpose(1, 2) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()
        if scores.softcap is not None:
            s = scores.softcap * torch.tanh(s / scores.softcap)
        if bias is not None:
            s = s + bias
        weights = s.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(-1)
        return (weights.to(v.dtype) @ v).transpose(1, 2)
