"""The contracts of data: what a corpus provides, and what training reads from it.

`data.name` selects the corpus of a run. Opened with the run's `Settings`, the corpus gives an `Opened`: a tokenizer and
two `RowSource`s, one to train on and one to validate on. A corpus of text is a `Source` of documents, which are
tokenised and packed into rows once and kept on disk.

    Source ── documents ──► tokens ──► rows ──► Opened: tokenizer, train, val
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ablate import check
from ablate.data.packing import PACKERS
from ablate.data.tokenizer import Tokenizer, check_vocabulary


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings under `data` that every corpus has. A kind of corpus with more settings subclasses this.

    Raises:
        AblateError: a number is out of range.
    """

    vocab_size: int
    context: int  # tokens in a row
    batch_size: int  # rows in a batch
    workers: int  # processes that read batches; 0: the training process reads them
    max_rows: int | None  # train on the first `max_rows` rows only

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 1), ("context", 1), ("batch_size", 1), ("workers", 0)):
            check.whole(f"data.{name}", getattr(self, name), least)
        check.whole("data.max_rows", self.max_rows, 1, null=True)


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """The settings of a corpus of text.

    Raises:
        AblateError: there is no such packer, or a number is out of range.
    """

    tokenizer: str | None  # a tokenizer.json, its folder or a hub name; None: a BPE trained on the train split
    packing: str
    document_mask: bool  # attention stays within a document, in training
    restart_positions: bool  # positions start at 0 in each document, in training
    val_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        PACKERS.component(self.packing)
        check.number("data.val_fraction", self.val_fraction, above=0, below=1)
        if self.tokenizer is None:
            check_vocabulary(self.vocab_size)


class Source(Protocol):
    """Documents, as `prepare` reads them."""

    @property
    def name(self) -> str:
        """The name that the corpus is registered under. The name of its prepared folder starts with it."""

    @property
    def remedy(self) -> str:
        """What the user can do if the corpus has only one document: the end of the error message."""

    def documents(self) -> Iterator[str]:
        """All documents, none of them empty, in the same order each time.

        Raises:
            AblateError: the source is missing, unreadable or has no text.
        """

    def fingerprint(self) -> str:
        """A hash of everything that the documents depend on: the content of the source and the options.

        Raises:
            AblateError: the source is missing.
        """


class RowSource(Protocol):
    """The rows of one split."""

    size: int | None  # number of rows; None: endless
    targets: int  # number of scored targets in the split; 0 if it is endless
    bytes: int | None  # UTF-8 bytes of the text; None: not text, and accuracy is measured instead of bits per byte

    def __getitem__(self, ids: Sequence[int]) -> dict[str, Tensor | int]:
        """The batch of rows `ids`, `[B]`; an id of -1 gives a row without targets.

        Returns:
            tokens: `[B, T]` int64.
            targets: `[B, T]` int64, the id to predict at each position; -100 where nothing is scored.
            positions: `[B, T]` int64, the position of each token in its document, or in its row.
            documents: only with the document mask; `[B, T]` int32, the document of each token; -1 on padding.
            max_documents: optional, with `documents`: an upper bound on the documents in a row; padding counts as
                one. Without it a GPU kernel has to wait for the count.
        """

    def pieces(self, rows: int | None = None) -> dict[int, int]:
        """`{length: count}` of the spans that attention does not cross, in the first `rows` rows (None: all rows).

        Padding counts as a span, so the lengths add up to rows x context. An endless split describes a single row.
        """


class Opened(Protocol):
    """A corpus that is ready for training."""

    tokenizer: Tokenizer
    fingerprint: str  # two runs with the same fingerprint were trained and validated on the same data
    train: RowSource
    val: RowSource

    def report(self) -> dict[str, float]:
        """Numbers about the corpus, for the summary of a run."""

    def describe(self) -> str:
        """The most important of these numbers in one line, for the terminal."""

    def require(self, batch_size: int) -> None:
        """Checks that the train split holds enough data for one batch of `batch_size` rows.

        Raises:
            AblateError: it holds less.
        """
