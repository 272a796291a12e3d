"""What `data` says besides a corpus's own options, and what training asks of a corpus once it is open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ablate.data.tokenizer import Tokenizer
from ablate.errors import AblateError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every corpus shares. A kind of corpus may have more: its `Settings`.

    Raises:
        AblateError: a number out of its range.
    """

    vocab_size: int
    context: int
    batch_size: int
    workers: int
    max_rows: int | None  # train on the first rows only

    def __post_init__(self) -> None:
        self.check(vocab_size=1, context=1, batch_size=1, workers=0, max_rows=1)

    def check(self, **least: int) -> None:
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise AblateError(f"data.{name}={value}: expected a whole number, at least {bound}")


class RowSource(Protocol):
    """The rows of a split."""

    size: int | None  # how many there are; None: without end
    targets: int  # how many targets of the split are scored, where it has an end
    bytes: int | None  # UTF-8 bytes of the text; None: not text, and the share of right answers is measured instead

    def __getitem__(self, ids: Sequence[int]) -> dict[str, Tensor | int]:
        """The batch of the rows `ids`: tokens, targets, positions and, where attention keeps to them, documents
        (and, to spare a GPU kernel from asking, max_documents)."""

    def pieces(self, rows: int | None = None) -> dict[int, int]:
        """Length -> how many: the pieces of the first rows, padding too, that attention keeps to. They fill them."""


class Opened(Protocol):
    """A corpus, ready to be trained on."""

    tokenizer: Tokenizer
    fingerprint: str  # two runs with the same one were trained and validated on the same data
    train: RowSource
    val: RowSource

    def report(self) -> dict[str, float]:
        """Plain numbers for a log."""

    def describe(self) -> str:
        """The same in a line for the terminal."""

    def require(self, batch_size: int) -> None:
        """Raises AblateError where there is not enough for a batch."""
