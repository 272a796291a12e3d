"""Normalisation of the residual stream, `[B, T, D] -> [B, T, D]`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate import check
from ablate.model.linear import compute_dtype
from ablate.registry import Axis

NORMS = Axis("model.norm")


@NORMS.register("layernorm")
class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba, Kiros, Hinton 2016).

    eps: added to the variance.
    bias: whether it has one.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True):
        super().__init__(dim, eps=check.number("model.norm.eps", eps, above=0), bias=bias)


@NORMS.register("rmsnorm")
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight + bias (Zhang and Sennrich 2019).

    eps: added to the mean square.
    bias: whether it has one; usually not.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6, bias: bool = False):
        super().__init__()
        self.eps = check.number("model.norm.eps", eps, above=0)
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and not _inference():
            y = _EagerRMSNorm.apply(x, self.weight, self.eps)
        else:
            y = F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def _inference() -> bool:
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class _EagerRMSNorm(torch.autograd.Function):
    """RMSNorm in few passes over memory: torch has no fused CPU kernel for it.

    Under autocast the result leaves in the lower precision, so that the projections that read it
    do not each cast it again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = (x * scale).mul_(weight)
        ctx.save_for_backward(x, weight, scale)
        return y.to(compute_dtype(x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        x, weight = x.to(scale.dtype), weight.to(scale.dtype)
        # d weight = sum over tokens of grad * x * scale
        # d x = scale * grad * weight - x * scale^3 * mean(grad * weight * x)
        grad_x = (grad * weight).mul_(scale)
        by_x = grad * x
        grad_weight = (scale.flatten().unsqueeze(0) @ by_x.flatten(0, -2)).squeeze(0)
        mean = (by_x @ weight).unsqueeze(-1).div_(x.shape[-1])
        return grad_x.addcmul_(x, mean.mul_(scale**3), value=-1), grad_weight, None


@NORMS.register("none")
class NoNorm(nn.Identity):
    """x as it is."""

    def __init__(self, dim: int):
        super().__init__()
