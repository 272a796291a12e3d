"""The decoder: embedding, blocks, final norm, head. One forward path for training and generation."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ablate.errors import AblateError
from ablate.model.cache import Cache, LayerShape
from ablate.model.config import AXES, DecoderConfig
from ablate.model.init import initialise
from ablate.model.kernel import KERNELS, choose_kernel
from ablate.model.pattern import Layout, Pattern, document_runs
from ablate.model.position import Position


@dataclass(frozen=True)
class Layer:
    """What attention in one layer is made of, apart from its weights."""

    position: int  # which of `Decoder.positions`
    pattern: Pattern
    kernel: str


@dataclass
class ForwardContext:
    """One layer's view of one forward pass: how to attend, and where to leave auxiliary losses."""

    layer: int
    position: Position
    rotation: Any
    kernel: Any
    mask: Any
    cache: Cache | None
    losses: dict[str, Tensor] = field(default_factory=dict)  # shared by all layers

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries `[B, T, H, d]`, keys and values `[B, T, G, d]` of this pass -> `[B, T, H, d]`."""
        query = self.position.rotate(query, self.rotation)
        key = self.position.rotate(key, self.rotation)
        if self.cache is not None:
            key, value = self.cache.extend(self.layer, key, value)
        return self.kernel(query, key, value, self.mask)


class Decoder(nn.Module):
    """A decoder language model from a `DecoderConfig`.

    tokens ─ embedding ─ block 0 ─ ... ─ block L-1 ─ norm ─ head ─ logits
    """

    def __init__(self, config: DecoderConfig, seed: int = 0):
        super().__init__()
        self.config = config
        specs = config.layers()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._assemble(config, specs)
        initialise(self, config.dim, config.depth, seed)

    def _assemble(self, config: DecoderConfig, specs: list[dict[str, dict]]) -> None:
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList()
        self.positions = nn.ModuleList()
        self.layers: list[Layer] = []
        kernel = choose_kernel(config.kernel)
        known: dict[str, int] = {}
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
                    AXES["position"].build(spec["position"], config.dim, attention.head_dim, config.context)
                )
            self.layers.append(Layer(known[kind], AXES["pattern"].build(spec["pattern"]), kernel))
        self.final_norm = norm() if self.blocks[-1].final_norm else nn.Identity()
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.limit = min((p.limit for p in self.positions if p.limit is not None), default=None)

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
        return self.head(self.hidden(tokens, positions, documents, cache))

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As `forward`, but the residual stream before the head: `[B, T, D]`."""
        self._check(tokens, cache)
        if cache is None:
            index, layouts = self._rows(tokens, documents)
        else:
            cache.begin(tokens.shape[1], documents)
            index = cache.index
            layouts = [cache.layout(shape.size) for shape in cache.shapes]
        if positions is None:
            positions = index
        x = self.embedding(tokens)
        for position in self.positions:
            x = position.embed(x, positions)
        rotations = [position.rotation(positions) for position in self.positions]
        masks, losses = {}, {}
        for number, (block, layer) in enumerate(zip(self.blocks, self.layers, strict=True)):
            kernel = KERNELS[layer.kernel]()
            key = f"{layer.kernel} {layer.pattern}"
            if key not in masks:
                masks[key] = kernel.prepare(layer.pattern, layouts[number], self._compute_dtype(x))
            context = ForwardContext(
                number,
                self.positions[layer.position],
                rotations[layer.position],
                kernel,
                masks[key],
                cache,
                losses,
            )
            x = block(x, context)
        if cache is not None:
            cache.advance()
        return self.final_norm(x)

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of up to `max_length` tokens, in the model's dtype, on its device."""
        if batch < 1 or max_length < 1:
            raise AblateError(f"new_cache(batch={batch}, max_length={max_length}): both at least 1")
        weight = self.embedding.weight
        return Cache(self.cache_shapes(max_length), batch, max_length, weight.dtype, weight.device)

    def cache_shapes(self, max_length: int) -> list[LayerShape]:
        """What each layer keeps of `max_length` tokens: as many as its pattern can reach."""
        return [
            LayerShape(block.attention.kv_heads, block.attention.head_dim, layer.pattern.reach(max_length))
            for block, layer in zip(self.blocks, self.layers, strict=True)
        ]

    def _rows(self, tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, list[Layout]]:
        if documents is None:
            index = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
            layout = Layout(index, index, square=True)
        else:
            run, index = document_runs(documents)
            layout = Layout(index, index, run, run)
        return index, [layout] * len(self.layers)

    def _check(self, tokens: Tensor, cache: Cache | None) -> None:
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise AblateError(f"tokens have shape {list(tokens.shape)}: expected [batch, at least one token]")
        before = 0
        if cache is not None:
            before = cache.filled
            if tokens.shape[0] != cache.batch:
                raise AblateError(f"{tokens.shape[0]} rows of tokens for a cache of {cache.batch} rows")
        if self.limit is not None and before + tokens.shape[1] > self.limit:
            raise AblateError(
                f"{before + tokens.shape[1]} tokens are more than the {self.limit} learned positions of this model: "
                "shorten the text, or train with a larger model.context"
            )

    def _compute_dtype(self, x: Tensor) -> torch.dtype:
        device = x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if autocast else x.dtype
