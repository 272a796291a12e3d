"""The decoder: embedding, blocks, final norm, head. One forward path for training and generation."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.model.axes.pattern import Layout, Pattern, document_runs
from ablate.model.axes.position import Position
from ablate.model.cache import Cache, LayerShape, Pass
from ablate.model.config import AXES, DecoderConfig
from ablate.model.init import initialise
from ablate.model.kernels.kernel import KERNELS, Kernel, Place, Scores, choose_kernel
from ablate.model.linear import JointInputs, Linear, compute_dtype
from ablate.model.memory import check_memory


@dataclass(frozen=True)
class Layer:
    """What attention in one layer is made of, apart from its weights."""

    position: int  # which of `Decoder.positions`
    mask: int  # layers of one number attend to the same keys, with the same bias
    scores: Scores

    @property
    def pattern(self) -> Pattern:
        return self.scores.pattern


class Record:
    """What layers leave beside the residual stream in one forward pass. A caller who wants it passes one in.

    Not a dataclass: FSDP looks into those that a block is given, and hands on a copy where it finds a gradient.
    """

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}  # name -> summed over layers, to be added to the loss
        self.statistics: dict[str, dict[int, Tensor]] = {}  # name -> layer -> tensor


@dataclass
class ForwardContext:
    """One layer's view of one forward pass: how to attend, and where to leave auxiliary losses."""

    layer: int
    scores: Scores
    position: Position
    rotation: Any
    kernel: Kernel
    mask: Any
    cached: Pass | None = None
    real: Tensor | None = None  # `[B, T]`, False on padding; None: all tokens are real
    record: Record | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries `[B, T, H, d]`, keys and values `[B, T, G, d]` of this pass -> `[B, T, H, d]`."""
        query = self.position.rotate(query, self.rotation)
        key = self.position.rotate(key, self.rotation)
        if self.cached is not None:
            key, value = self.cached.extend(self.layer, key, value)
        return self.kernel(query, key, value, self.mask, self.scores)

    def add_loss(self, name: str, loss: Tensor) -> None:
        """Adds a scalar, weighted as it shall count, to what is trained on."""
        if self.record is not None:
            self.record.losses[name] = self.record.losses.get(name, 0.0) + loss

    def note(self, name: str, statistic: Tensor) -> None:
        """Keeps a statistic of this layer for logs and pictures; no gradient flows from it."""
        if self.record is not None:
            self.record.statistics.setdefault(name, {})[self.layer] = statistic.detach()


class Decoder(nn.Module):
    """A decoder language model from a `DecoderConfig`.

    tokens ─ embedding ─ block 0 ─ ... ─ block L-1 ─ norm ─ head ─ logits
    """

    def __init__(self, config: DecoderConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self._kernels: dict[Place, list[str]] = {}
        specs = config.layers()
        check_memory(config)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._assemble(config, specs)
        initialise(self, config.dim, config.depth, seed)

    def _assemble(self, config: DecoderConfig, specs: list[dict[str, dict]]) -> None:
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList()
        self.positions = nn.ModuleList()
        self.layers: list[Layer] = []
        known: dict[str, int] = {}
        masks: dict[str, int] = {}
        for spec in specs:
            attention = AXES["attention"].build(spec["attention"], config.dim, config.heads, config.bias)
            ffn = AXES["ffn"].build(spec["ffn"], config.dim, config.bias)

            def norm(spec=spec) -> nn.Module:
                return AXES["norm"].build(spec["norm"], config.dim)

            self.blocks.append(AXES["placement"].build(spec["placement"], attention, ffn, norm))
            absolute = AXES["position"].component(spec["position"]["name"]).absolute
            kind = f"{spec['position']} {None if absolute else attention.head_dim}"
            if kind not in known:
                known[kind] = len(self.positions)
                self.positions.append(
                    AXES["position"].build(
                        spec["position"], config.dim, config.heads, attention.head_dim, config.context
                    )
                )
            position = self.positions[known[kind]]
            scores = self._scores(AXES["pattern"].build(spec["pattern"]), position, attention)
            mask = masks.setdefault(f"{scores.pattern} {known[kind] if position.biased else ''}", len(masks))
            self.layers.append(Layer(known[kind], mask, scores))
        self.final_norm = norm() if self.blocks[-1].final_norm else nn.Identity()
        self.head = Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.limit = min((p.limit for p in self.positions if p.limit is not None), default=None)

    def _scores(self, pattern: Pattern, position: Position, attention: nn.Module) -> Scores:
        bias = position.bias if position.biased else None
        softcap = getattr(attention, "softcap", None)
        scores = Scores(pattern, self.config.heads, attention.kv_heads, attention.head_dim, softcap, bias)
        if self.config.kernel != "auto":
            reason = KERNELS[self.config.kernel].refusal(scores)
            if reason is not None:
                raise AblateError(f"model.kernel={self.config.kernel}: {reason}; choose another kernel, or auto")
        return scores

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Token ids `[B, T]` -> logits `[B, T, V]`.

        positions: `[B, T]`, what the position component reads; by default counted from 0 in each document.
        documents: `[B, T]`, which document a token is of: attention does not cross them. None: a row is one.
        cache: holds the tokens before these and takes these in; `documents` may then only mark padding, by -1.
        """
        return self.logits(self.hidden(tokens, positions, documents, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """What `hidden` gives, `[..., D]` -> `[..., V]`."""
        logits, cap = self.head(hidden), self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        record: Record | None = None,
        max_documents: int | None = None,
    ) -> Tensor:
        """As `forward`, but the residual stream before the head: `[B, T, D]`.

        record: takes auxiliary losses and statistics in; without one they are not computed.
        max_documents: no row has more runs of equal `documents`, if that is known: saves a GPU kernel from asking.
        """
        self._check(tokens, cache)
        cached = None
        if cache is None:
            index, layout = self._rows(tokens, documents, max_documents)
            positions = index if positions is None else positions
            layouts = [replace(layout, query_position=positions, key_position=positions)] * len(self.layers)
        else:
            cached = cache.begin(tokens.shape[1], documents)
            positions = cached.index if positions is None else positions
            layouts = cached.layouts(positions)
        x = self.embedding(tokens)
        if self.config.scale_embeddings:
            x = x * self.config.dim**0.5
        for position in self.positions:
            x = position.embed(x, positions)
        real = None if documents is None else documents >= 0
        contexts = self._contexts(positions, layouts, self._place(x, cached is not None), cached, real, record)
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context)
        if cached is not None:
            cached.close()
        return self.final_norm(x)

    def _contexts(
        self,
        positions: Tensor,
        layouts: list[Layout],
        place: Place,
        cached: Pass | None,
        real: Tensor | None,
        record: Record | None,
    ) -> list[ForwardContext]:
        """One for each layer. Rotations and masks are computed once, and shared by the layers that agree on them."""
        rotations = [position.rotation(positions) for position in self.positions]
        masks, contexts = {}, []
        kernels = self.kernels(place)
        for number, (layer, layout, name) in enumerate(zip(self.layers, layouts, kernels, strict=True)):
            scores, kernel = layer.scores, KERNELS[name]
            if (name, layer.mask) not in masks:
                masks[name, layer.mask] = kernel.prepare(scores, layout, place.dtype)
            position, rotation, mask = (
                self.positions[layer.position],
                rotations[layer.position],
                masks[name, layer.mask],
            )
            contexts.append(ForwardContext(number, scores, position, rotation, kernel, mask, cached, real, record))
        return contexts

    def kernels(self, place: Place) -> list[str]:
        """The kernel that computes each layer there.

        Raises:
            AblateError: the kernel that the configuration names cannot, with the reason.
        """
        if place in self._kernels:  # asked at every step of generation
            return self._kernels[place]
        names = [choose_kernel(self.config.kernel, layer.scores, place) for layer in self.layers]
        if not torch.compiler.is_compiling():
            self._kernels[place] = names
        return names

    def after_step(self) -> None:
        """To be called after each step of the optimiser: for parts that adapt by a rule of their own."""
        for block in self.blocks:
            block.ffn.after_step()

    def lay_weights(self) -> None:
        """Puts weights that are read together side by side in memory; for who is going to generate, and no more."""
        for module in self.modules():
            if isinstance(module, JointInputs):
                module.lay()

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of up to `max_length` tokens, in the model's dtype, on its device.

        A pass takes as many tokens of `max_length` as it is wide, whatever part of them is padding.
        """
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in (batch, max_length)):
            raise AblateError(f"new_cache(batch={batch!r}, max_length={max_length!r}): whole numbers, both at least 1")
        weight = self.embedding.weight
        biased = any(layer.scores.bias is not None for layer in self.layers)
        return Cache(self.cache_shapes(max_length), batch, max_length, weight.dtype, weight.device, biased)

    def cache_shapes(self, max_length: int) -> list[LayerShape]:
        """What each layer keeps of `max_length` tokens: what its pattern can still see."""
        return [
            LayerShape(block.attention.kv_heads, block.attention.head_dim, layer.pattern.slots(max_length), max_length)
            for block, layer in zip(self.blocks, self.layers, strict=True)
        ]

    def cache_bytes(self, length: int) -> int:
        """Bytes of the keys and values that a row of `length` tokens keeps, in the model's dtype."""
        values = sum(2 * shape.kv_heads * shape.head_dim * shape.size for shape in self.cache_shapes(length))
        return values * self.embedding.weight.element_size()

    def _rows(self, tokens: Tensor, documents: Tensor | None, max_documents: int | None) -> tuple[Tensor, Layout]:
        if documents is None:
            index = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
            return index, Layout(index, index, square=True)
        run, index = document_runs(documents)
        return index, Layout(index, index, run, run, max_documents=max_documents)

    def _check(self, tokens: Tensor, cache: Cache | None) -> None:
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise AblateError(f"tokens have shape {list(tokens.shape)}: expected [batch, at least one token]")
        before = 0
        if cache is not None:
            before = 0 if cache.span is not None else cache.filled
            if not torch.compiler.is_compiling() and cache.filled == 0:  # a compiler would watch it
                self._check_fit(cache)
            if tokens.shape[0] != cache.batch:
                raise AblateError(f"{tokens.shape[0]} rows of tokens for a cache of {cache.batch} rows")
        if self.limit is not None and before + tokens.shape[1] > self.limit:
            raise AblateError(
                f"{before + tokens.shape[1]} tokens are more than the {self.limit} learned positions of this model: "
                "shorten the text, or train with a larger model.context"
            )

    def _check_fit(self, cache: Cache) -> None:
        weight = self.embedding.weight
        fits = cache.shapes == self.cache_shapes(cache.max_length)
        if not fits or (cache.dtype, cache.length.device) != (weight.dtype, weight.device):
            raise AblateError(
                "the cache is another model's, or this one has changed since in shape, dtype or device: make one with "
                "model.new_cache(batch, max_length)"
            )

    def _place(self, x: Tensor, cached: bool) -> Place:
        return Place(x.device.type, compute_dtype(x), torch.is_grad_enabled() and not cached, cached)
