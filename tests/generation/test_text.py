"""Text in, text out: pieces of whole characters, which together are the text of all tokens decoded at once."""

import random

import pytest
import tokenizers

import ablate
from ablate.data.tokenizer import EOT, Tokenizer
from ablate.errors import AblateError
from ablate.generation import Sampling, generate, generate_tokens, stream
from ablate.generation.text import _pieces
from ablate.model.config import AXES

from .models import tiny

TEXT = "naïve café 👩‍👩‍👧 日本語の文章 🇨🇭 plain text, ﬁn. Ελληνικά \u200d हिन्दी 👍🏽\n"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT * 3, "the quick brown fox " * 20], 300)


class Bytes:
    """A tokenizer whose tokens are the strings of bytes that a test gives; counts the tokens that it decodes."""

    def __init__(self, table: list[bytes]):
        self.table, self.decoded = table, 0

    def decode(self, ids):
        self.decoded += len(ids)
        return b"".join(self.table[i] for i in ids).decode("utf-8", errors="replace")


def cut(data: bytes, rng: random.Random, longest: int) -> list[bytes]:
    parts = []
    while data:
        n = rng.randint(1, longest)
        parts, data = [*parts, data[:n]], data[n:]
    return parts


def check_pieces(table: list[bytes]) -> list[str]:
    tokenizer = Bytes(table)
    pieces = list(_pieces(tokenizer, range(len(table))))
    assert tokenizer.decoded <= 20 * len(table)  # linear
    assert "".join(pieces) == b"".join(table).decode("utf-8", errors="replace")
    assert all(pieces)
    return pieces


@pytest.mark.parametrize("longest", [1, 2, 3, 5, 9])
def test_pieces_of_valid_text(longest):
    pieces = check_pieces(cut((TEXT * 3).encode(), random.Random(longest), longest))
    assert "\ufffd" not in "".join(pieces)


def test_no_token_ends_where_a_character_does():
    data = "🙂" * 100
    parts = data.encode()
    check_pieces([parts[:2], *(parts[i : i + 4] for i in range(2, len(parts), 4))])


def test_pieces_come_as_soon_as_they_are_whole():
    assert check_pieces([b"a", b"\xf0\x9f", b"\x98", b"\x80b", b"c"]) == ["a", "😀b", "c"]
    assert check_pieces([b"a", b"\xf0", b"\x9f"]) == ["a", "\ufffd"]  # flushed
    assert check_pieces([b"\xe2\x82", b"x", b"y"]) == ["\ufffdx", "y"]


@pytest.mark.parametrize("seed", range(30))
def test_pieces_of_random_bytes(seed):
    rng = random.Random(seed)
    leads = b"\xf0\xe2\xc3\x9f\x80\xbfa\xff\xed\xa0\xf4\x90"
    data = bytes(rng.choice(leads) if rng.random() < 0.8 else rng.randrange(256) for _ in range(400))
    check_pieces(cut(data, rng, rng.choice([1, 2, 4])))


def test_pieces_of_the_real_tokenizer(tokenizer):
    ids = tokenizer.encode(TEXT * 3)
    pieces = list(_pieces(tokenizer, ids))
    assert "".join(pieces) == TEXT * 3
    assert "\ufffd" not in "".join(pieces) and len(pieces) > 20
    rng = random.Random(0)
    junk = [rng.randrange(len(tokenizer)) for _ in range(500)]
    junk = [i for i in junk if i != tokenizer.eot]
    assert "".join(_pieces(tokenizer, junk)) == tokenizer.decode(junk)


@pytest.mark.parametrize("prompt", [" ", "the quick", "日本", "🙂"])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 50, "min_p": 0.01}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_is_stream_is_generate_tokens(tokenizer, prompt, options, use_cache):
    model, options = tiny(vocab_size=len(tokenizer), context=80), {**options, "repetition_penalty": 1.1}
    ids = [tokenizer.eot, *tokenizer.encode(prompt)]
    (new,) = generate_tokens(model, [ids], 40, stop=tokenizer.eot, seed=3, **options)
    text = generate(model, tokenizer, prompt, 40, use_cache=use_cache, seed=3, **options)
    assert text == tokenizer.decode(new)
    pieces = stream(model, tokenizer, prompt, 40, use_cache=use_cache, seed=3, sampling=Sampling(**options))
    assert "".join(pieces) == text


