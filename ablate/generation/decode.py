"""The decoding loop: prompts in, new tokens out one at a time, with the KV cache or without it.

    prompts ── prefill, in chunks ── logits of each row's last token ── choose ─┬─ ids [B]
                                          one token per row, one pass ──────────┘

Without the cache every step computes the whole sequence again. That is slow, but it checks the cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ablate import check
from ablate.generation.options import GenerationOptions, gathered
from ablate.generation.prompts import Batch, check_length, check_prompts
from ablate.generation.sampling import choose, seeded
from ablate.generation.step import Step, compiled, prefill, steps

if TYPE_CHECKING:
    from ablate.model.decoder import Decoder


LOOK_EVERY = 16  # on a GPU, the steps between two checks whether all rows have stopped


def generate_tokens(
    model: "Decoder", prompts: Sequence[Sequence[int]] | Tensor, max_new_tokens: int = 64, **options: Any
) -> list[list[int]]:
    """The new token ids of each row, without its prompt, up to but not including `stop`. Greedy by default.

    prompts: rows of token ids, which may differ in length, or a tensor `[B, T]`.
    options: those of `Sampling` and of `GenerationOptions`, by name.

    Raises:
        AblateError: prompts, lengths or options that the model cannot take.
    """
    stop, stream = options.get("stop"), stream_tokens(model, prompts, max_new_tokens, **gathered(options))
    rows = torch.stack(list(stream), dim=1).tolist()
    return [row[: row.index(stop)] if stop in row else row for row in rows]


def stream_tokens(
    model: "Decoder", prompts: Sequence[Sequence[int]] | Tensor, max_new_tokens: int = 64, **options: Any
) -> Iterator[Tensor]:
    """New token ids as they are chosen: one tensor `[B]` per step, on the model's device, at most `max_new_tokens`.

    prompts: rows of token ids, which may differ in length, or a tensor `[B, T]`.
    options: those of `GenerationOptions`, by name. A row that has produced `stop` repeats it, and the stream ends
        when every row has. On a CPU each step checks this; on a GPU every 16th does, because the host must wait for
        the GPU to know.

    The model is in eval mode until the stream ends or is closed; then each module has its own mode again.

    Raises:
        AblateError: at once, before any step: prompts, lengths or options that the model cannot take.
    """
    checked = GenerationOptions(max_new_tokens, **options)
    vocab_size = model.config.vocab_size
    check.whole("stop", checked.stop, 0, vocab_size - 1, null=True, hint=f"one of the vocabulary's {vocab_size} ids")
    rows = check_prompts(model, prompts)
    check_length(model, rows, max_new_tokens, checked.use_cache)
    return _steps(model, rows, checked)


@torch.inference_mode()
def _steps(model: "Decoder", rows: list[list[int]], options: GenerationOptions) -> Iterator[Tensor]:
    """The loop. Nothing in it makes the host wait for a GPU, except the check whether all rows have stopped."""
    device, sampling, stop = model.embedding.weight.device, options.sampling, options.stop
    generator = seeded(device, options.seed)
    stopped = torch.zeros(len(rows), dtype=torch.bool, device=device)
    model.lay_weights()
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        if options.use_cache:
            tokens = max(map(len, rows)) + options.max_new_tokens - 1  # the last new token is never fed back
            step = stack.enter_context(steps(model, len(rows), tokens, options.compile))
            source = _Cached(model, rows, step, options.prefill_chunk, options.compile)
        else:
            source = _Uncached(model, rows, options.max_new_tokens)
        seen = None if sampling.repetition_penalty == 1 else source.batch.seen(model.config.vocab_size)
        logits = source.prefill()
        for left in reversed(range(options.max_new_tokens)):
            ids = choose(logits, sampling, generator, seen)
            if stop is not None:
                ids = ids.masked_fill(stopped, stop)
                stopped = ids == stop
            yield ids
            look = stop is not None and (device.type == "cpu" or left % LOOK_EVERY == 0)
            if left == 0 or (look and stopped.all()):  # `all` waits for the device
                return
            if seen is not None:
                seen.scatter_(1, ids.unsqueeze(1), True)
            logits = source.step(ids)


class _Cached:
    """Logits `[B, V]` of each row's next token. A pass computes only the tokens that are new."""

    def __init__(
        self, model: "Decoder", rows: list[list[int]], step: Step, chunk: int | None = None, compile: bool = False
    ):
        self.model, self.step = model, step
        self.batch = Batch.of(rows, model.embedding.weight.device)
        self.chunk = chunk or self.batch.longest
        self._hidden = compiled(prefill, dynamic=True) if compile and self.batch.tokens.is_cuda else prefill

    def prefill(self) -> Tensor:
        last, starts = self.batch.lengths - 1, range(0, self.batch.longest, self.chunk)
        state = self._pass(0, last)
        for start in starts[1:]:
            ended = (last < start).unsqueeze(1)
            state = state.where(ended, self._pass(start, last - start))
        return self.model.logits(state)

    def _pass(self, start: int, place: Tensor) -> Tensor:
        """Computes the chunk at `start`; returns its hidden states `[B, D]` at `place`, clamped to the chunk."""
        tokens, documents = self.batch.tokens[:, start : start + self.chunk], self.batch.documents
        if documents is not None:
            documents = documents[:, start : start + self.chunk]
        hidden = self._hidden(self.model, tokens, documents, self.step.cache)
        return _at(hidden, place.clamp(0, self.chunk - 1))


class _Uncached:
    """The same logits. Every pass computes the whole sequence."""

    def __init__(self, model: "Decoder", rows: list[list[int]], max_new_tokens: int):
        self.model = model
        self.batch = Batch.of(rows, model.embedding.weight.device, spare=max_new_tokens - 1)
        self.lengths, self.longest = self.batch.lengths, self.batch.longest

    def prefill(self) -> Tensor:
        tokens, documents = self.batch.tokens[:, : self.longest], self.batch.documents
        if documents is not None:
            documents = documents[:, : self.longest]
        # At most two documents: a prompt and its padding. Without max_documents the varlen kernel waits for the GPU.
        hidden = self.model.hidden(tokens, documents=documents, max_documents=2)
        return self.model.logits(_at(hidden, self.lengths - 1))

    def step(self, ids: Tensor) -> Tensor:
        place = self.lengths.unsqueeze(1)
        self.batch.tokens.scatter_(1, place, ids.unsqueeze(1))
        if self.batch.documents is not None:
            self.batch.documents.scatter_(1, place, 0)
        self.lengths, self.longest = self.lengths + 1, self.longest + 1
        return self.prefill()


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    """Hidden states `[B, T, D]` at one place in each row, `[B]` -> `[B, D]`."""
    return hidden.gather(1, place.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])).squeeze(1)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside the block. Afterwards each module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
