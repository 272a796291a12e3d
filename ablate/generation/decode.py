"""The decoding loop: prompts in, new tokens out one at a time, with the KV cache or without it.

    prompts ── prefill, in chunks ── logits of each row's last token ── choose ─┬─ ids [B]
                                          one token a row, one pass ────────────┘

Without the cache every step runs the whole sequence again: slow, and the judge of the cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablate.errors import AblateError
from ablate.generation.prompts import Batch, check_length, check_prompts
from ablate.generation.sampling import GREEDY, Sampling, choose
from ablate.generation.step import Step, compiled, prefill, steps

if TYPE_CHECKING:
    from ablate.model.decoder import Decoder


LOOK_EVERY = 16  # steps on a GPU between two looks at whether all rows have stopped


def stream_tokens(
    model: "Decoder",
    prompts: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    use_cache: bool = True,
    prefill_chunk: int | None = None,
    compile: bool = False,
    seed: int = 0,
    stop: int | None = None,
) -> Iterator[Tensor]:
    """New token ids as they come: one tensor `[B]` a step, on the model's device, at most `max_new_tokens` of them.

    prompts: rows of ids, of any lengths up to the model's context.
    use_cache: False runs the whole sequence again for every token.
    prefill_chunk: the prompts' pass is cut into passes of so many tokens a row, which bounds the memory of its
        activations; None: one pass.
    compile: decoding steps by torch.compile, on a GPU the prompts' pass too: quicker, after a first time that takes
        tens of seconds. The cache is as long as a power of two, so that other prompts find the steps compiled.
    stop: a row that has produced this id repeats it; the stream ends when every row has. Whether it has is looked up
        at every step on a CPU, and at every 16th on a GPU, for which the loop never waits otherwise.

    The model is in eval mode until the stream ends or is closed, then as it was before.

    Raises:
        AblateError: at once, before any step: prompts, lengths or options that the model cannot take.
    """
    _check_options(model, use_cache, prefill_chunk, compile, seed, stop)
    rows = check_prompts(model, prompts)
    check_length(model, rows, max_new_tokens, use_cache)
    return _steps(model, rows, max_new_tokens, sampling, use_cache, prefill_chunk, compile, seed, stop)


def _check_options(model, use_cache, prefill_chunk, compile, seed, stop) -> None:
    if not isinstance(use_cache, bool):
        raise AblateError(f"use_cache={use_cache!r}: expected true or false")
    if prefill_chunk is not None:
        if not isinstance(prefill_chunk, int) or isinstance(prefill_chunk, bool) or prefill_chunk < 1:
            raise AblateError(f"prefill_chunk={prefill_chunk!r}: an integer, at least 1 (null: one pass)")
        if not use_cache:
            raise AblateError(f"prefill_chunk={prefill_chunk}: no effect without the cache; leave it out")
    if not isinstance(compile, bool):
        raise AblateError(f"compile={compile!r}: expected true or false")
    if compile and not use_cache:
        raise AblateError(
            "compile=true: no effect without the cache, where every step has another length; leave it out"
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise AblateError(f"seed={seed!r}: an integer, at least 0 and less than 2^63")
    if stop is not None and (not isinstance(stop, int) or isinstance(stop, bool)):
        raise AblateError(f"stop={stop!r}: a token id, or None")
    if stop is not None and not 0 <= stop < model.config.vocab_size:
        raise AblateError(f"stop={stop}: outside the vocabulary of {model.config.vocab_size} tokens")


@torch.inference_mode()
def _steps(model, rows, max_new_tokens, sampling, use_cache, prefill_chunk, compile, seed, stop) -> Iterator[Tensor]:
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    stopped = torch.zeros(len(rows), dtype=torch.bool, device=device)
    model.lay_weights()
    with ExitStack() as ends:
        ends.enter_context(_evaluating(model))
        if use_cache:
            # The last new token is never fed back.
            tokens = max(map(len, rows)) + max_new_tokens - 1
            step = ends.enter_context(steps(model, len(rows), tokens, compile))
            source = _Cached(model, rows, step, prefill_chunk, compile)
        else:
            source = _Uncached(model, rows, max_new_tokens)
        seen = None if sampling.repetition_penalty == 1 else source.batch.seen(model.config.vocab_size)
        logits = source.prefill()
        for left in reversed(range(max_new_tokens)):
            ids = choose(logits, sampling, generator, seen)
            if stop is not None:
                ids = ids.masked_fill(stopped, stop)
                stopped = ids == stop
            yield ids
            look = stop is not None and (device.type == "cpu" or left % LOOK_EVERY == 0)
            if left == 0 or (look and stopped.all()):
                return
            if seen is not None:
                seen.scatter_(1, ids.unsqueeze(1), True)
            logits = source.step(ids)


class _Cached:
    """Logits `[B, V]` of the next token; each pass runs only the tokens that are new."""

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
        """One chunk; its hidden states `[B, D]` at `place`, or at its end nearest to that."""
        tokens, documents = self.batch.tokens[:, start : start + self.chunk], self.batch.documents
        if documents is not None:
            documents = documents[:, start : start + self.chunk]
        hidden = self._hidden(self.model, tokens, documents, self.step.cache)
        return _at(hidden, place.clamp(0, self.chunk - 1))


class _Uncached:
    """The same logits from the whole sequence at every step."""

    def __init__(self, model: "Decoder", rows: list[list[int]], max_new_tokens: int):
        self.model = model
        self.batch = Batch.of(rows, model.embedding.weight.device, spare=max_new_tokens - 1)
        self.lengths, self.longest = self.batch.lengths, self.batch.longest

    def prefill(self) -> Tensor:
        tokens, documents = self.batch.tokens[:, : self.longest], self.batch.documents
        if documents is not None:
            documents = documents[:, : self.longest]
        return self.model.logits(_at(self.model.hidden(tokens, documents=documents), self.lengths - 1))

    def step(self, ids: Tensor) -> Tensor:
        place = self.lengths.unsqueeze(1)
        self.batch.tokens.scatter_(1, place, ids.unsqueeze(1))
        if self.batch.documents is not None:
            self.batch.documents.scatter_(1, place, 0)
        self.lengths, self.longest = self.lengths + 1, self.longest + 1
        return self.prefill()


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    """`[B, T, D]` at one place a row `[B]` -> `[B, D]`."""
    return hidden.gather(1, place.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])).squeeze(1)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is as it was, a part that was kept in eval mode too."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def generate_tokens(
    model: "Decoder",
    prompts: Sequence[Sequence[int]] | Tensor,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    use_cache: bool = True,
    prefill_chunk: int | None = None,
    compile: bool = False,
    seed: int = 0,
    stop: int | None = None,
) -> list[list[int]]:
    """The new ids of each row, without its prompt and up to, not including, `stop`. Greedy by default.

    The options are those of `Sampling` and of `stream_tokens`.

    Raises:
        AblateError: prompts, lengths or an option that cannot be.
    """
    stream = stream_tokens(
        model,
        prompts,
        max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
        use_cache=use_cache,
        prefill_chunk=prefill_chunk,
        compile=compile,
        seed=seed,
        stop=stop,
    )
    rows = torch.stack(list(stream), dim=1).tolist()
    return [row[: row.index(stop)] if stop in row else row for row in rows]