@pytest.mark.parametrize("axis, name", [(axis, name) for axis in AXES for name in AXES[axis].names()])
def test_the_cache_changes_no_text(tokenizer, axis, name):
    model = tiny(vocab_size=len(tokenizer), context=48, **{axis: name})
    text = ablate.generate(model, tokenizer, "the quick", 32)
    assert text == ablate.generate(model, tokenizer, "the quick", 32, use_cache=False)
    assert text == ablate.generate(model, tokenizer, "the quick", 32, prefill_chunk=2)


def test_eot_ends_the_text(tokenizer):
    model = tiny(vocab_size=len(tokenizer), context=80)
    ids = tokenizer.encode("the")

    class Other:
        """The same tokenizer, with another token as eot."""

        encode, decode = staticmethod(tokenizer.encode), staticmethod(tokenizer.decode)

    for eot in range(len(tokenizer)):  # find one that is generated after its own prompt, but not among the first tokens
        (new,) = generate_tokens(model, [[eot, *ids]], 40)
        if eot in new[3:] and eot not in new[:3]:
            break
    Other.eot = eot
    model.train()
    assert generate(model, Other, "the", 40) == tokenizer.decode(new[: new.index(eot)])
    assert model.training  # the stream has ended


def test_the_prompt_is_checked(tokenizer):
    model = tiny(vocab_size=len(tokenizer), context=80)
    with pytest.raises(AblateError, match="use generate_tokens"):
        generate(model, tokenizer, [1, 2])
    with pytest.raises(AblateError, match=r"^prompt: it is empty"):
        generate(model, tokenizer, "")
    with pytest.raises(AblateError, match=r"^prompt='a.udcff': not Unicode"):
        generate(model, tokenizer, "a\udcff")
    with pytest.raises(AblateError, match="max_new_tokens=0"):
        stream(model, tokenizer, "the", 0)  # at once
    with pytest.raises(AblateError, match="top_p=2"):
        generate(model, tokenizer, "the", temperature=1.0, top_p=2)
    with pytest.raises(AblateError, match="vocabulary"):
        generate(tiny(vocab_size=20), tokenizer, "the", 4)
    with pytest.raises(AblateError, match=r"^prompt: its .* context of 24"):
        generate(tiny(vocab_size=len(tokenizer)), tokenizer, "the quick brown fox " * 20)
    with pytest.raises(AblateError, match="learned positions"):
        generate(tiny(vocab_size=len(tokenizer), position="learned"), tokenizer, "the", 24)


def words(decoder=None, pre_tokenizer=None, space="") -> Tokenizer:
    table = {f"{space}{word}": number for number, word in enumerate(["one", "two", "three", "four"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({**table, EOT: 4}))
    backend.pre_tokenizer = pre_tokenizer or tokenizers.pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        backend.decoder = decoder
    return Tokenizer(backend)


WORDS = {
    "joined by spaces": words(),
    "opened by spaces, the first one dropped": words(
        tokenizers.decoders.Metaspace(), tokenizers.pre_tokenizers.Metaspace(), "\u2581"
    ),
}


@pytest.mark.parametrize("tokenizer", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_other_tokenizers_go_on_from_the_prompt(tokenizer, count):
    """Prompt plus continuation is the text of all tokens: what the tokenizer puts between the two is not lost."""
    before = tokenizer.encode("one two " * 10 + "three")
    assert before == [0, 1] * 10 + [2]
    ids = [n % 4 for n in range(count)]
    pieces = list(_pieces(tokenizer, ids, before))
    assert tokenizer.decode(before) + "".join(pieces) == tokenizer.decode(before + ids)
    assert len(pieces) == count and pieces[0] == " one"


def test_a_text_without_tokens_is_refused():
    letters = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, EOT: 1}, [])))
    model = tiny(seed=1, vocab_size=2)  # a seed whose first token is not the end of the text
    assert generate(model, letters, "ba", 4)  # only the letter that has a token counts, as in training
    with pytest.raises(AblateError, match=r"^prompt='b': the tokenizer has no token"):
        generate(tiny(vocab_size=2), letters, "b")
