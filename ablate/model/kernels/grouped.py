"""Products of several linear maps at once. The rows of x `[R, in]` are sorted by group; each goes through the map of
its group, weight `[E, out, in]` -> `[R, out]`. Group e ends before row `ends[e]`, `[E]`."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.model.kernels.linear import linear

LEAST_ROWS = 4  # with fewer rows, CPU products sum in another order; padding to this many keeps a row's result the same

Map = tuple[Tensor, Tensor | None]  # weight and bias


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The rows of x through the maps of their groups: `[R, out]`."""
    if x.is_meta:  # only FLOPs are counted there, and they are the same for every map
        return F.linear(x, weight[0])
    if x.is_cuda and x.dtype == torch.bfloat16 and weight.shape[1] % 8 == weight.shape[2] % 8 == 0:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)  # does not wait for the device to report the sizes
    return _grouped(x, weight, ends)


def by_group(x: Tensor) -> bool:
    """Whether `one_by_one` is the fastest way: on a CPU, not compiled."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def one_by_one(
    x: Tensor, ends: Tensor, maps: list[list[Map]], through: Callable[[Tensor, list[Callable]], Tensor]
) -> Tensor:
    """The rows of each group through its own maps, group by group: `[R, in] -> [R, out]`.

    maps: for each group, the maps that `through(rows, maps)` applies. A row's result does not depend on the number of
    rows in its group.
    """
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = zip(x.split(sizes), maps, strict=True)
    return torch.cat([_padded(part, of_group, through) for part, of_group in parts if len(part)])


def _padded(x: Tensor, maps: list[Map], through: Callable[[Tensor, list[Callable]], Tensor]) -> Tensor:
    if len(x) < LEAST_ROWS:
        return _padded(F.pad(x, (0, 0, 0, LEAST_ROWS - len(x))), maps, through)[: len(x)]
    # Without gradients, our `linear` uses another product for few rows, which sums in another order.
    product = linear if torch.is_grad_enabled() else F.linear
    return through(x, [partial(product, weight=weight, bias=bias) for weight, bias in maps])


class TakeRows(torch.autograd.Function):
    """Rows of x by index, each row of x `copies` times: `[N, D] -> [N copies, D]`.

    back: `[N copies]`, the places of the first row's copies in the result, then of the second row's, and so on. With it
    the gradient is a gather and a sum in fixed order; scattered additions are slower on a GPU and come in any order.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (back,) = ctx.saved_tensors
        taken = grad.index_select(0, back)
        return (taken if ctx.copies == 1 else taken.unflatten(0, (-1, ctx.copies)).sum(1)), None, None, None


@torch.library.custom_op("ablate::grouped", mutates_args=())
def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Group by group: for any dtype and size, compiled or not."""
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return _chosen_of_all(x, weight, ends)
    parts = zip(_parts(x, ends), weight, strict=True)
    return torch.cat([part @ matrix.t() for part, matrix in parts])


def _chosen_of_all(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Sends every row through every map, then picks: for the few rows of a decoding step, whose CUDA graph cannot wait
    for the sizes of the groups."""
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
