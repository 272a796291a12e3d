"""Optimisers. A component takes a model and returns a torch optimiser over its parameters.

    @OPTIMIZERS.register("sgd")
    @dataclass(frozen=True, kw_only=True)
    class SGD:
        lr: float

        def __call__(self, model: nn.Module) -> torch.optim.Optimizer: ...

Options are checked when the component is built, before any data is read: the registry checks their types,
`__post_init__` their ranges. Their values are only in `conf/optimizer/NAME.yaml`, so they have no defaults here.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ablate import check
from ablate.model.roles import DRAWN, declared
from ablate.registry import Axis

OPTIMIZERS = Axis("optimizer")


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW, whose weight decay acts on the weights and not on the gradients (Loshchilov and Hutter 2019).

    lr: peak learning rate; the schedule scales it.
    betas: decay rates of the running means of gradients and of their squares.
    eps: added to the root of the second mean.
    weight_decay: of matrices, experts, embeddings and the head; gains and biases are not decayed.

    Raises:
        AblateError: a value out of its range.
    """

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check.number(f"optimizer.{name}", getattr(self, name), least=0)
        if len(self.betas) != 2:
            raise check.wrong("optimizer.betas", self.betas, "two numbers")
        for beta in self.betas:
            check.number("optimizer.betas", beta, least=0, below=1)

    def __call__(self, model: nn.Module) -> torch.optim.AdamW:
        trained = [d for d in declared(model) if d.parameter.requires_grad]
        # Two groups, each in the order of model.parameters(): checkpoints number optimiser states in this order.
        groups = [
            {"params": [d.parameter for d in trained if d.role in DRAWN], "weight_decay": self.weight_decay},
            {"params": [d.parameter for d in trained if d.role not in DRAWN], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.lr, betas=tuple(self.betas), eps=self.eps, fused=True)
