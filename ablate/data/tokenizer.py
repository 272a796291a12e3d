"""Text to token ids and back: byte-level BPE by Hugging Face `tokenizers`."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ablate import check
from ablate.data.huggingface import hub_or_cache
from ablate.errors import AblateError

EOT = "<|endoftext|>"
EOT_NAMES = [EOT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|eot|>", "[EOS]", "<EOS>", "[SEP]"]
SMALLEST = 257  # vocabulary: every byte, and the end of text


class Tokenizer:
    """A `tokenizers.Tokenizer` that maps text to ids and back, and neither truncates, pads nor adds tokens.

    `eot` is the id of the end-of-text token. It comes before every document and after the last one. Text that contains
    the token's name is encoded as ordinary text.

    Raises:
        AblateError: it has no end-of-text token with one of the usual names.
    """

    def __init__(self, backend: Any, name: str = "tokenizer"):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        ids = [backend.token_to_id(token) for token in EOT_NAMES if backend.token_to_id(token) is not None]
        if not ids:
            raise AblateError(f"data.tokenizer: {name} has no end-of-text token; add one of {', '.join(EOT_NAMES)}")
        self.backend = backend
        self.eot: int = ids[0]
        self._size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def __len__(self) -> int:
        """The highest id plus one: how many rows an embedding needs."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """The ids of `text`.

        Raises:
            AblateError: the vocabulary consists of words, and the text contains others.
        """
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises plain Exception
            raise AblateError(f"{text!r} is not in the vocabulary; this tokenizer has {self._known()}") from error

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. A model may produce bytes that are not UTF-8; they become U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def _known(self) -> str:
        return f"{self._size} words, such as {self.decode([0])!r} and {self.decode([1])!r}"

    def to_json(self) -> str:
        return self.backend.to_str()

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokenizer.json."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_json(cls, text: str, name: str = "tokenizer") -> "Tokenizer":
        """A tokenizer from the text of its tokenizer.json.

        Raises:
            AblateError: the text is not a tokenizer, or has no end-of-text token.
        """
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise AblateError(
                f"data.tokenizer: {name} is damaged, or not a tokenizer.json ({error}); replace it"
            ) from error
        return cls(backend, name)

    @classmethod
    def load(cls, path_or_name: str | Path) -> "Tokenizer":
        """A tokenizer from a tokenizer.json, a folder that holds one, or a name on the Hugging Face hub.

        Raises:
            AblateError: it does not exist, is damaged, or has no end-of-text token.
        """
        path = Path(path_or_name).expanduser()
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            try:
                return cls.from_json(file.read_text(encoding="utf-8"), str(path_or_name))
            except UnicodeDecodeError as error:
                raise AblateError(f"data.tokenizer: {path_or_name} is not a tokenizer.json; replace it") from error
        if path.is_dir() or path.suffix == ".json" or path.is_absolute():
            raise AblateError(f"data.tokenizer: {file} does not exist; give a tokenizer.json, its folder or a hub name")
        from tokenizers import Tokenizer as Backend

        with hub_or_cache() as online:
            try:
                backend = Backend.from_pretrained(str(path_or_name))
            except Exception as error:  # the hub client raises many kinds
                why = "the Hugging Face hub has no such tokenizer" if online else "the hub cannot be reached"
                raise AblateError(
                    f"data.tokenizer: {path_or_name} is not a file, and {why}; give a tokenizer.json"
                ) from error
        return cls(backend, str(path_or_name))

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A byte-level BPE of at most `vocab_size` tokens. The same documents give the same tokenizer.

        Raises:
            AblateError: see `check_vocabulary`.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        check_vocabulary(vocab_size)
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(documents, trainer)
        return cls(backend)

    @classmethod
    def of_symbols(cls, count: int) -> "Tokenizer":
        """The words "0" to `count - 1`, separated by spaces. The id of a word is its number; eot is `count`."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        space = "\u2581"  # begins each word, so that a continuation can be appended to its prompt
        words = {f"{space}{number}": number for number in range(count)}
        backend = Backend(models.WordLevel(words | {EOT: count}, unk_token=""))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(space, prepend_scheme="always")]
        )
        backend.decoder = decoders.Metaspace(space, prepend_scheme="never")
        return cls(backend)


def check_vocabulary(size: int) -> None:
    """Checks that a byte-level BPE can have this many tokens.

    Raises:
        AblateError: not enough for all bytes and the end of text.
    """
    check.whole("data.vocab_size", size, SMALLEST, hint="all 256 bytes and the end of text")
