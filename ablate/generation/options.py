"""The options of one generation, checked before any work."""

from dataclasses import dataclass, fields
from typing import Any

from ablate import check
from ablate.errors import AblateError, did_you_mean
from ablate.generation.sampling import GREEDY, Sampling


@dataclass(frozen=True)
class GenerationOptions:
    """How many tokens to generate, how to choose each, and how to compute them.

    max_new_tokens: the most tokens that are generated for a row.
    sampling: how each token is chosen.
    use_cache: false computes the whole sequence again for every token.
    prefill_chunk: the most tokens of a prompt in one forward pass; limits the memory of its activations. null: the
        whole prompt in one pass.
    compile: runs decoding steps through torch.compile, and on a GPU the prompts' pass too. Steps get faster, after a
        compilation of tens of seconds. The cache length is rounded up to a power of two, so that other prompts reuse
        the compiled code.
    seed: the seed of the random generator that draws the tokens.
    stop: the token id that ends a row; null: none.

    Raises:
        AblateError: a value of the wrong type or out of range, or an option that has no effect.
    """

    max_new_tokens: int = 64
    sampling: Sampling = GREEDY
    use_cache: bool = True
    prefill_chunk: int | None = None
    compile: bool = False
    seed: int = 0
    stop: int | None = None

    def __post_init__(self):
        check.whole("max_new_tokens", self.max_new_tokens, 1)
        if not isinstance(self.sampling, Sampling):
            raise check.wrong("sampling", self.sampling, "a Sampling, such as Sampling(temperature=0.8)")
        check.switch("use_cache", self.use_cache)
        check.whole("prefill_chunk", self.prefill_chunk, 1, null=True, hint="null: the whole prompt in one pass")
        check.switch("compile", self.compile)
        check.seed("seed", self.seed)
        check.whole("stop", self.stop, 0, null=True, hint="a token id")
        if self.use_cache:
            return
        if self.prefill_chunk is not None:
            raise AblateError(f"prefill_chunk={self.prefill_chunk}: no effect without the cache; leave it out")
        if self.compile:
            raise AblateError(
                "compile=true: no effect without the cache, where every step has another length; leave it out"
            )


def gathered(options: dict[str, Any]) -> dict[str, Any]:
    """Keywords `options` with those of `Sampling` replaced by one, `sampling`. Greedy by default.

    Raises:
        TypeError: an unknown keyword; the message names the nearest one.
    """
    own, drawn = ({field.name for field in fields(kind)} for kind in (GenerationOptions, Sampling))
    valid = own - {"sampling"} | drawn
    for name in options:
        if name not in valid:
            raise TypeError(f"unexpected keyword argument '{name}'{did_you_mean(name, valid)}")
    sampling = Sampling(**{"temperature": 0.0, **{name: options[name] for name in drawn & options.keys()}})
    return {"sampling": sampling, **{name: value for name, value in options.items() if name not in drawn}}
