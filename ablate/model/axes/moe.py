"""Mixture of experts: each token passes through a few of many dense FFNs, `[B, T, D] -> [B, T, D]`."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate import check
from ablate.errors import AblateError, did_you_mean
from ablate.model.axes.ffn import FFNS, Dense, FeedForward
from ablate.model.linear import GroupedLinear, compute_dtype, linear
from ablate.registry import check_options

KEY = "model.ffn"
_LEAST_ROWS = 4  # the matrix products of a CPU sum a row in one order from so many rows on, and in another below


@dataclass(frozen=True)
class Routing:
    """Where N tokens go. Choices are in falling order of preference."""

    logits: Tensor  # [N, E] fp32
    probabilities: Tensor  # [N, E], their softmax
    experts: Tensor  # [N, k]
    gates: Tensor  # [N, k] fp32, the weights of the chosen experts' outputs
    taken: Tensor  # [N, k, E], one-hot: True where the token chose the expert; all False on padding
    dropped: Tensor | None = None  # [N, k], True where the expert was full


@FFNS.register("moe")
class MixtureOfExperts(FeedForward):
    """sum of gate_e * expert_e(x) over the `top_k` experts e with the highest router logits (Shazeer et al. 2017).

    experts: how many there are.
    top_k: how many of them a token passes through.
    expert: the name of any dense FFN, or its node, such as {name: gelu, tanh: true}.
    hidden: width of one expert; null: that of the dense FFN.
    softmax: gates are probabilities among all experts, not normalised again over the chosen ones (`before`: Switch,
        Fedus et al. 2021; OLMoE, 2024), or a softmax over the chosen logits alone (`after`: Mixtral, 2024).
    shared_experts: a dense FFN that many times as wide, through which every token passes (DeepSeekMoE, 2024).
    balance_loss: coefficient of E * sum_e f_e P_e, with f_e the share of all choices that fell on expert e, P_e its
        mean probability (Switch). 1 times the coefficient, in each layer, where the load is even.
    z_loss: coefficient of the mean of logsumexp(logits)^2 (ST-MoE, Zoph et al. 2022).
    bias_update: what is added to, or taken from, an expert's selection bias after each step of the optimiser, as it
        had less or more than the mean load. Experts are chosen by probability plus bias; gates do not know the bias
        (Wang et al. 2024; DeepSeek-V3). Counts what passes through in training mode with gradients.
    capacity_factor: in training each expert takes at most ceil(capacity_factor * N * top_k / experts) of a batch's N
        tokens, first choices before second ones, then in the order of the batch; to the others it adds nothing
        (GShard, Lepikhin et al. 2020). It couples the tokens of a batch, later ones to earlier ones and document to
        document, so never in eval mode: what a model says does not hang on its neighbours in the batch. It
        saves no time here: shapes are fixed, and what is dropped is computed and multiplied by 0.

    Parameters: `router`, `experts` (maps named as the dense FFN's, weights `[E, out, in]`), `shared`.
    """

    def __init__(
        self,
        dim: int,
        bias: bool,
        *,
        experts: int = 8,
        top_k: int = 2,
        expert: str | dict = "swiglu",
        hidden: int | None = None,
        softmax: Literal["before", "after"] = "after",
        shared_experts: int = 0,
        balance_loss: float = 0.01,
        z_loss: float = 0.001,
        bias_update: float = 0.0,
        capacity_factor: float | None = None,
    ):
        super().__init__()
        _check_counts(experts, top_k, softmax, capacity_factor)
        _check_not_negative(
            shared_experts=shared_experts, balance_loss=balance_loss, z_loss=z_loss, bias_update=bias_update
        )
        self.top_k, self.softmax = top_k, softmax
        self.balance_loss, self.z_loss, self.capacity_factor = balance_loss, z_loss, capacity_factor
        dense, options = _expert(expert, hidden)
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = dense(dim, bias, **options)
        width = shared_experts * self.experts.out.in_features
        self.shared = dense(dim, bias, **{**options, "hidden": width}) if shared_experts else None
        for name in (*dense.inputs, "out"):
            one = getattr(self.experts, name)
            setattr(self.experts, name, GroupedLinear(experts, one.in_features, one.out_features, bias))
        self.bias_update = bias_update
        if bias_update:
            self.register_buffer("selection_bias", torch.zeros(experts))
            self.register_buffer("load", torch.zeros(experts, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, context) -> Tensor:
        tokens = x.flatten(0, 1)
        real = None if context is None or context.real is None else context.real.flatten()
        routing = self._route(tokens, real)
        if self.bias_update and self.training and torch.is_grad_enabled():
            self.load += routing.taken.sum((0, 1))
        if context is not None and context.record is not None:
            self._report(routing, real, context, x.shape[:2])
        y = self._mix(tokens, routing).view_as(x)
        return y if self.shared is None else y + self.shared(x, context)

    # --- routing -----------------------------------------------------------------------------------

    def _route(self, x: Tensor, real: Tensor | None) -> Routing:
        logits = self._logits(x)
        probabilities = logits.softmax(-1)
        scores = probabilities + self.selection_bias if self.bias_update else logits
        experts = scores.topk(self.top_k).indices
        before = self.softmax == "before"
        gates = probabilities.gather(1, experts) if before else logits.gather(1, experts).softmax(-1)
        taken = experts.unsqueeze(-1) == torch.arange(logits.shape[1], device=x.device)
        if real is not None:
            taken = taken & real.view(-1, 1, 1)
        routing = Routing(logits, probabilities, experts, gates, taken)
        return routing if self.capacity_factor is None or not self.training else self._drop(routing, real)

    def _logits(self, x: Tensor) -> Tensor:
        """In fp32 whatever else is not: rounding would choose other experts."""
        wide, weight = torch.promote_types(x.dtype, torch.float32), self.router.weight
        if x.is_meta:  # which autocast does not know
            return F.linear(x.to(wide), weight.to(wide))
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.to(wide), weight.to(wide), None)

    def _drop(self, routing: Routing, real: Tensor | None) -> Routing:
        tokens, choices, experts = routing.taken.shape
        if real is None:
            capacity = math.ceil(self.capacity_factor * tokens * choices / experts)
        else:
            capacity = (self.capacity_factor * real.sum(dtype=torch.float64) * choices / experts).ceil()
        queue = routing.taken.transpose(0, 1).flatten(0, 1)  # all first choices, then all second ones
        place = (queue.cumsum(0) * queue).sum(-1).view(choices, -1).t()
        dropped = place > capacity
        return replace(routing, gates=routing.gates.masked_fill(dropped, 0.0), dropped=dropped)

    # --- experts -----------------------------------------------------------------------------------

    def _mix(self, x: Tensor, routing: Routing) -> Tensor:
        """Rows are sorted by expert, go through, and come back: `[N, D] -> [N, D]`."""
        dtype = compute_dtype(x)
        chosen = routing.experts.flatten()
        order = chosen.argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        rows = _Take.apply(x.to(dtype), order // self.top_k, place, self.top_k)
        group = chosen[order]
        number = torch.arange(self.router.out_features, device=x.device)
        ends = torch.searchsorted(group, number, right=True, out_int32=True)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            rows = self._one_by_one(rows, ends)
        else:
            maps = [partial(project, group=group, ends=ends) for project in self.experts.maps()]
            rows = self.experts.through(rows, maps)
        outputs = _Take.apply(rows, place, order, 1).view(*routing.experts.shape, -1)
        return (outputs * routing.gates.unsqueeze(-1)).sum(1).to(dtype)

    def _one_by_one(self, x: Tensor, ends: Tensor) -> Tensor:
        """On a CPU the quickest, and there a row's result does not hang on how many share its expert."""
        sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
        experts = zip(*(project.unbind(x.dtype) for project in self.experts.maps()), strict=True)
        parts = zip(x.split(sizes), experts, strict=True)
        return torch.cat([self._one(part, weights) for part, weights in parts if len(part)])

    def _one(self, x: Tensor, weights: tuple[tuple[Tensor, Tensor | None], ...]) -> Tensor:
        if len(x) < _LEAST_ROWS:
            return self._one(F.pad(x, (0, 0, 0, _LEAST_ROWS - len(x))), weights)[: len(x)]
        product = (
            linear if torch.is_grad_enabled() else F.linear
        )  # ours has another way for few rows, and another order
        return self.experts.through(x, [partial(product, weight=weight, bias=bias) for weight, bias in weights])

    # --- what it leaves beside -----------------------------------------------------------------------

    def _report(self, routing: Routing, real: Tensor | None, context, shape: torch.Size) -> None:
        weight = torch.ones_like(routing.logits[:, 0]) if real is None else real.to(routing.logits.dtype)
        weight = weight / weight.sum().clamp(min=1)  # of each token in a mean over the real ones
        load = routing.taken.sum((0, 1))
        if self.balance_loss:
            share = load / load.sum().clamp(min=1)
            context.add_loss(
                "balance_loss", self.balance_loss * len(load) * (share * (weight @ routing.probabilities)).sum()
            )
        if self.z_loss:
            context.add_loss("z_loss", self.z_loss * (weight * routing.logits.logsumexp(-1).square()).sum())
        context.note("router_entropy", (weight * torch.special.entr(routing.probabilities).sum(-1)).sum())
        context.note("router_load", load)
        dropped = torch.zeros_like(weight) if routing.dropped is None else routing.dropped.to(weight.dtype).mean(-1)
        context.note("router_dropped", (weight * dropped).sum())
        context.note("router_experts", routing.experts.view(*shape, -1))

    def idle_parameters(self, tokens: int = 1) -> int:
        count, experts = self.router.out_features, self.experts.maps()
        of_one = sum(p.numel() // count for maps in experts for p in maps.parameters())
        return of_one * max(0, count - tokens * self.top_k)

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the selection bias towards an even load, by the tokens seen since the last step on all ranks."""
        if not self.bias_update:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        load = self.load.double()
        self.selection_bias += self.bias_update * (load.mean() - load).sign()
        self.load.zero_()


class _Take(torch.autograd.Function):
    """Rows of x by index, each row of x taken `copies` times: `[N, D] -> [N copies, D]`.

    back: `[N copies]`, where each copy of the first row went, of the second, ... With it the gradient is a gather and
    a sum in fixed order: scattered additions are slower on a GPU, and come out in any order.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (back,) = ctx.saved_tensors
        taken = grad.index_select(0, back)
        return (taken if ctx.copies == 1 else taken.unflatten(0, (-1, ctx.copies)).sum(1)), None, None, None


# --- checks ----------------------------------------------------------------------------------------


def _expert(node: str | dict, hidden: int | None) -> tuple[type[Dense], dict[str, Any]]:
    """The class of the experts, and its options.

    Raises:
        AblateError: it is not a dense FFN, or has no such option; a width given twice.
    """
    given = dict(node) if isinstance(node, dict) else {"name": node}
    name = given.pop("name", None)
    components = {known: FFNS.component(known) for known in FFNS.names()}
    dense = {known: c for known, c in components.items() if issubclass(c, Dense) and c.forward is Dense.forward}
    if name not in dense:
        raise AblateError(f"{KEY}.expert: '{name}' is not a dense FFN{did_you_mean(name, dense)}")
    if hidden is not None:
        if given.get("hidden") is not None:
            raise AblateError(
                f"{KEY}.hidden={hidden}: the width of an expert is given in {KEY}.expert too; leave one out"
            )
        given["hidden"] = hidden
    return dense[name], check_options(f"{KEY}.expert", f"'{name}'", dense[name], given)


def _check_counts(experts: int, top_k: int, softmax: str, capacity_factor: float | None) -> None:
    if experts < 1:
        raise AblateError(f"{KEY}.experts={experts}: at least 1")
    if not 1 <= top_k <= experts:
        raise AblateError(f"{KEY}.top_k={top_k}: expected 1 to {experts}, the number of experts ({KEY}.experts)")
    if softmax == "after" and top_k == 1 < experts:
        raise AblateError(
            f"{KEY}.softmax=after: with {KEY}.top_k=1 every gate is 1, and the router would never learn; "
            f"set {KEY}.softmax=before"
        )
    check.number(f"{KEY}.capacity_factor", capacity_factor, above=0, null=True)


def _check_not_negative(**options: float) -> None:
    for name, value in options.items():
        if not value >= 0:
            raise AblateError(f"{KEY}.{name}={value}: expected 0 or more")
