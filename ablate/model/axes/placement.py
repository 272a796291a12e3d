"""Placement: how norms, sublayers and the residual stream are wired, `[B, T, D] -> [B, T, D]`."""

from collections.abc import Callable

from torch import Tensor, nn

from ablate import check
from ablate.model.context import ForwardContext
from ablate.model.given import Given
from ablate.registry import Axis

PLACEMENTS = Axis("model.placement")


class Block(nn.Module):
    """The contract: a block is built from its two sublayers and a function that makes its norms.

    residual_scale: multiplies what a sublayer adds to the residual stream (Granite, 2024). Under `post`, a scale of
        1 / alpha is DeepNorm's residual weight alpha (Wang et al. 2022).
    """

    final_norm = True  # whether the decoder needs a norm between the last block and the head

    def __init__(
        self,
        given: Given,
        attention: nn.Module,
        ffn: nn.Module,
        norm: Callable[[], nn.Module],
        *,
        residual_scale: float = 1.0,
    ):
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.residual_scale = check.number("model.placement.residual_scale", residual_scale, above=0)
        self.make_norms(norm)

    def make_norms(self, norm: Callable[[], nn.Module]) -> None:
        self.attention_norm, self.ffn_norm = norm(), norm()

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        return x + update if self.residual_scale == 1.0 else x + self.residual_scale * update

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        raise NotImplementedError


@PLACEMENTS.register("pre")
class PreNorm(Block):
    """x + f(norm(x)) (GPT-2; Xiong et al. 2020).

    x ─┬─ norm ─ attention ─ + ─┬─ norm ─ ffn ─ + ─
       └─────────────────────┘  └───────────────┘
    """

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = self.add(x, self.attention(self.attention_norm(x), context))
        return self.add(x, self.ffn(self.ffn_norm(x), context))


@PLACEMENTS.register("post")
class PostNorm(Block):
    """norm(x + f(x)) (Vaswani et al. 2017).

    x ─┬─ attention ─ + ─ norm ─┬─ ffn ─ + ─ norm ─
       └──────────────┘         └────────┘
    """

    final_norm = False

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = self.attention_norm(self.add(x, self.attention(x, context)))
        return self.ffn_norm(self.add(x, self.ffn(x, context)))


@PLACEMENTS.register("sandwich")
class SandwichNorm(Block):
    """x + norm(f(norm(x))): a norm before and after (Ding et al. 2021; Gemma 2, 2024).

    x ─┬─ norm ─ attention ─ norm ─ + ─┬─ norm ─ ffn ─ norm ─ + ─
       └────────────────────────────┘  └──────────────────────┘
    """

    def make_norms(self, norm: Callable[[], nn.Module]) -> None:
        super().make_norms(norm)
        self.attention_out_norm, self.ffn_out_norm = norm(), norm()

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = self.add(x, self.attention_out_norm(self.attention(self.attention_norm(x), context)))
        return self.add(x, self.ffn_out_norm(self.ffn(self.ffn_norm(x), context)))


@PLACEMENTS.register("parallel")
class Parallel(Block):
    """x + attention(norm(x)) + ffn(norm(x)), which both read one norm (GPT-J, Wang and Komatsuzaki 2021).

             ┌─ attention ─┐
    x ─┬─ norm ─── ffn ─── + ─ + ─
       └───────────────────────┘
    """

    def make_norms(self, norm: Callable[[], nn.Module]) -> None:
        self.norm = norm()

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        normed = self.norm(x)
        return self.add(x, self.attention(normed, context) + self.ffn(normed, context))


@PLACEMENTS.register("reordered")
class ReorderedNorm(Block):
    """x + norm(f(x)): the norm within the residual branch, after the sublayer (OLMo 2, 2025; Swin v2).

    x ─┬─ attention ─ norm ─ + ─┬─ ffn ─ norm ─ + ─
       └─────────────────────┘  └───────────────┘
    """

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = self.add(x, self.attention_norm(self.attention(x, context)))
        return self.add(x, self.ffn_norm(self.ffn(x, context)))
