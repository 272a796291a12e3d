"""The product of a linear map, x `[..., D]` and weight `[E, D]` -> `[..., E]`, by the fastest of several ways.

One is torch's F.linear. On a CPU others are faster: for training, for few rows, for bf16 without hardware.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 128  # up to this many rows, a product by parts is the fastest, as measured
_TOGETHER = 4  # rows of a weight that one loop reads at a time

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _has_bf16_products() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def _mkl_is_slow() -> bool:
    try:
        maker = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return torch.backends.mkl.is_available() and "AuthenticAMD" in maker


# Whether this CPU multiplies bf16 matrices in hardware. Without it, products of more than one row are very slow.
HAS_BF16_PRODUCTS = _has_bf16_products()
# Whether F.linear uses MKL on an AMD processor: it then reads the weights of few rows with one thread.
MKL_IS_SLOW = _mkl_is_slow()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision of matrix products of `x`: autocast's where it is on, else that of x."""
    device = x.device.type
    autocast = not x.is_meta and torch.is_autocast_enabled(device)  # autocast does not know the meta device
    return torch.get_autocast_dtype(device) if autocast else x.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x `[..., D]`, weight `[E, D]`, bias `[E]` -> `[..., E]`."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")
    if not plain:
        return F.linear(x, weight, bias)
    gradient = torch.is_grad_enabled()
    if gradient and not weight.requires_grad:
        return F.linear(x, weight, bias)
    name = choose_product(x.dtype, x.shape[:-1].numel(), gradient, torch.compiler.is_compiling())
    return PRODUCTS[name](x, weight, bias)


def choose_product(dtype: torch.dtype, rows: int, gradient: bool, compiled: bool) -> str:
    """The name of the fastest product on a CPU, for inputs and weights in `dtype`, outside of autocast."""
    if gradient:
        return "onednn" if dtype == torch.float32 else "torch"
    if rows == 1 and compiled:
        return "sums"
    if dtype == torch.bfloat16 and rows > 2 and not HAS_BF16_PRODUCTS:
        return "widened"
    if dtype == torch.float32 and rows <= FEW_ROWS and MKL_IS_SLOW:
        return "parts"
    return "torch"


def training_product(device: str, dtype: torch.dtype, autocast: bool) -> str:
    """The name of the product that computes a training step."""
    return choose_product(dtype, 0, gradient=True, compiled=False) if device == "cpu" and not autocast else "torch"


def _sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One row, as sums: torch.compile makes one loop of them, which reads the weight nearly at the memory's speed.

    Measured for a weight of 4096 x 512 on an AMD Zen 3, whose memory gives two threads about 35 GB/s: 29 GB/s in fp32
    and 22 in bf16; a loop that reads one row at a time: 22 and 17; the BLAS: 10-13 and 11-15.
    """
    row = x.float().as_strided(weight.shape[1:], (1,))  # so that it is computed before the loop, not in each iteration
    parts = weight.chunk(1 if len(weight) % _TOGETHER else _TOGETHER)
    y = torch.cat([(part.float() * row).sum(-1) for part in parts])
    y = y if bias is None else y + bias
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A bf16 product, computed in fp32."""
    return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def _by_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A batch of products, each with a part of the weight's rows, so that each thread reads one part."""
    parts = weight.view(math.gcd(_threads(), len(weight)), -1, weight.shape[1])
    # Columns of a transposed matrix, even if there is only one: torch is slower for a plain single column.
    columns = x.reshape(-1, x.shape[-1]).t().expand(len(parts), -1, -1)
    y = torch.bmm(parts, columns)
    if y.shape[-1] > 1:
        y = y.flatten(0, 1).t().contiguous()
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()


@torch.library.custom_op("ablate::linear", mutates_args=())
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN: on an AMD Zen 4, 1.4 times as fast as the BLAS behind F.linear, forward and backward."""
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

PRODUCTS: dict[str, Product] = {
    "torch": F.linear,
    "onednn": _onednn_linear,
    "parts": _by_parts,
    "widened": _widened,
    "sums": _sums,
}
