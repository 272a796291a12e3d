"""Documents -> tokens on disk -> packed rows."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablate.data.contract import Settings
from ablate.data.packing import PACKERS, Rows
from ablate.data.rows import PackedRows
from ablate.data.tokenise import FORMAT, write
from ablate.data.tokenizer import SMALLEST, Tokenizer
from ablate.errors import AblateError
from ablate.files import sync, workspace

if TYPE_CHECKING:
    from ablate.data.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """A corpus of text's."""

    tokenizer: str | None
    packing: str
    document_mask: bool
    restart_positions: bool
    val_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        PACKERS.component(self.packing)


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus: it fulfils `Opened`. `fingerprint` (64 hex digits) names the source, the tokenizer and
    the split."""

    tokenizer: Tokenizer
    fingerprint: str
    train: PackedRows
    val: PackedRows
    folder: Path
    packing: str

    def report(self) -> dict[str, float]:
        """Plain numbers for a log. Tokens are (input, target) pairs: each document's, and one for its end."""
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
        return f"{train:,} tokens to train on, {val:,} to validate; {self.packing} packing, {used:.1%} used"

    def require(self, batch_size: int) -> None:
        """Check that one batch of `batch_size` rows does not repeat a row.

        Raises:
            AblateError: the training split has fewer tokens than a batch.
        """
        tokens, context = self.train.targets, self.train.context
        if tokens < batch_size * context:
            raise AblateError(
                f"data: the corpus has {tokens} training tokens, fewer than one batch of {batch_size} x {context} = "
                f"{batch_size * context}; give it more text, or lower the batch size or model.context"
            )


def prepare(
    corpus: "Corpus",
    *,
    tokenizer: str | None,
    vocab_size: int,
    context: int,
    packing: str,
    val_fraction: float,
    cache_dir: Path,
    document_mask: bool = True,
    restart_positions: bool = True,
    show_progress: bool = True,
) -> Prepared:
    """Open the prepared corpus in `cache_dir`, preparing it first if it is not there.

    Documents are split by a hash of their own content. The byte-level BPE is trained on the train
    split, unless `tokenizer` names one (see `Tokenizer.load`), which must have `vocab_size` tokens.
    Validation rows are `best_fit` with the document mask and restarting positions, whatever the training
    rows are: each target of the split is scored once, in its own document.

    Raises:
        AblateError: a bad option, a source or tokenizer that cannot be used, too few documents to split.
    """
    packer = PACKERS.build({"name": packing})
    if not 0 < val_fraction < 1:
        raise AblateError(f"data.val_fraction={val_fraction}: expected a number between 0 and 1, such as 0.02")
    if context < 1:
        raise AblateError(f"model.context={context}: expected a positive number")
    given = None
    if tokenizer is not None:
        given = Tokenizer.load(tokenizer)
        if len(given) != vocab_size:
            raise AblateError(
                f"data.tokenizer: {tokenizer} has {len(given)} tokens, but data.vocab_size={vocab_size}; "
                f"set data.vocab_size={len(given)}"
            )
    elif vocab_size < SMALLEST:
        raise AblateError(f"data.vocab_size={vocab_size}: set {SMALLEST} or more (all bytes and the end of text)")

    how = _sha(given.to_json()) if given else f"bpe{vocab_size}"
    fingerprint = _sha(json.dumps([corpus.fingerprint(), how, val_fraction, FORMAT]))
    cache_dir = Path(cache_dir)
    folder = cache_dir / f"{type(corpus).__name__.lower()}-{fingerprint[:12]}"
    if not folder.exists():
        with workspace(cache_dir) as work:
            write(corpus, given, vocab_size, val_fraction, fingerprint, work, show_progress)
            sync(work / "corpus")
            try:
                os.rename(work / "corpus", folder)
            except OSError:
                if not folder.exists():  # else another process has just finished the same
                    raise

    manifest = _manifest(folder, fingerprint)
    opened = {}
    for split, name, pack in (("train", packing, packer), ("val", "best_fit", PACKERS.build({"name": "best_fit"}))):
        stream = np.memmap(folder / f"{split}.bin", dtype=manifest["dtype"], mode="r")
        with np.load(folder / f"{split}.npz", allow_pickle=False) as index:
            starts, document_bytes = index["starts"], index["bytes"]
        plan_file = folder / f"rows-{split}-{name}-{context}.npz"
        if not plan_file.exists():
            plan = pack(np.diff(np.append(starts, len(stream) - 1)), context)
            with workspace(cache_dir) as work:
                plan.save(work / plan_file.name)
                sync(work)
                os.replace(work / plan_file.name, plan_file)
        switches = (document_mask, restart_positions) if split == "train" else (True, True)
        opened[split] = PackedRows(
            stream,
            starts,
            document_bytes,
            Rows.load(plan_file),
            document_mask=switches[0],
            restart_positions=switches[1],
        )
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return Prepared(
        Tokenizer.from_json(text, str(folder)), fingerprint, opened["train"], opened["val"], folder, packing
    )


def _manifest(folder: Path, fingerprint: str) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        whole = manifest["fingerprint"] == fingerprint and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        raise AblateError(f"data: the prepared corpus in {folder} is damaged; delete that folder to prepare it again")
    return manifest


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
