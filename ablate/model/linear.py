"""Linear maps, in the form that is quickest to train and to generate with."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_ROWS = 128  # up to so many a product by parts is the quickest, as measured
_TOGETHER = 4  # rows of a weight that one loop reads at a time


def _has_bf16_products() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def _mkl_is_slow() -> bool:
    try:
        maker = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return torch.backends.mkl.is_available() and "AuthenticAMD" in maker


# Whether this CPU multiplies bf16 matrices in hardware. Where it does not, all but single rows are very slow.
HAS_BF16_PRODUCTS = _has_bf16_products()
# Whether MKL is behind F.linear on an AMD processor: it then reads the weights of few rows with one thread.
MKL_IS_SLOW = _mkl_is_slow()


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` are computed in: autocast's precision where it is on, else its own."""
    device = x.device.type
    autocast = not x.is_meta and torch.is_autocast_enabled(device)  # which does not know that device
    return torch.get_autocast_dtype(device) if autocast else x.dtype


@dataclass(frozen=True)
class Joint:
    """The weights of several linear maps of one input as one matrix, which shares their memory."""

    weight: Tensor
    bias: Tensor | None
    widths: list[int]
    places: list[int]

    @classmethod
    def of(cls, maps: list[nn.Linear]) -> "Joint":
        """Moves the parameters side by side; nothing else about them changes."""
        weight = _side_by_side([m.weight for m in maps])
        bias = None if maps[0].bias is None else _side_by_side([m.bias for m in maps])
        return cls(weight, bias, [m.out_features for m in maps], _places(maps))

    def holds(self, maps: list[nn.Linear]) -> bool:
        """Whether their parameters are still here: one may get other memory at any time."""
        return torch.compiler.is_compiling() or self.places == _places(maps)

    def __call__(self, x: Tensor) -> list[Tensor]:
        return list(linear(x, self.weight, self.bias).split_with_sizes(self.widths, dim=-1))


@torch.inference_mode(False)
@torch.no_grad()
def _side_by_side(parts: list[nn.Parameter]) -> Tensor:
    whole = torch.cat([part.detach() for part in parts])
    for part, place in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = place
    return whole


def _places(maps: list[nn.Linear]) -> list[int]:
    return [p.data_ptr() for m in maps for p in (m.weight, m.bias) if p is not None]


class JointInputs(nn.Module):
    """A module with several linear maps of its input: the attributes named in `inputs`.

    A product with few tokens costs what it costs to read its weights, and one large matrix is read quicker than
    several small ones: who is going to generate calls `lay` first.
    """

    inputs: tuple[str, ...] = ()
    joint: Joint | None = None

    def lay(self) -> None:
        maps = [getattr(self, name) for name in self.inputs]
        kinds = {(type(m), m.bias is None, m.weight.dtype, m.weight.device) for m in maps}
        if len(maps) < 2 or len(kinds) > 1 or not isinstance(maps[0], nn.Linear):
            return
        if self.joint is None or not self.joint.holds(maps):
            self.joint = Joint.of(maps)

    def project(self, x: Tensor) -> list[Tensor]:
        """`x` `[..., D]` through each map, `[..., width]`."""
        if x.shape[:-1].numel() >= x.shape[-1]:
            return self.project_many(x)
        maps, joint = [getattr(self, name) for name in self.inputs], self.joint
        if joint is not None and not torch.is_grad_enabled() and joint.holds(maps):
            return joint(x)
        return [m(x) for m in maps]

    def project_many(self, x: Tensor) -> list[Tensor]:
        """The same where there are more tokens than the input is wide."""
        return [getattr(self, name)(x) for name in self.inputs]

    def _apply(self, fn, recurse=True):
        self.joint = None  # or it would keep the memory that the parameters leave
        return super()._apply(fn, recurse)


def joint_linear(x: Tensor, maps: list[nn.Linear]) -> list[Tensor]:
    """Several linear maps of the same `x`, `[..., D] -> [..., width]` each.

    For many tokens: they are one matrix product, and joining the weights costs less than it saves.
    """
    if len({m.bias is None for m in maps}) > 1:
        return [m(x) for m in maps]
    weight = torch.cat([m.weight for m in maps])
    bias = None if maps[0].bias is None else torch.cat([m.bias for m in maps])
    return list(linear(x, weight, bias).split([m.out_features for m in maps], dim=-1))


class Linear(nn.Linear):
    """torch's, by the library that is quickest on this CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x `[..., D]`, weight `[E, D]`, bias `[E]` -> `[..., E]`."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        by_onednn = x.dtype == torch.float32 and weight.requires_grad
        return _onednn_linear(x, weight, bias) if by_onednn else F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if rows == 1 and torch.compiler.is_compiling():
        return _one_row(x, weight, bias)
    if x.dtype == torch.bfloat16 and rows > 2 and not HAS_BF16_PRODUCTS:
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    if x.dtype == torch.float32 and rows <= _FEW_ROWS and MKL_IS_SLOW:
        return _by_parts(x, weight, bias)
    return F.linear(x, weight, bias)


def _one_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As sums, of which torch.compile makes one loop that reads the weight about as quickly as memory gives it.

    In GB/s, of about 35 on an AMD Zen 3 with two threads, of a weight of 4096 x 512: 29 in fp32 and 22 in bf16; a loop
    that reads one row at a time 22 and 17; the BLAS 10-13 and 11-15.
    """
    row = x.float().as_strided(weight.shape[1:], (1,))  # computed before the loop, not again in each of its turns
    parts = weight.chunk(1 if len(weight) % _TOGETHER else _TOGETHER)
    y = torch.cat([(part.float() * row).sum(-1) for part in parts])
    y = y if bias is None else y + bias
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _by_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A batch of products, each with a part of the weight's rows, so that each thread reads one."""
    parts = weight.view(math.gcd(_threads(), len(weight)), -1, weight.shape[1])
    # As columns of a transposed matrix, also where there is one: a column of its own goes another, slower way.
    columns = x.reshape(-1, x.shape[-1]).t().expand(len(parts), -1, -1)
    y = torch.bmm(parts, columns)
    if y.shape[-1] > 1:
        y = y.flatten(0, 1).t().contiguous()
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()


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
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return _chosen_of_all(x, weight, ends)
    parts = zip(_parts(x, ends), weight, strict=True)
    return torch.cat([part @ matrix.t() for part, matrix in parts])


def _chosen_of_all(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same, with every row through every map: for the few rows of a decoding step, whose graph may not wait."""
    row = torch.arange(len(x), device=x.device)
    group = torch.searchsorted(ends, row, right=True)
    return (x @ weight.transpose(1, 2))[group, row]


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
