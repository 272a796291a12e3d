"""From a prompt to its continuation, as text: whole or piece by piece."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ablate.errors import AblateError
from ablate.generation.decode import stream_tokens
from ablate.generation.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from ablate.data.tokenizer import Tokenizer
    from ablate.model.decoder import Decoder

HELD = 8  # tokens that `_pieces` keeps to decode again; an unfinished character spans at most 3


def stream(
    model: "Decoder",
    tokenizer: "Tokenizer",
    prompt: str,
    max_new_tokens: int = 64,
    *,
    sampling: Sampling = GREEDY,
    use_cache: bool = True,
    prefill_chunk: int | None = None,
    compile: bool = False,
    seed: int = 0,
) -> Iterator[str]:
    """The continuation of `prompt` in pieces of whole characters, up to the end of the document.

    The prompt starts a document, as in training: eot stands before it, and counts as a token.
    The options are those of `stream_tokens`.

    Raises:
        AblateError: as `generate_tokens`, at once; or a prompt that is empty, or no text to the tokenizer.
    """
    ids = _encoded(tokenizer, prompt)
    steps = stream_tokens(
        model,
        [[tokenizer.eot, *ids]],
        max_new_tokens,
        sampling=sampling,
        use_cache=use_cache,
        prefill_chunk=prefill_chunk,
        compile=compile,
        seed=seed,
        stop=tokenizer.eot,
    )
    return _pieces(tokenizer, (id for step in steps if (id := step.item()) != tokenizer.eot), before=ids)


def generate(
    model: "Decoder",
    tokenizer: "Tokenizer",
    prompt: str,
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
) -> str:
    """The continuation of `prompt` as text, without the prompt: the pieces of `stream`, joined. Greedy by default.

    Raises:
        AblateError: as `stream`, or a sampling option that cannot be.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    pieces = stream(
        model,
        tokenizer,
        prompt,
        max_new_tokens,
        sampling=sampling,
        use_cache=use_cache,
        prefill_chunk=prefill_chunk,
        compile=compile,
        seed=seed,
    )
    return "".join(pieces)


def _encoded(tokenizer: "Tokenizer", prompt: str) -> list[int]:
    if not isinstance(prompt, str):
        raise AblateError(f"prompt={prompt!r}: expected text; for token ids use generate_tokens")
    if not prompt:
        raise AblateError("prompt: it is empty; give some text to go on from")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise AblateError(f"prompt={prompt!a}: not Unicode text (character {error.start}); mend it") from error
    ids = tokenizer.encode(prompt)
    if not ids:
        raise AblateError(f"prompt={prompt!r}: the tokenizer has no token for it; give another")
    return ids


def _pieces(tokenizer: "Tokenizer", ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """What `ids` add to the text of `before`, joined as `decode` has it, in time linear in their number.

    Tokenizers that put a space between tokens, or drop the first, need to know what stands before.

    Bytes that are not yet a whole character decode to one U+FFFD at the end, which may still turn
    into something else: it is held back. All before it is settled. A byte that can never become
    a character looks the same for as long as it is last.
    """
    window = list(before[-HELD:])  # the last tokens
    text = tokenizer.decode(window)
    out = len(text)  # characters of it that are out
    for id in ids:
        window.append(id)
        text = tokenizer.decode(window)
        settled = len(text) - text.endswith("\ufffd")
        if settled > out:
            yield text[out:settled]
            out = settled
        if len(window) >= 2 * HELD:
            # The shorter window may start inside a character, so count from its end: what is held is the same.
            shorter, held = tokenizer.decode(window[-HELD:]), text[out:]
            if shorter.endswith(held):
                window, text, out = window[-HELD:], shorter, len(shorter) - len(held)
    if len(text) > out:
        yield text[out:]
