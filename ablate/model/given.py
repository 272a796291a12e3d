"""What a component is given when it is built, beside its own options."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Given:
    """The sizes of the model, and the layer that the component is for.

    dim: width of the residual stream. heads: query heads. bias: whether linear maps have one, unless an option says
    otherwise. context: the number of tokens in a training row. depth: number of layers. layer: number of this layer,
    from 0; for the final norm, the last. head_dim: width of this layer's attention heads; only positions get it, since
    they are built after attention.
    """

    dim: int
    heads: int
    bias: bool
    context: int
    depth: int
    layer: int
    head_dim: int | None = None
