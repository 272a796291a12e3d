"""Multi-head attention, and its relatives that share keys and values: `[B, T, D] -> [B, T, D]`."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from ablate import check
from ablate.errors import AblateError
from ablate.model.axes.norm import RMSNorm
from ablate.model.context import ForwardContext
from ablate.model.given import Given
from ablate.model.linear import JointInputs, Linear, joint_linear
from ablate.registry import Axis

ATTENTIONS = Axis("model.attention")
PROJECTIONS = ("query", "key", "value", "out")
Bias = bool | list[str] | None
QKNorm = Literal["head", "width"] | None


class Attention(JointInputs):
    """Query heads over `kv_heads` shared heads of keys and values.

    head_dim: width of a head; null: dim / heads.
    bias: true, false, or the projections with a bias, such as [query, key, value] (Qwen 2); null: model.bias.
    softcap: scores s become softcap * tanh(s / softcap), so that none exceeds it (Gemma 2, 2024).
    qk_norm: RMSNorm of queries and keys before they are rotated (Henry et al. 2020): of each head (Qwen 3),
        or of all heads together (`width`, OLMo 2).
    """

    inputs = ("query", "key", "value")

    def __init__(
        self,
        given: Given,
        kv_heads: int,
        head_dim: int | None,
        bias: Bias,
        softcap: float | None,
        qk_norm: QKNorm,
    ):
        super().__init__()
        _check(given, kv_heads, head_dim)
        self.heads, self.kv_heads, self.head_dim = given.heads, kv_heads, head_dim or given.dim // given.heads
        self.softcap = check.number("model.attention.softcap", softcap, above=0, null=True)
        self.qk_norm = qk_norm
        biased = _biased(given.bias if bias is None else bias)
        query_width, key_width = self.heads * self.head_dim, kv_heads * self.head_dim
        self.query = Linear(given.dim, query_width, "query" in biased)
        self.key = Linear(given.dim, key_width, "key" in biased)
        self.value = Linear(given.dim, key_width, "value" in biased)
        self.out = Linear(query_width, given.dim, "out" in biased, residual_out=True)
        if qk_norm is not None:
            widths = (self.head_dim, self.head_dim) if qk_norm == "head" else (query_width, key_width)
            self.query_norm, self.key_norm = (RMSNorm(replace(given, dim=width)) for width in widths)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        query, key, value = self.project(x)
        if self.qk_norm == "width":
            query, key = self._normed(query, key)
        query, key, value = (t.view(*t.shape[:-1], -1, self.head_dim) for t in (query, key, value))
        if self.qk_norm == "head":
            query, key = self._normed(query, key)
        return self.out(context.attend(query, key, value).flatten(-2))

    def project_many(self, x: Tensor) -> list[Tensor]:
        return joint_linear(x, self.input_maps())

    def _normed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(query).to(query.dtype), self.key_norm(key).to(key.dtype)


def _check(given: Given, kv_heads: int, head_dim: int | None) -> None:
    if head_dim is None and given.dim % given.heads:
        raise AblateError(
            f"model.dim={given.dim} is not divisible by model.heads={given.heads}: change one, or set "
            "model.attention.head_dim"
        )
    check.whole("model.attention.head_dim", head_dim, 1, null=True)
    if kv_heads < 1 or given.heads % kv_heads:
        raise AblateError(
            f"model.attention.kv_heads={kv_heads} does not divide model.heads={given.heads}: "
            f"choose one of {', '.join(str(n) for n in range(1, given.heads + 1) if given.heads % n == 0)}"
        )


def _biased(bias: bool | list[str]) -> tuple[str, ...]:
    if isinstance(bias, bool):
        return PROJECTIONS if bias else ()
    unknown = [name for name in bias if name not in PROJECTIONS]
    if unknown:
        raise AblateError(f"model.attention.bias={bias}: expected true, false or some of {', '.join(PROJECTIONS)}")
    return tuple(bias)


class _Fixed(Attention):
    """Attention that fixes the number of key and value heads."""

    def __init__(
        self,
        given: Given,
        *,
        head_dim: int | None = None,
        bias: Bias = None,
        softcap: float | None = None,
        qk_norm: QKNorm = None,
    ):
        super().__init__(given, self.shared(given.heads), head_dim, bias, softcap, qk_norm)

    @staticmethod
    def shared(heads: int) -> int:
        """The number of key and value heads that `heads` query heads share."""
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

    kv_heads: the number of key and value heads; divides model.heads.
    """

    def __init__(
        self,
        given: Given,
        *,
        kv_heads: int = 2,
        head_dim: int | None = None,
        bias: Bias = None,
        softcap: float | None = None,
        qk_norm: QKNorm = None,
    ):
        super().__init__(given, kv_heads, head_dim, bias, softcap, qk_norm)


@ATTENTIONS.register("mqa")
class MultiQuery(_Fixed):
    """All query heads share one head of keys and values (Shazeer 2019)."""

    @staticmethod
    def shared(heads: int) -> int:
        return 1
