"""torch's scaled_dot_product_attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.model.kernels.kernel import Kernel, Scores, dense_bias, register
from ablate.model.masks import Layout, dense_mask


class Additive(Kernel):
    """A kernel whose mask is added to the scores: `[B or 1, H or 1, T, S]` in their precision.

    The mask is None where nothing is hidden but the future (then `causal` is True), or nothing at all. A boolean mask
    would be converted in every layer.
    """

    softcap = False
    finite = False  # hides keys by a large negative number, not by -inf, so that a query without keys gives no NaN

    def make_mask(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
        """The mask, and whether the pass is plain causal attention."""
        keys, pattern = layout.key.shape[-1], scores.pattern
        bias = dense_bias(scores, layout)
        if bias is None:
            band = pattern.band()
            if layout.square and band is not None and band >= keys:
                return None, True
            if layout.newest and band is not None:
                return None, False
            bias = torch.zeros((), device=layout.key.device)
        hidden = torch.finfo(dtype).min / 2 if self.finite else float("-inf")
        return bias.where(dense_mask(pattern, layout), hidden).to(dtype), False


@register("sdpa")
class SDPA(Additive):
    """torch.nn.functional.scaled_dot_product_attention: plain causal if that is enough, else with a dense mask."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor | None, bool], scores: Scores) -> Tensor:
        bias, causal = mask
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        shared = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=shared)
        return out.transpose(1, 2)
