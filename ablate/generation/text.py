"""From a prompt to its continuation, as text: whole or piece by piece."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ablate.errors import AblateError
from ablate.generation.decode import stream_tokens
from ablate.generation.sampling import Sampling

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
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    use_cache: bool = True,
    seed: int = 0,
) -> Iterator[str]:
    """The continuation of `prompt` in pieces of whole characters, up to the end of the document. Greedy by default.

    The prompt, which may be empty, starts a document, as in training: eot stands before it.

    Raises:
        AblateError: as `generate_tokens`, at once; or a prompt that is not text.
    """
    if not isinstance(prompt, str):
        raise AblateError(f"prompt={prompt!r}: expected text; for token ids use generate_tokens")
    ids, sampling = [tokenizer.eot, *tokenizer.encode(prompt)], Sampling(temperature, top_k, top_p)
    steps = stream_tokens(
        model, [ids], max_new_tokens, sampling=sampling, use_cache=use_cache, seed=seed, stop=tokenizer.eot
    )
    return _pieces(tokenizer, (id for step in steps if (id := step.item()) != tokenizer.eot))


def generate(
    model: "Decoder",
    tokenizer: "Tokenizer",
    prompt: str,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    use_cache: bool = True,
    seed: int = 0,
) -> str:
    """The continuation of `prompt` as text, without the prompt: the pieces of `stream`, joined.

    Raises:
        AblateError: as `stream`.
    """
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "use_cache": use_cache, "seed": seed}
    return "".join(stream(model, tokenizer, prompt, max_new_tokens, **options))


def _pieces(tokenizer: "Tokenizer", ids: Iterable[int]) -> Iterator[str]:
    """Decoded text, joined equal to `decode` of all ids, in time linear in their number.

    Bytes that are not yet a whole character decode to one U+FFFD at the end, which may still turn
    into something else: it is held back. All before it is settled. A byte that can never become
    a character looks the same for as long as it is last.
    """
    window: list[int] = []  # the last tokens
    out = 0  # characters of decode(window) that are out
    text = ""
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
