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
from ablate.model.context import ForwardContext
from ablate.model.given import Given
from ablate.model.kernels.grouped import TakeRows, by_group, one_by_one
from ablate.model.kernels.linear import compute_dtype, linear
from ablate.model.linear import GroupedLinear
from ablate.registry import check_options

KEY = "model.ffn"


@dataclass(frozen=True)
class Routing:
    """The experts that N tokens go to; the k choices of a token are in falling order of preference."""

    logits: Tensor  # [N, E] fp32
    probabilities: Tensor  # [N, E], their softmax
    experts: Tensor  # [N, k]
    gates: Tensor  # [N, k] fp32, the weights of the chosen experts' outputs
    taken: Tensor  # [N, k, E], True where the choice is the expert; all False on padding
    dropped: Tensor | None = None  # [N, k], True where the expert was full


@FFNS.register("moe")
class MixtureOfExperts(FeedForward):
    """sum of gate_e * expert_e(x) over the `top_k` experts e with the highest router logits (Shazeer et al. 2017).

    experts: the number of experts.
    top_k: the number of experts that a token passes through.
    expert: the name of any dense FFN, or its name and options, such as {name: gelu, tanh: true}.
    hidden: width of one expert; null: that of the dense FFN.
    softmax: whether the softmax that gives the gates comes before or after the choice. `before`: over all experts, and
        not normalised again over the chosen ones (Switch, Fedus et al. 2021; OLMoE, 2024). `after`: only over the
        chosen logits (Mixtral, 2024).
    shared_experts: adds a dense FFN this many experts wide, through which every token passes (DeepSeekMoE, 2024).
    balance_loss: coefficient of E * sum_e f_e P_e, with f_e the share of all choices that fell on expert e, P_e its
        mean probability (Switch). With an even load, each layer adds 1 times the coefficient.
    z_loss: coefficient of the mean of logsumexp(logits)^2 (ST-MoE, Zoph et al. 2022).
    bias_update: after each optimiser step, an expert's selection bias rises by this if the expert had less than the
        mean load, and falls by it if more. Experts are chosen by probability plus bias; the gates ignore the bias
        (Wang et al. 2024; DeepSeek-V3). The load counts only tokens of passes in training mode with gradients.
    capacity_factor: in training, each expert takes at most ceil(capacity_factor * N * top_k / experts) of the N tokens
        of a batch: first choices before second ones, then in the order of the batch. It adds nothing to the others
        (GShard, Lepikhin et al. 2020). This makes the tokens of a batch depend on each other, across documents too, so
        it is off in eval mode. It saves no time here: dropped tokens are computed, then multiplied by 0.

    Parameters: `router`, `experts` (the maps of the dense FFN under their names, weights `[E, out, in]`), `shared`.
    """

    def __init__(
        self,
        given: Given,
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
        _check_counts(experts, top_k, softmax)
        check.whole(f"{KEY}.shared_experts", shared_experts, 0)
        for option, value in (("balance_loss", balance_loss), ("z_loss", z_loss), ("bias_update", bias_update)):
            check.number(f"{KEY}.{option}", value, least=0)
        check.number(f"{KEY}.capacity_factor", capacity_factor, above=0, null=True)
        self.top_k, self.softmax = top_k, softmax
        self.balance_loss, self.z_loss, self.capacity_factor = balance_loss, z_loss, capacity_factor
        dense, options = _expert(expert, hidden)
        self.router = nn.Linear(given.dim, experts, bias=False)
        self.experts = dense(given, **options)
        width = shared_experts * self.experts.out.in_features
        self.shared = dense(given, **{**options, "hidden": width}) if shared_experts else None
        for name in (*dense.inputs, "out"):
            one = getattr(self.experts, name)
            sizes = (one.in_features, one.out_features, given.bias)
            setattr(self.experts, name, GroupedLinear(experts, *sizes, residual_out=one.residual_out))
        self.bias_update = bias_update
        if bias_update:
            self.register_buffer("selection_bias", torch.zeros(experts))
            self.register_buffer("load", torch.zeros(experts, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, context: ForwardContext | None) -> Tensor:
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
        """Computed in fp32 or wider: rounding would choose other experts."""
        wide, weight = torch.promote_types(x.dtype, torch.float32), self.router.weight
        if x.is_meta:  # autocast does not know the meta device
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
        """Sorts the rows by expert, sends them through, and puts them back: `[N, D] -> [N, D]`."""
        dtype = compute_dtype(x)
        chosen = routing.experts.flatten()
        order = chosen.argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        rows = TakeRows.apply(x.to(dtype), order // self.top_k, place, self.top_k)
        group = chosen[order]
        number = torch.arange(self.router.out_features, device=x.device)
        ends = torch.searchsorted(group, number, right=True, out_int32=True)
        maps = self.experts.maps()
        if by_group(rows):
            of_each = list(zip(*(one.unbind(dtype) for one in maps), strict=True))
            rows = one_by_one(rows, ends, of_each, self.experts.through)
        else:
            rows = self.experts.through(rows, [partial(one, group=group, ends=ends) for one in maps])
        outputs = TakeRows.apply(rows, place, order, 1).view(*routing.experts.shape, -1)
        return (outputs * routing.gates.unsqueeze(-1)).sum(1).to(dtype)

    # --- losses and statistics -----------------------------------------------------------------------

    def _report(self, routing: Routing, real: Tensor | None, context: ForwardContext, shape: torch.Size) -> None:
        weight = torch.ones_like(routing.logits[:, 0]) if real is None else real.to(routing.logits.dtype)
        weight = weight / weight.sum().clamp(min=1)  # each token's weight in a mean over the real tokens
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
        """Moves the selection bias towards an even load, from the tokens seen since the last step on all ranks."""
        if not self.bias_update:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        load = self.load.double()
        self.selection_bias += self.bias_update * (load.mean() - load).sign()
        self.load.zero_()


# --- checks ----------------------------------------------------------------------------------------


def _expert(node: str | dict, hidden: int | None) -> tuple[type[Dense], dict[str, Any]]:
    """The class of the experts, and its options.

    Raises:
        AblateError: it is not a dense FFN, or has no such option; the width is given twice.
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


def _check_counts(experts: int, top_k: int, softmax: str) -> None:
    check.whole(f"{KEY}.experts", experts, 1)
    check.whole(f"{KEY}.top_k", top_k, 1, experts, hint=f"{KEY}.experts={experts}")
    if softmax == "after" and top_k == 1 < experts:
        raise AblateError(
            f"{KEY}.softmax=after: with {KEY}.top_k=1 every gate is 1, and the router would never learn; "
            f"set {KEY}.softmax=before"
        )
