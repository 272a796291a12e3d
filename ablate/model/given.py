"""What a component is given when it is built, beside its own options."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Given:
    """The sizes of the model, and the layer that the component is for.

    dim: width of the residual stream. heads: query heads. bias: whether linear maps have one, unless an option says
    otherwise. context: tokens that the model is trained on at once. depth: number of layers. layer: which of them, from
    0; of the final norm, the last. head_dim: width of this layer's attention heads; known to positions, which are built
    after attention.
    """

    dim: int
    heads: int
    bias: bool
    context: int
    depth: int
    layer: int
    head_dim: int | None = None
