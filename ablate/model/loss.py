"""Cross-entropy of the next token, without holding all logits in memory at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.model.kernels.linear import compute_dtype

IGNORE = -100  # the target of a position that is not scored
_CHUNK = 512  # positions whose logits are in memory at once


def next_token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Mean nats per scored target; hidden `[B, T, D]`, head weight `[V, D]`, targets `[B, T]` -> scalar.

    softcap: logits z become softcap * tanh(z / softcap).

    The gradient is computed with the loss, chunk by chunk, so that the `[B T, V]` logits are
    neither kept nor read again (Hsu et al. 2024, Liger Kernel).
    """
    dtype = compute_dtype(hidden)
    hidden, weight, targets = hidden.flatten(0, 1).to(dtype), weight.to(dtype), targets.flatten()
    if torch.compiler.is_compiling() and dtype != torch.float32:
        # In low precision the passes over the logits cost more than the products, and the compiler fuses the passes.
        total = F.cross_entropy(_logits(hidden, weight, softcap), targets, ignore_index=IGNORE, reduction="sum")
        return total / (targets != IGNORE).sum().clamp(min=1)
    return _chunked(hidden, weight, targets, softcap)


def _logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    logits = (hidden @ weight.t()).float()
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@torch.compiler.disable
def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, softcap)


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Nats of every target, `[B, T]` fp32; 0 where it is not scored."""
    rows = zip(hidden.flatten(0, 1).split(_CHUNK), targets.flatten().split(_CHUNK), strict=True)
    losses = [
        F.cross_entropy(_logits(h, weight.to(h.dtype), softcap), t, ignore_index=IGNORE, reduction="none")
        for h, t in rows
    ]
    return torch.cat(losses).view_as(targets)


@torch.no_grad()
def right_answers(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The number of scored targets that have the largest logit, a scalar; hidden `[B, T, D]`, targets `[B, T]`.

    A soft-cap keeps the order of the logits, so it makes no difference.
    """
    scored = targets != IGNORE
    rows = zip(hidden[scored].split(_CHUNK), targets[scored].split(_CHUNK), strict=True)
    right = [(_logits(h, weight.to(h.dtype), None).argmax(-1) == t).sum() for h, t in rows]
    return sum(right, torch.zeros((), dtype=torch.int64, device=targets.device))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        scored = (targets != IGNORE).unsqueeze(1)
        share = 1.0 / scored.sum().clamp(min=1).float()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        safe = targets.unsqueeze(1).where(scored, 0)
        # Positions that are not scored are zeroed in hidden `[N, D]`, which is smaller than the logits `[N, V]`.
        silenced = hidden * scored
        minus_one = torch.full((_CHUNK, 1), -1.0, dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], _CHUNK):
            part = slice(start, start + _CHUNK)
            target = safe[part]
            logits = _logits(hidden[part], weight, softcap)
            log_p = logits.log_softmax(1)
            total -= (log_p.gather(1, target) * scored[part]).sum()
            grad = log_p.exp_().scatter_add_(1, target, minus_one[: len(target)])  # softmax minus one-hot
            if softcap is not None:
                grad *= 1 - (logits / softcap).square_()
            grad = grad.to(hidden.dtype)
            torch.mm(grad, weight, out=grad_hidden[part])
            if grad.dtype == torch.float32:
                grad_weight.addmm_(grad.t(), silenced[part])
            else:
                grad_weight += grad.t() @ silenced[part]
        grad_hidden.mul_(scored * share)
        ctx.save_for_backward(grad_hidden, grad_weight.mul_(share).to(weight.dtype))
        return total * share

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None
