"""Normalisation of the residual stream, `[B, T, D] -> [B, T, D]`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.model.registry import Axis

NORMS = Axis("model.norm")


@NORMS.register("layernorm")
class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba, Kiros, Hinton 2016)."""

    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True):
        super().__init__(dim, eps=eps, bias=bias)


@NORMS.register("rmsnorm")
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _EagerRMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class _EagerRMSNorm(torch.autograd.Function):
    """RMSNorm in few passes over memory: torch has no fused CPU kernel for it.

    Under autocast the result leaves in the lower precision, so that the projections that read it
    do not each cast it again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = (x * scale).mul_(weight)
        ctx.save_for_backward(x, weight, scale)
        return y.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        by_unit = grad * unit
        grad_weight = by_unit.flatten(0, -2).sum(0)
        # d x = scale * (grad * weight - unit * mean(grad * weight * unit))
        mean = torch.matmul(by_unit, (weight / x.shape[-1]).unsqueeze(-1))
        grad_x = (grad * weight).addcmul_(unit, mean, value=-1).mul_(scale)
        return grad_x, grad_weight, None
