"""Writing a prepared corpus: read, split, train the tokenizer, tokenise."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ablate.data.tokenizer import Tokenizer
from ablate.errors import AblateError

if TYPE_CHECKING:
    from ablate.data.corpus import Corpus

FORMAT = 1  # of the prepared folder; a new number prepares every corpus again
SPLITS = ("train", "val")
BATCH_BYTES = 4 << 20  # of text tokenised at once


def write(
    corpus: "Corpus",
    tokenizer: Tokenizer | None,
    vocab_size: int,
    val_fraction: float,
    fingerprint: str,
    work: Path,
    show_progress: bool,
) -> None:
    """Prepare `corpus` into the new folder `work / "corpus"`, with `tokenizer` or one trained on its train split.

    The source is read once (it may be a stream from the network) into one file of text, which training
    the tokenizer and tokenising then read.
    """
    out = work / "corpus"
    out.mkdir()
    spool = _Spool(work / "text")
    spool.fill(_progress(corpus.documents(), "reading", None, show_progress))
    in_val = _split(spool.hashes, val_fraction, corpus.remedy)
    if tokenizer is None:
        training = (text for text, val in zip(spool.texts(), in_val, strict=True) if not val)
        count = int((~in_val).sum())
        tokenizer = Tokenizer.train(_progress(training, "training the tokenizer", count, show_progress), vocab_size)
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)

    counts = [array("q"), array("q")]  # pairs of each document, by split
    with (out / "train.bin").open("wb") as train, (out / "val.bin").open("wb") as val:
        files = (train, val)
        texts = _progress(spool.texts(), "tokenising", len(in_val), show_progress)
        for texts_batch, val_batch in _batches(texts, in_val, spool.lengths):
            for ids, split in zip(tokenizer.encode_batch(texts_batch), val_batch, strict=True):
                _append(files[split], [tokenizer.eot, *ids], dtype)
                counts[split].append(len(ids) + 1)
        for file in files:
            _append(file, [tokenizer.eot], dtype)

    manifest = {"format": FORMAT, "fingerprint": fingerprint, "corpus": type(corpus).__name__.lower()}
    manifest |= {
        "dtype": dtype.name,
        "vocabulary": len(tokenizer),
        "tokenizer": hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
    }
    lengths = np.array(spool.lengths)
    for split, name in enumerate(SPLITS):
        pairs = np.array(counts[split])
        document_bytes = lengths[in_val == bool(split)]
        np.savez(out / f"{name}.npz", starts=np.cumsum(pairs) - pairs, bytes=document_bytes)
        totals = {"documents": len(pairs), "tokens": int(pairs.sum()), "bytes": int(document_bytes.sum())}
        manifest[name] = totals
    tokenizer.save(out / "tokenizer.json")
    manifest["files"] = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


class _Spool:
    """Documents in one file, with the UTF-8 length and the content hash of each in memory."""

    def __init__(self, path: Path):
        self.path = path
        self.lengths, self.hashes = array("q"), array("Q")

    def fill(self, documents: Iterable[str]) -> None:
        with self.path.open("wb") as file:
            for document in documents:
                content = document.encode("utf-8", errors="replace")  # JSON can spell half a surrogate pair
                file.write(content)
                self.lengths.append(len(content))
                self.hashes.append(int.from_bytes(hashlib.sha256(content).digest()[:8], "big"))

    def texts(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for length in self.lengths:
                yield file.read(length).decode("utf-8")


def _split(hashes: array, val_fraction: float, remedy: str) -> np.ndarray:
    """Which documents are for validation, `[D]` bool: those whose hash lies in the lowest `val_fraction`.

    Where that leaves a split empty, the document with the lowest hash (highest, for an empty train split) moves.
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
