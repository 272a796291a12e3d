"""From a prompt to its continuation, as text: whole or piece by piece."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ablate import check
from ablate.errors import AblateError
from ablate.generation.decode import stream_tokens
from ablate.generation.options import gathered

if TYPE_CHECKING:
    from ablate.data.tokenizer import Tokenizer
    from ablate.model.decoder import Decoder

HELD = 8  # tokens that `_pieces` decodes again; an unfinished character spans at most 3


def generate(model: "Decoder", tokenizer: "Tokenizer", prompt: str, max_new_tokens: int = 64, **options: Any) -> str:
    """The continuation of `prompt` as text, without the prompt: the pieces of `stream`, joined. Greedy by default.

    options: those of `Sampling` and of `GenerationOptions`, by name; `stop` is the end of the document.

    Raises:
        AblateError: as `stream`.
    """
    return "".join(stream(model, tokenizer, prompt, max_new_tokens, **gathered(options)))


def stream(
    model: "Decoder", tokenizer: "Tokenizer", prompt: str, max_new_tokens: int = 64, **options: Any
) -> Iterator[str]:
    """The continuation of `prompt` in pieces of whole characters, up to the end of the document.

    The prompt starts a document, as in training: the end-of-text token is put before it, and counts as a token.

    options: those of `GenerationOptions`, by name; `stop` is the end of the document.

    Raises:
        AblateError: at once, before any step: what `stream_tokens` refuses, or a prompt that is empty, is not Unicode
            text, or has no token.
    """
    ids = _encoded(tokenizer, prompt)
    steps = stream_tokens(model, [[tokenizer.eot, *ids]], max_new_tokens, stop=tokenizer.eot, **options)
    return _pieces(tokenizer, (id for step in steps if (id := step.item()) != tokenizer.eot), before=ids)


def _encoded(tokenizer: "Tokenizer", prompt: str) -> list[int]:
    number = isinstance(prompt, int | float)  # then the hint is how to quote it
    check.text("prompt", prompt, hint="" if number else "for token ids use generate_tokens")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise AblateError(f"prompt={prompt!a}: not Unicode text (character {error.start}); correct it") from error
    ids = tokenizer.encode(prompt)
    if not ids:
        raise AblateError(f"prompt={prompt!r}: the tokenizer has no token for it; give another")
    return ids


def _pieces(tokenizer: "Tokenizer", ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """The text that `ids` add after the text of `before`, in pieces that are never taken back.

    Joined, the pieces are what the tokenizer makes of all tokens at once. Each token is decoded together with the
    few tokens before it, so the time is linear in the number of tokens. The tokens before are needed: some tokenizers
    put a space between two tokens, or drop the space before the first.

    A token may end in the middle of a character. Its bytes then decode to one U+FFFD at the end of the text, which the
    next token may turn into the character. So a U+FFFD at the end is held back until another token follows it, or
    there are no more tokens. All text before it is final. A byte that is part of no character also decodes to U+FFFD,
    and is held back in the same way.
    """
    window = list(before[-HELD:])  # the last tokens
    text = tokenizer.decode(window)
    out = len(text)  # characters of `text` that have been yielded, or belong to the prompt
    for id in ids:
        window.append(id)
        text = tokenizer.decode(window)
        final = len(text) - text.endswith("\ufffd")
        if final > out:
            yield text[out:final]
            out = final
        if len(window) >= 2 * HELD:
            # The shorter window may begin inside a character, so the beginning of its text may differ. The end is the
            # same: count from there.
            shorter, held = tokenizer.decode(window[-HELD:]), text[out:]
            if shorter.endswith(held):
                window, text, out = window[-HELD:], shorter, len(shorter) - len(held)
    if len(text) > out:
        yield text[out:]
