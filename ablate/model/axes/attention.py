"""Multi-head attention and its relatives that share keys and values, `[B, T, D] -> [B, T, D]`."""

from typing import Literal

from torch import Tensor

from ablate import check
from ablate.errors import AblateError
from ablate.model.axes.norm import RMSNorm
from ablate.model.linear import JointInputs, Linear, joint_linear
from ablate.registry import Axis

ATTENTIONS = Axis("model.attention")
PROJECTIONS = ("query", "key", "value", "out")
Bias = bool | list[str] | None
QKNorm = Literal["head", "width"] | None


class Attention(JointInputs):
    """`heads` query heads over `kv_heads` shared key and value heads. The last projection is called `out`.

    head_dim: width of a head; null: dim / heads.
    bias: true, false, or the projections that have one, such as [query, key, value] (Qwen 2); null: model.bias.
    softcap: scores s become softcap * tanh(s / softcap), so that none is beyond it (Gemma 2, 2024).
    qk_norm: RMSNorm of queries and keys before they are rotated (Henry et al. 2020): of each head (Qwen 3),
        or of all heads together (`width`, OLMo 2).
    """

    inputs = ("query", "key", "value")

    def __init__(
        self,
        dim: int,
        heads: int,
        model_bias: bool,
        kv_heads: int,
        head_dim: int | None,
        bias: Bias,
        softcap: float | None,
        qk_norm: QKNorm,
    ):
        super().__init__()
        _check(dim, heads, kv_heads, head_dim, softcap)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim or dim // heads
        self.softcap, self.qk_norm = softcap, qk_norm
        biased = _biased(model_bias if bias is None else bias)
        query_width, key_width = heads * self.head_dim, kv_heads * self.head_dim
        self.query = Linear(dim, query_width, bias="query" in biased)
        self.key = Linear(dim, key_width, bias="key" in biased)
        self.value = Linear(dim, key_width, bias="value" in biased)
        self.out = Linear(query_width, dim, bias="out" in biased)
        if qk_norm is not None:
            widths = (self.head_dim, self.head_dim) if qk_norm == "head" else (query_width, key_width)
            self.query_norm, self.key_norm = RMSNorm(widths[0]), RMSNorm(widths[1])

    def forward(self, x: Tensor, context) -> Tensor:
        """`x`: `[B, T, D]`; `context`: the forward context (masks, rotations, cache) at this layer."""
        query, key, value = self.project(x)
        if self.qk_norm == "width":
            query, key = self._normed(query, key)
        query, key, value = (t.view(*t.shape[:-1], -1, self.head_dim) for t in (query, key, value))
        if self.qk_norm == "head":
            query, key = self._normed(query, key)
        return self.out(context.attend(query, key, value).flatten(-2))

    def project_many(self, x: Tensor) -> list[Tensor]:
        return joint_linear(x, [self.query, self.key, self.value])

    def _normed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(query).to(query.dtype), self.key_norm(key).to(key.dtype)


def _check(dim: int, heads: int, kv_heads: int, head_dim: int | None, softcap: float | None) -> None:
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
    check.number("model.attention.softcap", softcap, above=0, null=True)


def _biased(bias: bool | list[str]) -> tuple[str, ...]:
    if isinstance(bias, bool):
        return PROJECTIONS if bias else ()
    unknown = [name for name in bias if name not in PROJECTIONS]
    if unknown:
        raise AblateError(f"model.attention.bias={bias}: expected true, false or some of {', '.join(PROJECTIONS)}")
    return tuple(bias)


class _Fixed(Attention):
    """Attention whose number of key and value heads is no option."""

    def __init__(
        self,
        dim: int,
        heads: int,
        model_bias: bool,
        *,
        head_dim: int | None = None,
        bias: Bias = None,
        softcap: float | None = None,
        qk_norm: QKNorm = None,
    ):
        super().__init__(dim, heads, model_bias, self.shared(heads), head_dim, bias, softcap, qk_norm)

    @staticmethod
    def shared(heads: int) -> int:
        """How many heads of keys and values `heads` query heads share."""
        raise NotImplementedError


@ATTENTIONS.register("mha")
class MultiHead(_Fixed):
    """Every query head has its own keys and values (Vaswani et al. 2017)."""

    @staticmethod
    def shared(heads: int) -> int:
        return heads


@ATTENTIONS.register("gqa")
class GroupedQuery(Attention):
    """Groups of query heads share keys and values (Ainslie et al. 2023).

    kv_heads: how many heads of keys and values there are; divides model.heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        model_bias: bool,
        *,
        kv_heads: int = 2,
        head_dim: int | None = None,
        bias: Bias = None,
        softcap: float | None = None,
        qk_norm: QKNorm = None,
    ):
        super().__init__(dim, heads, model_bias, kv_heads, head_dim, bias, softcap, qk_norm)


@ATTENTIONS.register("mqa")
class MultiQuery(_Fixed):
    """All query heads share one head of keys and values (Shazeer 2019)."""

    @staticmethod
    def shared(heads: int) -> int:
        return 1
