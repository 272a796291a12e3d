"""Documents -> tokens on disk -> packed rows."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablate.data.contract import Source, TextSettings
from ablate.data.packing import PACKERS, Packing
from ablate.data.rows import PackedRows
from ablate.data.tokenise import FORMAT, write
from ablate.data.tokenizer import Tokenizer
from ablate.errors import AblateError
from ablate.files import put, read_json, workspace
from ablate.words import percent


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus: an `Opened`."""

    tokenizer: Tokenizer
    fingerprint: str  # SHA-256 of the source, the tokenizer and the split
    train: PackedRows
    val: PackedRows
    folder: Path
    packing: str

    def report(self) -> dict[str, float]:
        """Numbers for a log. A token is an (input, target) pair; a document of n token ids has n + 1."""
        numbers: dict[str, float] = {"vocabulary": len(self.tokenizer)}
        for name, rows in (("train", self.train), ("val", self.val)):
            numbers |= {
                f"{name}_documents": len(rows.starts),
                f"{name}_tokens": len(rows.stream) - 1,
                f"{name}_bytes": rows.bytes,
                f"{name}_rows": len(rows),
                f"{name}_utilisation": rows.plan.utilisation,
                f"{name}_documents_cut": rows.plan.documents_cut,
                f"{name}_dropped": rows.plan.dropped,
            }
        return numbers

    def describe(self) -> str:
        train, val = (len(rows.stream) - 1 for rows in (self.train, self.val))
        used = self.train.plan.utilisation
        return f"{train:,} tokens to train on, {val:,} to validate; {self.packing} packing, {percent(used)} used"

    def require(self, batch_size: int) -> None:
        """Checks that a batch of `batch_size` rows does not contain a row twice.

        Raises:
            AblateError: the train split has fewer tokens than a batch.
        """
        tokens, context = self.train.targets, self.train.context
        if tokens < batch_size * context:
            raise AblateError(
                f"data: the corpus has {tokens} training tokens, fewer than one batch of {batch_size} x {context} = "
                f"{batch_size * context}; give it more text, or lower the batch size or model.context"
            )


def prepare(source: Source, settings: TextSettings, cache_dir: Path, show_progress: bool = True) -> Prepared:
    """Opens the prepared corpus in `cache_dir`; prepares it first if it is not there.

    A hash of a document's text decides its split. Without `settings.tokenizer`, a byte-level BPE of
    `settings.vocab_size` tokens is trained on the train split. Whatever the settings of training rows, validation uses
    best-fit packing, the document mask and restarting positions: each target is scored once, in its own document.

    Raises:
        AblateError: the source or the tokenizer cannot be used, or there are too few documents to split.
    """
    tokenizer = None if settings.tokenizer is None else _given_tokenizer(settings.tokenizer, settings.vocab_size)
    how = f"bpe{settings.vocab_size}" if tokenizer is None else tokenizer.fingerprint()
    content = json.dumps([source.fingerprint(), how, settings.val_fraction, FORMAT])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    cache_dir = Path(cache_dir)
    folder = cache_dir / f"{source.name}-{fingerprint[:12]}"
    if not folder.exists():
        with workspace(cache_dir) as work:
            write(source, tokenizer, settings, fingerprint, work, show_progress)
            put(work / "corpus", folder)

    dtype = _manifest(folder, fingerprint)["dtype"]
    train = PackedRows(
        *_split(folder, "train", dtype, settings.packing, settings.context),
        document_mask=settings.document_mask,
        restart_positions=settings.restart_positions,
    )
    val = PackedRows(*_split(folder, "val", dtype, "best_fit", settings.context))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return Prepared(Tokenizer.from_json(text, str(folder)), fingerprint, train, val, folder, settings.packing)


def _given_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer.load(name)
    if len(tokenizer) != vocab_size:
        raise AblateError(
            f"data.tokenizer: {name} has {len(tokenizer)} tokens, but data.vocab_size={vocab_size}; "
            f"set data.vocab_size={len(tokenizer)}"
        )
    return tokenizer


def _manifest(folder: Path, fingerprint: str) -> dict[str, Any]:
    """The content of `manifest.json`, if the folder is complete.

    Raises:
        AblateError: it is damaged, or belongs to another corpus.
    """
    try:
        manifest = read_json(folder / "manifest.json")
        complete = manifest["fingerprint"] == fingerprint and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (AblateError, OSError, KeyError):
        complete = False
    if not complete:
        raise AblateError(f"data: the prepared corpus in {folder} is damaged; delete that folder to prepare it again")
    return manifest


def _split(
    folder: Path, split: str, dtype: str, packer: str, context: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Packing]:
    """The arguments of `PackedRows` for a split: stream, starts, bytes of each document, packing.

    The packing is computed the first time and kept in the folder.
    """
    stream = np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r")
    with np.load(folder / f"{split}.npz", allow_pickle=False) as index:
        starts, document_bytes = index["starts"], index["bytes"]
    file = folder / f"rows-{split}-{packer}-{context}.npz"
    if not file.exists():
        plan = PACKERS.build({"name": packer})(np.diff(np.append(starts, len(stream) - 1)), context)
        with workspace(folder.parent) as work:
            plan.save(work / file.name)
            put(work / file.name, file)
    return stream, starts, document_bytes, Packing.load(file)
