"""Linear maps, in the form that is quickest to train."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` are computed in: autocast's precision where it is on, else its own."""
    device = x.device.type
    autocast = not x.is_meta and torch.is_autocast_enabled(device)  # which does not know that device
    return torch.get_autocast_dtype(device) if autocast else x.dtype


def joint_linear(x: Tensor, maps: list[nn.Linear]) -> list[Tensor]:
    """Several linear maps of the same `x`, `[..., D] -> [..., width]` each.

    With many tokens they are one matrix product: joining the weights costs less than it saves.
    """
    if x.shape[:-1].numel() < x.shape[-1] or len({m.bias is None for m in maps}) > 1:
        return [m(x) for m in maps]
    weight = torch.cat([m.weight for m in maps])
    bias = None if maps[0].bias is None else torch.cat([m.bias for m in maps])
    return list(linear(x, weight, bias).split([m.out_features for m in maps], dim=-1))


class Linear(nn.Linear):
    """torch's, except that it trains in fp32 on a CPU by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x `[..., D]`, weight `[E, D]`, bias `[E]` -> `[..., E]`."""
    by_onednn = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
    return _onednn_linear(x, weight, bias) if by_onednn else F.linear(x, weight, bias)


class GroupedLinear(nn.Module):
    """`groups` linear maps of one shape, weight `[E, out, in]`, bias `[E out]`: each row of x goes through one.

    The bias is flat because all biases are: an optimiser that treats matrices in its own way looks at that.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(groups * out_features)) if bias else None

    def unbind(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each map."""
        count = len(self.weight)
        biases = [None] * count if self.bias is None else self.bias.to(dtype).view(count, -1)
        return list(zip(self.weight.to(dtype), biases, strict=True))

    def forward(self, x: Tensor, group: Tensor, ends: Tensor) -> Tensor:
        """x `[R, in]`, sorted by `group` `[R]`, of which each has its last row before `ends` `[E]` -> `[R, out]`."""
        weight = self.weight.to(x.dtype)
        if x.is_meta:  # where FLOPs are counted: they are the same whichever the map
            y = F.linear(x, weight[0])
        elif x.is_cuda and x.dtype == torch.bfloat16 and weight.shape[1] % 8 == weight.shape[2] % 8 == 0:
            y = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)  # never asks the device how large the groups are
        else:
            y = _grouped(x, weight, ends)
        return y if self.bias is None else y + self.bias.view(len(weight), -1).to(x.dtype)[group]


@torch.library.custom_op("ablate::linear", mutates_args=())
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN: 1.4 times as fast, in this product and the next, as the BLAS behind F.linear on an AMD Zen 4."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_onednn_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    flat = grad.flatten(0, -2)
    grad_x = _onednn_linear(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
    grad_weight = flat.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
    grad_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias


_onednn_linear.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("ablate::grouped", mutates_args=())
def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x `[R, in]`, weight `[E, out, in]` -> `[R, out]`, group by group: for any dtype and size, compiled or not."""
    parts = zip(_parts(x, ends), weight, strict=True)
    return torch.cat([part @ matrix.t() for part, matrix in parts])


@torch.library.custom_op("ablate::grouped_outer", mutates_args=())
def _grouped_outer(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """grad `[R, out]`, x `[R, in]` -> `[E, out, in]`: the gradient of the weight."""
    parts = zip(_parts(grad, ends), _parts(x, ends), strict=True)
    return torch.stack([g.t() @ part for g, part in parts])


def _parts(x: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    return x.tensor_split(ends[:-1].tolist())


@_grouped.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_grouped_outer.register_fake
def _(grad: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], grad.shape[1], x.shape[1])


def _grouped_gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, ends = ctx.saved_tensors
    return _grouped(grad, weight.transpose(1, 2), ends), _grouped_outer(grad, x, ends), None


_grouped.register_autograd(_grouped_gradients, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
