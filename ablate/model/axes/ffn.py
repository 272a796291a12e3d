"""The feed-forward sublayer, `[B, T, D] -> [B, T, D]`, position by position."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.model.linear import JointInputs, Linear
from ablate.registry import Axis

FFNS = Axis("model.ffn")


class FeedForward(nn.Module):
    """The contract: built from the model's width and bias; the last projection is called `out`."""

    def forward(self, x: Tensor, context) -> Tensor:
        """`x`: `[B, T, D]`; `context`: the forward context, which takes auxiliary losses; None takes none."""
        raise NotImplementedError

    def idle_parameters(self, tokens: int = 1) -> int:
        """How many parameters none of `tokens` tokens passes through, though each may take a way of its own."""
        return 0

    def after_step(self) -> None:
        """Called after each step of the optimiser."""


class Dense(FeedForward, JointInputs):
    """out(activation(up(x))) (Vaswani et al. 2017), or with a gate, out(activation(gate(x), up(x))) (Shazeer 2020).

    A subclass says which maps read x (`inputs`) and what becomes of them (`activation`, elementwise), no more: it
    can then also be the expert of a mixture.

    hidden: width between the maps; null: 4 dim, or with a gate 8/3 dim, which is as many parameters, up to a
        multiple of 16.
    """

    inputs: tuple[str, ...] = ("up",)

    def __init__(self, dim: int, bias: bool, *, hidden: int | None = None):
        super().__init__()
        if hidden is None:
            hidden = 4 * dim if len(self.inputs) == 1 else 16 * math.ceil(8 * dim / 48)
        if hidden < 1:
            raise AblateError(f"model.ffn.hidden={hidden}: at least 1")
        for name in self.inputs:
            setattr(self, name, Linear(dim, hidden, bias=bias))
        self.out = Linear(hidden, dim, bias=bias)

    def activation(self, *projected: Tensor) -> Tensor:
        raise NotImplementedError

    def maps(self) -> list[nn.Module]:
        """Those that read x, then `out`."""
        return [getattr(self, name) for name in (*self.inputs, "out")]

    def through(self, x: Tensor, maps: list[Callable[[Tensor], Tensor]]) -> Tensor:
        """The formula, with `maps` in place of its own."""
        *inputs, out = maps
        return out(self.activation(*(project(x) for project in inputs)))

    def forward(self, x: Tensor, context) -> Tensor:
        return self.out(self.activation(*self.project(x)))


@FFNS.register("relu")
class ReLU(Dense):
    """max(0, x) (Vaswani et al. 2017)."""

    def activation(self, up: Tensor) -> Tensor:
        return F.relu(up)


@FFNS.register("relu2")
class SquaredReLU(Dense):
    """max(0, x)^2 (So et al. 2021, Primer)."""

    def activation(self, up: Tensor) -> Tensor:
        return F.relu(up).square()


@FFNS.register("gelu")
class GELU(Dense):
    """x * Phi(x) (Hendrycks and Gimpel 2016).

    tanh: the approximation by tanh, which GPT-2 used.
    """

    def __init__(self, dim: int, bias: bool, *, hidden: int | None = None, tanh: bool = False):
        super().__init__(dim, bias, hidden=hidden)
        self.approximate = "tanh" if tanh else "none"

    def activation(self, up: Tensor) -> Tensor:
        return F.gelu(up, approximate=self.approximate)


@FFNS.register("swiglu")
class SwiGLU(Dense):
    """silu(gate) * up (Shazeer 2020)."""

    inputs = ("gate", "up")

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


@FFNS.register("geglu")
class GEGLU(Dense):
    """gelu(gate) * up (Shazeer 2020).

    tanh: the approximation by tanh, which Gemma (2024) used.
    """

    inputs = ("gate", "up")

    def __init__(self, dim: int, bias: bool, *, hidden: int | None = None, tanh: bool = False):
        super().__init__(dim, bias, hidden=hidden)
        self.approximate = "tanh" if tanh else "none"

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate=self.approximate) * up
