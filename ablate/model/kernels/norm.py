"""RMSNorm in few passes over memory: torch has no fused CPU kernel for it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.model.kernels.linear import compute_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, `[..., D] -> [..., D]`."""
    inference = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if x.device.type == "cpu" and not inference and not torch.compiler.is_compiling():
        return _Eager.apply(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


class _Eager(torch.autograd.Function):
    """Under autocast it returns the lower precision, so that the projections need not each cast the result."""

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
