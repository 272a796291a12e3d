"""Linear maps, their roles, and one matrix for several maps of one input, which speeds up generation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ablate.model.kernels.grouped import grouped_linear
from ablate.model.kernels.linear import linear
from ablate.model.roles import Role


class Linear(nn.Linear):
    """torch's Linear, computed by the fastest product on the device.

    residual_out: whether its output is added to the residual stream; it then starts smaller, see `init.initialise`.
    role: the role of its weight.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, *, residual_out: bool = False, role: Role = Role.MATRIX
    ):
        super().__init__(in_features, out_features, bias=bias)
        self.residual_out = residual_out
        self.roles = {"weight": role, "bias": Role.VECTOR}

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class GroupedLinear(nn.Module):
    """`groups` linear maps of one shape, weight `[E, out, in]`, bias `[E out]`: each row of x goes through one map."""

    roles: ClassVar = {"weight": Role.EXPERTS, "bias": Role.VECTOR}

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool, *, residual_out: bool = False):
        super().__init__()
        self.residual_out = residual_out
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(groups * out_features)) if bias else None

    def unbind(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
        """The weight and the bias of each map."""
        count = len(self.weight)
        biases = [None] * count if self.bias is None else self.bias.to(dtype).view(count, -1)
        return list(zip(self.weight.to(dtype), biases, strict=True))

    def forward(self, x: Tensor, group: Tensor, ends: Tensor) -> Tensor:
        """x `[R, in]`, sorted by `group` `[R]`; group e ends before row `ends[e]` -> `[R, out]`."""
        weight = self.weight.to(x.dtype)
        y = grouped_linear(x, weight, ends)
        return y if self.bias is None else y + self.bias.view(len(weight), -1).to(x.dtype)[group]


# --- several maps of one input ---------------------------------------------------------------------


@dataclass(frozen=True)
class Joint:
    """The weights of several linear maps of one input as one matrix, which shares their memory."""

    weight: Tensor
    bias: Tensor | None
    widths: list[int]
    addresses: list[int]

    @classmethod
    def of(cls, maps: list[nn.Linear]) -> "Joint":
        """Moves the parameters into one matrix; nothing else about them changes."""
        weight = _side_by_side([m.weight for m in maps])
        bias = None if maps[0].bias is None else _side_by_side([m.bias for m in maps])
        return cls(weight, bias, [m.out_features for m in maps], _addresses(maps))

    def holds(self, maps: list[nn.Linear]) -> bool:
        """Whether this matrix still holds the parameters of `maps`: they can be moved to other memory at any time."""
        return torch.compiler.is_compiling() or self.addresses == _addresses(maps)

    def __call__(self, x: Tensor) -> list[Tensor]:
        return list(linear(x, self.weight, self.bias).split_with_sizes(self.widths, dim=-1))


@torch.inference_mode(False)
@torch.no_grad()
def _side_by_side(parts: list[nn.Parameter]) -> Tensor:
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


def _addresses(maps: list[nn.Linear]) -> list[int]:
    return [p.data_ptr() for m in maps for p in (m.weight, m.bias) if p is not None]


class JointInputs(nn.Module):
    """A module with several linear maps of its input: the attributes named in `inputs`.

    With few tokens a product takes as long as reading its weights, and one large matrix is read faster than several
    small ones: call `lay` before generating.
    """

    inputs: tuple[str, ...] = ()
    joint: Joint | None = None

    def lay(self) -> None:
        """Stores the weights of the maps contiguously, if they are of one kind."""
        maps = self.input_maps()
        kinds = {(type(m), m.bias is None, m.weight.dtype, m.weight.device) for m in maps}
        if len(maps) < 2 or len(kinds) > 1 or not isinstance(maps[0], nn.Linear):
            return
        if self.joint is None or not self.joint.holds(maps):
            self.joint = Joint.of(maps)

    def input_maps(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.inputs]

    def project(self, x: Tensor) -> list[Tensor]:
        """`x` `[..., D]` through each map, `[..., width]`."""
        if x.shape[:-1].numel() >= x.shape[-1]:
            return self.project_many(x)
        maps, joint = self.input_maps(), self.joint
        if joint is not None and not torch.is_grad_enabled() and joint.holds(maps):
            return joint(x)
        return [m(x) for m in maps]

    def project_many(self, x: Tensor) -> list[Tensor]:
        """As `project`, for more tokens than the input is wide."""
        return [m(x) for m in self.input_maps()]

    def _apply(self, fn, recurse=True):
        self.joint = None  # it would keep memory alive that the parameters leave here
        return super()._apply(fn, recurse)


def joint_linear(x: Tensor, maps: list[nn.Linear]) -> list[Tensor]:
    """Several linear maps of the same `x`, `[..., D] -> [..., width]` each, as one product.

    For many tokens, joining the weights costs less than it saves.
    """
    if len({m.bias is None for m in maps}) > 1:
        return [m(x) for m in maps]
    weight = torch.cat([m.weight for m in maps])
    bias = None if maps[0].bias is None else torch.cat([m.bias for m in maps])
    return list(linear(x, weight, bias).split([m.out_features for m in maps], dim=-1))
