"""Placement: how norm, sublayer and residual are wired, `[B, T, D] -> [B, T, D]`."""

from collections.abc import Callable

from torch import Tensor, nn

from ablate.model.registry import Axis

PLACEMENTS = Axis("model.placement")


class Block(nn.Module):
    """The contract: built from its two sublayers and a maker of norms."""

    final_norm = True  # whether the stack still needs a norm before the head

    def __init__(self, attention: nn.Module, ffn: nn.Module, norm: Callable[[], nn.Module]):
        super().__init__()
        self.attention, self.ffn = attention, ffn

    def forward(self, x: Tensor, context) -> Tensor:
        raise NotImplementedError


class _TwoNorms(Block):
    def __init__(self, attention: nn.Module, ffn: nn.Module, norm: Callable[[], nn.Module]):
        super().__init__(attention, ffn, norm)
        self.attention_norm, self.ffn_norm = norm(), norm()


@PLACEMENTS.register("pre")
class PreNorm(_TwoNorms):
    """x + f(norm(x)) (GPT-2; Xiong et al. 2020).

    x ─┬─ norm ─ attention ─ + ─┬─ norm ─ ffn ─ + ─
       └─────────────────────┘  └─────────────┘
    """

    def forward(self, x: Tensor, context) -> Tensor:
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.ffn(self.ffn_norm(x), context)


@PLACEMENTS.register("post")
class PostNorm(_TwoNorms):
    """norm(x + f(x)) (Vaswani et al. 2017).

    x ─┬─ attention ─ + ─ norm ─┬─ ffn ─ + ─ norm ─
       └──────────────┘         └────────┘
    """

    final_norm = False

    def forward(self, x: Tensor, context) -> Tensor:
        x = self.attention_norm(x + self.attention(x, context))
        return self.ffn_norm(x + self.ffn(x, context))
