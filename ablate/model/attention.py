"""Multi-head attention and its relatives that share keys and values, `[B, T, D] -> [B, T, D]`."""

from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.model.linear import Linear, joint_linear
from ablate.model.registry import Axis

ATTENTIONS = Axis("model.attention")


class Attention(nn.Module):
    """`heads` query heads over `kv_heads` shared key and value heads. The last projection is called `out`."""

    def __init__(self, dim: int, heads: int, bias: bool, kv_heads: int, head_dim: int | None):
        super().__init__()
        if head_dim is None and dim % heads:
            raise AblateError(
                f"model.dim={dim} is not divisible by model.heads={heads}: change one, or set model.attention.head_dim"
            )
        if head_dim is not None and head_dim < 1:
            raise AblateError(f"model.attention.head_dim={head_dim}: at least 1")
        if kv_heads < 1 or heads % kv_heads:
            raise AblateError(
                f"model.attention.kv_heads={kv_heads} does not divide model.heads={heads}: "
                f"choose one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim or dim // heads
        self.query = Linear(dim, heads * self.head_dim, bias=bias)
        self.key = Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.value = Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.out = Linear(heads * self.head_dim, dim, bias=bias)

    def forward(self, x: Tensor, context) -> Tensor:
        """`x`: `[B, T, D]`; `context`: the forward context (masks, rotations, cache) at this layer."""
        projected = joint_linear(x, [self.query, self.key, self.value])
        query, key, value = (t.unflatten(-1, (-1, self.head_dim)) for t in projected)
        return self.out(context.attend(query, key, value).flatten(-2))


@ATTENTIONS.register("mha")
class MultiHead(Attention):
    """Every query head has its own keys and values (Vaswani et al. 2017)."""

    def __init__(self, dim: int, heads: int, bias: bool, *, head_dim: int | None = None):
        super().__init__(dim, heads, bias, heads, head_dim)


@ATTENTIONS.register("gqa")
class GroupedQuery(Attention):
    """Groups of query heads share keys and values (Ainslie et al. 2023)."""

    def __init__(self, dim: int, heads: int, bias: bool, *, kv_heads: int = 2, head_dim: int | None = None):
        super().__init__(dim, heads, bias, kv_heads, head_dim)


@ATTENTIONS.register("mqa")
class MultiQuery(Attention):
    """All query heads share one head of keys and values (Shazeer 2019)."""

    def __init__(self, dim: int, heads: int, bias: bool, *, head_dim: int | None = None):
        super().__init__(dim, heads, bias, 1, head_dim)
