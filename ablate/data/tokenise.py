"""Writing a prepared corpus: read, split, train the tokenizer, tokenise."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ablate.data.contract import Source, TextSettings
from ablate.data.tokenizer import Tokenizer
from ablate.errors import AblateError
from ablate.files import write_json

FORMAT = 1  # version of the prepared folder; with a new number every corpus is prepared again
SPLITS = ("train", "val")
BATCH_BYTES = 4 << 20  # bytes of text that are tokenised at once


def write(
    source: Source,
    tokenizer: Tokenizer | None,
    settings: TextSettings,
    fingerprint: str,
    work: Path,
    show_progress: bool,
) -> None:
    """Prepares `source` in the new folder `work / "corpus"`, with `tokenizer` or one trained on its train split.

    The source may be a stream from the network, so it is read once, into one file of text. Training the tokenizer and
    tokenising read that file.

    Raises:
        AblateError: the source cannot be read, or has too few documents to split.
    """
    out = work / "corpus"
    out.mkdir()
    spool = _Spool(work / "text")
    spool.fill(_progress(source.documents(), "reading", None, show_progress))
    in_val = _split(spool.hashes, settings.val_fraction, source.remedy)
    if tokenizer is None:
        texts = (text for text, val in zip(spool.texts(), in_val, strict=True) if not val)
        texts = _progress(texts, "training the tokenizer", int((~in_val).sum()), show_progress)
        tokenizer = Tokenizer.train(texts, settings.vocab_size)
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    pairs = _tokenise(spool, in_val, tokenizer, dtype, out, show_progress)

    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "corpus": source.name,
        "dtype": dtype.name,
        "vocabulary": len(tokenizer),
        "tokenizer": tokenizer.fingerprint(),
    }
    lengths = np.array(spool.lengths)
    for split, name in enumerate(SPLITS):
        document_bytes = lengths[in_val == bool(split)]
        np.savez(out / f"{name}.npz", starts=np.cumsum(pairs[split]) - pairs[split], bytes=document_bytes)
        manifest[name] = {
            "documents": len(pairs[split]),
            "tokens": int(pairs[split].sum()),
            "bytes": int(document_bytes.sum()),
        }
    tokenizer.save(out / "tokenizer.json")
    manifest["files"] = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    write_json(out / "manifest.json", manifest)


def _tokenise(
    spool: "_Spool", in_val: np.ndarray, tokenizer: Tokenizer, dtype: np.dtype, out: Path, show_progress: bool
) -> list[np.ndarray]:
    """Writes the token streams; returns the number of (input, target) pairs of each document, for train and for val."""
    pairs = [array("q"), array("q")]
    with (out / "train.bin").open("wb") as train, (out / "val.bin").open("wb") as val:
        files = (train, val)
        texts = _progress(spool.texts(), "tokenising", len(in_val), show_progress)
        for text_batch, val_batch in _batches(texts, in_val, spool.lengths):
            for ids, split in zip(tokenizer.encode_batch(text_batch), val_batch, strict=True):
                _append(files[split], [tokenizer.eot, *ids], dtype)
                pairs[split].append(len(ids) + 1)
        for file in files:
            _append(file, [tokenizer.eot], dtype)
    return [np.array(counts) for counts in pairs]


class _Spool:
    """All documents in one file; the UTF-8 length and the hash of each in memory."""

    def __init__(self, path: Path):
        self.path = path
        self.lengths, self.hashes = array("q"), array("Q")

    def fill(self, documents: Iterable[str]) -> None:
        with self.path.open("wb") as file:
            for document in documents:
                content = document.encode("utf-8", errors="replace")  # JSON can contain half a surrogate pair
                file.write(content)
                self.lengths.append(len(content))
                self.hashes.append(int.from_bytes(hashlib.sha256(content).digest()[:8], "big"))

    def texts(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for length in self.lengths:
                yield file.read(length).decode("utf-8")


def _split(hashes: array, val_fraction: float, remedy: str) -> np.ndarray:
    """Which documents are for validation, `[D]` bool: those with a hash in the lowest `val_fraction` of its range.

    If no document is, validation gets the one with the lowest hash; if all are, training gets the one with the highest.

    Raises:
        AblateError: there are not two different documents.
    """
    numbers = np.array(hashes, dtype=np.uint64)
    distinct = len(np.unique(numbers))
    if distinct < 2:
        what = "one document" if len(numbers) == 1 else f"{len(numbers)} documents that are all equal"
        raise AblateError(f"data: the corpus has {what}, but training and validation need one each; {remedy}")
    in_val = numbers < np.uint64(val_fraction * 2.0**64)
    if not in_val.any():
        return numbers == numbers.min()
    return in_val & (numbers != numbers.max()) if in_val.all() else in_val


def _batches(texts: Iterable[str], in_val: np.ndarray, lengths: array) -> Iterator[tuple[list[str], list[int]]]:
    """Texts and their splits (1: validation), about `BATCH_BYTES` of text at a time."""
    batch: list[str] = []
    splits: list[int] = []
    size = 0
    for text, val, length in zip(texts, in_val.tolist(), lengths, strict=True):
        batch.append(text)
        splits.append(int(val))
        size += length
        if size >= BATCH_BYTES:
            yield batch, splits
            batch, splits, size = [], [], 0
    yield batch, splits


def _append(file: BinaryIO, ids: list[int], dtype: np.dtype) -> None:
    file.write(np.array(ids, dtype=dtype).tobytes())


def _progress(documents: Iterable[str], what: str, total: int | None, show: bool) -> Iterable[str]:
    from tqdm import tqdm

    return tqdm(documents, desc=what, total=total, unit=" documents", delay=1, disable=None if show else True)
