import json

import pytest

from ablate.data import Tokenizer
from ablate.errors import AblateError

WORDS = ["the cat sat on the mat", "def f(x):\n    return x", "naïve café", "the theory of the thing"] * 20
HARD = [
    "",
    "\ufeffbyte order",
    "tabs\t\tand  spaces \r\nCRLF\n\n\n ",
    "emoji 😀👩‍👩‍👧 e\u0301 \u00e9 漢字 \u200b",
    "".join(map(chr, range(0x300))),
    "a<|endoftext|>b </s> <eos>",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(WORDS, 300)


def test_any_text_comes_back_exactly(tokenizer):
    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch(HARD) == [tokenizer.encode(text) for text in HARD]


def test_training_is_deterministic(tokenizer):
    assert Tokenizer.train(iter(WORDS), 300).to_json() == tokenizer.to_json()


def test_vocabulary(tokenizer):
    assert tokenizer.eot == 0
    assert len(tokenizer) == 300
    assert len(Tokenizer.train(["ab"], 4096)) == 258  # nothing to merge but the one pair
    with pytest.raises(AblateError, match=r"data\.vocab_size=256.*257"):
        Tokenizer.train(WORDS, 256)


def test_the_name_of_the_special_token_is_ordinary_text(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    for one in (tokenizer, again):
        assert one.eot not in one.encode("x<|endoftext|>y")
        assert one.eot not in one.encode_batch(["x<|endoftext|>y"])[0]
    assert again.decode([again.eot]) == "<|endoftext|>"


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer):
    ids = tokenizer.encode("😀")
    assert tokenizer.decode([*ids[:2], *tokenizer.encode("x")]) == "\ufffdx"


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.load(place).to_json() == tokenizer.to_json()


def test_what_a_file_adds_cuts_or_pads_is_left_out(tokenizer):
    changed = json.loads(tokenizer.to_json())
    changed["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    changed["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    text = "the cat and a hat"
    assert Tokenizer.from_json(json.dumps(changed)).encode(text) == tokenizer.encode(text)


def test_other_names_for_the_end_of_text(tokenizer):
    renamed = tokenizer.to_json().replace("<|endoftext|>", "</s>")
    assert Tokenizer.from_json(renamed).eot == 0
    nameless = tokenizer.to_json().replace("<|endoftext|>", "<nothing>")
    with pytest.raises(AblateError, match=r"data\.tokenizer: x has no end-of-text token"):
        Tokenizer.from_json(nameless, "x")


def test_damaged_and_missing_files(tokenizer, tmp_path):
    bad = tmp_path / "bad.json"
    for content in (b"", b"{}", b"\xff\xfe\0", tokenizer.to_json()[:2000].encode()):
        bad.write_bytes(content)
        with pytest.raises(AblateError, match=r"^data\.tokenizer: .*bad\.json") as caught:
            Tokenizer.load(bad)
        assert "\n" not in str(caught.value)
    for missing in (tmp_path, tmp_path / "no.json"):
        with pytest.raises(AblateError, match="does not exist"):
            Tokenizer.load(missing)


def test_a_hub_name_without_a_network(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AblateError, match=r"data\.tokenizer: someone/something .*cannot be reached"):
        Tokenizer.load("someone/something")
