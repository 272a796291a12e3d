"""Normalisation of the residual stream, `[B, T, D] -> [B, T, D]`."""

import torch
from torch import Tensor, nn

from ablate import check
from ablate.model.given import Given
from ablate.model.kernels.norm import rms_norm
from ablate.registry import Axis

NORMS = Axis("model.norm")


@NORMS.register("layernorm")
class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba, Kiros, Hinton 2016).

    eps: added to the variance.
    bias: whether to add a bias.
    """

    def __init__(self, given: Given, *, eps: float = 1e-5, bias: bool = True):
        super().__init__(given.dim, eps=check.number("model.norm.eps", eps, above=0), bias=bias)


@NORMS.register("rmsnorm")
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight + bias (Zhang and Sennrich 2019).

    eps: added to the mean square.
    bias: whether to add a bias; usually not.
    """

    def __init__(self, given: Given, *, eps: float = 1e-6, bias: bool = False):
        super().__init__()
        self.eps = check.number("model.norm.eps", eps, above=0)
        self.weight = nn.Parameter(torch.ones(given.dim))
        self.bias = nn.Parameter(torch.zeros(given.dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = rms_norm(x, self.weight, self.eps)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


@NORMS.register("none")
class NoNorm(nn.Identity):
    """x as it is."""

    def __init__(self, given: Given):
        super().__init__()
