"""The feed-forward sublayer, `[B, T, D] -> [B, T, D]`, position by position."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ablate import check
from ablate.model.context import ForwardContext
from ablate.model.given import Given
from ablate.model.linear import JointInputs, Linear
from ablate.registry import Axis

FFNS = Axis("model.ffn")


class FeedForward(nn.Module):
    """The contract. The map that writes to the residual stream is made with `residual_out=True`."""

    def forward(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        """`x`: `[B, T, D]`. Auxiliary losses go to `context`; without one they are not computed."""
        raise NotImplementedError

    def idle_parameters(self, tokens: int = 1) -> int:
        """The number of parameters that stay unused even if each of `tokens` tokens chooses different experts."""
        return 0

    def after_step(self) -> None:
        """Called after each step of the optimiser."""


class Dense(FeedForward, JointInputs):
    """out(activation(up(x))) (Vaswani et al. 2017), or with a gate, out(activation(gate(x), up(x))) (Shazeer 2020).

    A subclass names the maps that read x (`inputs`) and defines `activation`, elementwise. If it overrides nothing
    else, it can also be the expert of a mixture.

    hidden: the hidden width; null: 4 dim, or with a gate 8/3 dim, rounded up to a multiple of 16, for the same number
        of parameters.
    """

    inputs: tuple[str, ...] = ("up",)

    def __init__(self, given: Given, *, hidden: int | None = None):
        super().__init__()
        check.whole("model.ffn.hidden", hidden, 1, null=True)
        if hidden is None:
            hidden = 4 * given.dim if len(self.inputs) == 1 else 16 * math.ceil(8 * given.dim / 48)
        for name in self.inputs:
            setattr(self, name, Linear(given.dim, hidden, given.bias))
        self.out = Linear(hidden, given.dim, given.bias, residual_out=True)

    def activation(self, *projected: Tensor) -> Tensor:
        raise NotImplementedError

    def maps(self) -> list[nn.Module]:
        """The maps that read x, then `out`."""
        return [*self.input_maps(), self.out]

    def through(self, x: Tensor, maps: list[Callable[[Tensor], Tensor]]) -> Tensor:
        """The formula of `forward`, with other maps in place of its own."""
        *inputs, out = maps
        return out(self.activation(*(project(x) for project in inputs)))

    def forward(self, x: Tensor, context: ForwardContext | None) -> Tensor:
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

    tanh: whether to use the tanh approximation, as GPT-2 did.
    """

    def __init__(self, given: Given, *, hidden: int | None = None, tanh: bool = False):
        super().__init__(given, hidden=hidden)
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

    tanh: whether to use the tanh approximation, as Gemma (2024) did.
    """

    inputs = ("gate", "up")

    def __init__(self, given: Given, *, hidden: int | None = None, tanh: bool = False):
        super().__init__(given, hidden=hidden)
        self.approximate = "tanh" if tanh else "none"

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate=self.approximate) * up
