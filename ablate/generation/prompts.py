"""Prompts of token ids: checked on the host before any work, then padded on the right into one batch."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablate.errors import AblateError, warn
from ablate.model.memory import machine_memory
from ablate.words import memory

if TYPE_CHECKING:
    from ablate.model.decoder import Decoder


def check_prompts(model: "Decoder", prompts: Sequence[Sequence[int]] | Tensor) -> list[list[int]]:
    """Rows of token ids as lists, from lists or from an integer tensor `[B, T]`.

    Raises:
        AblateError: no prompt, an empty one, a value of another form, or an id outside the vocabulary.
    """
    rows = _listed(prompts)
    if not isinstance(rows, list):
        raise AblateError(
            f"prompts is {_brief(prompts)}: expected a list of lists of token ids, such as [[1, 2, 3], [4]]"
        )
    if not rows:
        raise AblateError("prompts: there are none; expected a list of lists of token ids, such as [[1, 2, 3], [4]]")
    return [_checked_row(number, _listed(row), model.config.vocab_size) for number, row in enumerate(rows)]


def _listed(value):
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else value


def _checked_row(number: int, row: object, vocab_size: int) -> list[int]:
    if not isinstance(row, list):
        raise AblateError(
            f"prompts[{number}] is {_brief(row)}: expected a list of token ids; a single prompt is [[1, 2, 3]], "
            "a tensor has shape [batch, tokens]"
        )
    if not row:
        raise AblateError(f"prompts[{number}] is empty: at least one token id, such as the tokenizer's eot")
    for id in row:
        if isinstance(id, list | bool | Tensor) or not hasattr(id, "__index__"):
            raise AblateError(f"prompts[{number}] holds {_brief(id)}: expected integer token ids in lists of lists")
        if not 0 <= id < vocab_size:
            raise AblateError(f"prompts[{number}] holds token id {id}: outside the vocabulary of {vocab_size} tokens")
    return [operator.index(id) for id in row]


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def check_length(model: "Decoder", rows: list[list[int]], max_new_tokens: int, use_cache: bool) -> None:
    """Checks that the model can take the prompts and `max_new_tokens` more; warns beyond its training context.

    Raises:
        AblateError: a prompt longer than the context, more tokens than the model has learned positions, or more than
            the device has memory for.
    """
    longest, context = max(map(len, rows)), model.config.context
    total = longest + max_new_tokens
    if longest > context:
        raise AblateError(
            f"prompt: its {longest} tokens are more than this model's context of {context}; shorten it, or train with "
            "a larger model.context"
        )
    if model.limit is not None and total > model.limit:
        raise AblateError(
            f"max_new_tokens={max_new_tokens}: with a prompt of {longest} tokens that makes {total}, more than the "
            f"{model.limit} learned positions of this model; lower it, shorten the prompt, or train with a larger "
            "model.context"
        )
    check_generation_memory(model, len(rows), total, use_cache)
    if total > context:
        # The text does not name the prompt: Python then shows the warning once, not once per prompt.
        warn(f"max_new_tokens={max_new_tokens} leads beyond the {context} tokens of this model's training context")


def check_generation_memory(model: "Decoder", rows: int, tokens: int, use_cache: bool) -> None:
    """Raises AblateError if the token ids, or the cache, of `rows` rows of `tokens` tokens exceed the device's memory.

    Without this check the operating system kills the process silently.
    """
    weight = model.embedding.weight
    cuda = weight.device.type == "cuda"
    available = torch.cuda.get_device_properties(weight.device).total_memory if cuda else machine_memory()
    needed = 8 * rows * tokens  # bytes of the ids
    if use_cache and needed <= available:
        needed = rows * model.cache_bytes(tokens)
    if needed > available:
        raise AblateError(
            f"max_new_tokens: {rows} x {tokens:,} tokens take {memory(needed)}, but the device has "
            f"{memory(available)}: lower it"
        )


@dataclass(frozen=True)
class Batch:
    """Prompts on a device, padded on the right to one length.

    tokens: `[B, longest + spare]`, 0 on padding.
    lengths: `[B]`, the number of real tokens of each row.
    longest: the largest of them, known to the host.
    documents: `[B, longest + spare]`, 0 on real tokens and -1 on padding; None if all prompts have the same length.
    """

    tokens: Tensor
    lengths: Tensor
    longest: int
    documents: Tensor | None

    @classmethod
    def of(cls, prompts: list[list[int]], device: torch.device, spare: int = 0) -> "Batch":
        """spare: columns of padding after the longest prompt, for new tokens."""
        longest = max(map(len, prompts))
        width = longest + spare
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in prompts], device=device)
        lengths = torch.tensor([len(row) for row in prompts], device=device)
        documents = None
        if min(map(len, prompts)) < longest:
            real = torch.arange(width, device=device) < lengths.unsqueeze(1)
            documents = real.long() - 1
        return cls(tokens, lengths, longest, documents)

    def seen(self, vocab_size: int) -> Tensor:
        """`[B, V]` bool, True for the tokens that a row holds; padding does not count."""
        padding = torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.lengths.unsqueeze(1)
        seen = self.tokens.new_zeros(len(self.tokens), vocab_size + 1, dtype=torch.bool)
        return seen.scatter_(1, self.tokens.masked_fill(padding, vocab_size), True)[:, :vocab_size]
