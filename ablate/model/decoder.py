"""The decoder: embedding, blocks, final norm, head. One forward path for training and generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ablate import check
from ablate.errors import AblateError
from ablate.model.cache import Cache, LayerShape, Pass
from ablate.model.config import AXES, DecoderConfig
from ablate.model.context import ForwardContext, Record
from ablate.model.given import Given
from ablate.model.init import initialise
from ablate.model.kernels.kernel import KERNELS, Place, Scores, choose_kernel, require_kernel
from ablate.model.kernels.linear import compute_dtype
from ablate.model.linear import JointInputs, Linear
from ablate.model.masks import Layout, Pattern, document_runs
from ablate.model.memory import is_small, require_memory
from ablate.model.roles import Role


@dataclass(frozen=True)
class Layer:
    """What attention in one layer reads, apart from its weights."""

    position: int  # index in `Decoder.positions`
    mask: int  # layers with the same number share a mask
    scores: Scores

    @property
    def pattern(self) -> Pattern:
        return self.scores.pattern


class Decoder(nn.Module):
    """A decoder language model from a `DecoderConfig`.

    tokens ─ embedding ─ block 0 ─ ... ─ block L-1 ─ norm ─ head ─ logits
    """

    def __init__(self, config: DecoderConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self._kernels: dict[Place, list[str]] = {}
        check_memory(config)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._assemble(config)
        initialise(self, config.dim, config.depth, seed)

    def _assemble(self, config: DecoderConfig) -> None:
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList()
        self.positions = nn.ModuleList()
        self.layers: list[Layer] = []
        indices: dict[str, int] = {}
        masks: dict[str, int] = {}
        for number, spec in enumerate(config.layers()):
            given = Given(
                dim=config.dim,
                heads=config.heads,
                bias=config.bias,
                context=config.context,
                depth=config.depth,
                layer=number,
            )
            attention = AXES["attention"].make(spec["attention"], given)
            ffn = AXES["ffn"].make(spec["ffn"], given)
            norm = partial(AXES["norm"].make, spec["norm"], given)
            self.blocks.append(AXES["placement"].make(spec["placement"], given, attention, ffn, norm))
            index = self._position(spec["position"], replace(given, head_dim=attention.head_dim), indices)
            position = self.positions[index]
            scores = self._scores(AXES["pattern"].make(spec["pattern"]), position, attention)
            mask = masks.setdefault(f"{scores.pattern} {index if position.biased else ''}", len(masks))
            self.layers.append(Layer(index, mask, scores))
        self.final_norm = norm() if self.blocks[-1].final_norm else nn.Identity()  # of the last layer's kind
        self.head = Linear(config.dim, config.vocab_size, False, role=Role.HEAD)
        self.tie()
        self.limit = min((p.limit for p in self.positions if p.limit is not None), default=None)

    def tie(self) -> None:
        """Makes the head the embedding, if the configuration ties them. Call it after replacing either parameter."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def _position(self, spec: dict, given: Given, indices: dict[str, int]) -> int:
        """The index in `positions` of a layer's component; equal layers share one."""
        absolute = AXES["position"].component(spec["name"]).absolute
        kind = f"{spec} {None if absolute else given.head_dim}"
        if kind not in indices:
            indices[kind] = len(self.positions)
            self.positions.append(AXES["position"].make(spec, given))
        return indices[kind]

    def _scores(self, pattern: Pattern, position: nn.Module, attention: nn.Module) -> Scores:
        bias = position.bias if position.biased else None
        softcap = getattr(attention, "softcap", None)
        scores = Scores(pattern, self.config.heads, attention.kv_heads, attention.head_dim, softcap, bias)
        if self.config.kernel != "auto":
            require_kernel(self.config.kernel, scores)
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
        documents: `[B, T]`, the document of each token: attention does not cross documents. None: each row is one
            document.
        cache: holds the earlier tokens; these are added to it. `documents` may then only mark padding, by -1.
        """
        return self.logits(self.hidden(tokens, positions, documents, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` -> logits `[..., V]`."""
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
        """As `forward`, but returns the hidden states before the head: `[B, T, D]`.

        record: collects auxiliary losses and statistics; without one they are not computed.
        max_documents: an upper bound on the documents in a row; without it the varlen kernel waits for the GPU to count
            them.
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
        """One for each layer. Layers with the same rotation or mask share it."""
        rotates = [partial(p.rotate, rotation=p.rotation(positions)) for p in self.positions]
        masks, contexts = {}, []
        kernels = self.kernels(place)
        for number, (layer, layout, name) in enumerate(zip(self.layers, layouts, kernels, strict=True)):
            kernel, key = KERNELS[name], (name, layer.mask)
            if key not in masks:
                masks[key] = kernel.make_mask(layer.scores, layout, place.dtype)
            rotate = rotates[layer.position]
            contexts.append(ForwardContext(number, layer.scores, rotate, kernel, masks[key], cached, real, record))
        return contexts

    def kernels(self, place: Place) -> list[str]:
        """The kernel that computes each layer at a place.

        Raises:
            AblateError: the configured kernel cannot compute a layer there; the message gives the reason.
        """
        if torch.compiler.is_compiling():
            return [choose_kernel(self.config.kernel, layer.scores, place) for layer in self.layers]
        if place not in self._kernels:  # kept, because every step of generation needs it
            self._kernels[place] = [choose_kernel(self.config.kernel, layer.scores, place) for layer in self.layers]
        return self._kernels[place]

    def after_step(self) -> None:
        """Call this after each optimiser step: some components adapt by their own rule, not by a gradient."""
        for block in self.blocks:
            block.ffn.after_step()

    def lay_weights(self) -> None:
        """Stores weights with the same input contiguously. Call once before generating; training does not need it."""
        for module in self.modules():
            if isinstance(module, JointInputs):
                module.lay()

    def new_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` rows of up to `max_length` tokens, in the model's dtype, on its device.

        Padding counts towards `max_length`.
        """
        check.whole("new_cache: batch", batch, 1)
        check.whole("new_cache: max_length", max_length, 1)
        weight = self.embedding.weight
        biased = any(layer.scores.bias is not None for layer in self.layers)
        return Cache(self.cache_shapes(max_length), batch, max_length, weight.dtype, weight.device, biased)

    def cache_shapes(self, max_length: int) -> list[LayerShape]:
        """What each layer keeps of `max_length` tokens: those that later queries can see under its pattern."""
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
            if not torch.compiler.is_compiling() and cache.filled == 0:  # torch.compile would guard on all of it
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
                "the cache is another model's, or the model's shape, dtype or device has changed since: make one with "
                "model.new_cache(batch, max_length)"
            )

    def _place(self, x: Tensor, cached: bool) -> Place:
        gradient = torch.is_grad_enabled() and not cached
        return Place(x.device.type, compute_dtype(x), gradient, cached, x.shape[1], torch.compiler.is_compiling())


def check_memory(config: DecoderConfig, training: bool = False) -> None:
    """Raises AblateError if a decoder does not fit into this machine's memory on its CPU.

    training: with gradients and AdamW's moments.
    """
    if torch.get_default_device().type == "cpu" and not is_small(config):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Decoder(config).parameters())
        require_memory(config, parameters, training)


@contextmanager
def without_weights() -> Iterator[None]:
    """Decoders that are built inside have parameters on the meta device, but real buffers. For loading."""

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # registers it unchanged
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(on_meta)
    try:
        yield
    finally:
        handle.remove()
