"""The feed-forward sublayer, `[B, T, D] -> [B, T, D]`, position by position."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.model.linear import Linear
from ablate.model.registry import Axis

FFNS = Axis("model.ffn")


class FeedForward(nn.Module):
    """The contract: built from the model's width and bias; the last projection is called `out`."""

    def forward(self, x: Tensor, context) -> Tensor:
        """`x`: `[B, T, D]`; `context`: the forward context, which takes auxiliary losses; None takes none."""
        raise NotImplementedError

    def idle_parameters(self) -> int:
        """How many parameters a token does not pass through."""
        return 0

    def after_step(self) -> None:
        """Called after each step of the optimiser."""


class Dense(FeedForward):
    """out(activation(up(x))) (Vaswani et al. 2017). Hidden width 4 D unless given."""

    def __init__(self, dim: int, bias: bool, hidden: int | None):
        super().__init__()
        hidden = _width(hidden, 4 * dim)
        self.up = Linear(dim, hidden, bias=bias)
        self.out = Linear(hidden, dim, bias=bias)

    def activation(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, context) -> Tensor:
        return self.out(self.activation(self.up(x)))


@FFNS.register("relu")
class ReLU(Dense):
    """max(0, x) (Vaswani et al. 2017)."""

    def __init__(self, dim: int, bias: bool, *, hidden: int | None = None):
        super().__init__(dim, bias, hidden)

    def activation(self, x: Tensor) -> Tensor:
        return F.relu(x)


@FFNS.register("gelu")
class GELU(Dense):
    """x * Phi(x), exact or by tanh (Hendrycks and Gimpel 2016). GPT-2 used the tanh form."""

    def __init__(self, dim: int, bias: bool, *, hidden: int | None = None, tanh: bool = False):
        super().__init__(dim, bias, hidden)
        self.approximate = "tanh" if tanh else "none"

    def activation(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


@FFNS.register("swiglu")
class SwiGLU(FeedForward):
    """out(silu(gate(x)) * up(x)) (Shazeer 2020).

    Hidden width 8/3 D unless given (as many parameters as a dense FFN of 4 D), rounded up to a
    multiple of 16.
    """

    def __init__(self, dim: int, bias: bool, *, hidden: int | None = None):
        super().__init__()
        hidden = _width(hidden, 16 * math.ceil(8 * dim / 48))
        self.gate = Linear(dim, hidden, bias=bias)
        self.up = Linear(dim, hidden, bias=bias)
        self.out = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor, context) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.up(x))


def _width(hidden: int | None, default: int) -> int:
    if hidden is not None and hidden < 1:
        raise AblateError(f"model.ffn.hidden={hidden}: at least 1")
    return default if hidden is None else hidden
