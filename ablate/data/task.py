"""Diagnostic tasks: corpora whose rows are drawn at random when training reads them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ablate import check
from ablate.data.contract import Settings
from ablate.data.rows import IGNORE, pieces_of
from ablate.data.tokenizer import Tokenizer
from ablate.errors import AblateError
from ablate.words import level

FORMAT = 1  # version of the rows; raise it when the same options draw other rows


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """The settings of a task.

    Raises:
        AblateError: a number is out of range.
    """

    val_rows: int  # rows in the validation split; they are the same for every seed

    def __post_init__(self) -> None:
        super().__post_init__()
        check.whole("data.val_rows", self.val_rows, 1)


class Task:
    """A corpus of symbols: the ids 0 to symbols - 1, then the end-of-text token, which begins every document.

    A subclass defines how a row is drawn: `numbers` and `draw`. Its attributes make up the fingerprint, so its rows may
    depend on nothing else. Row n depends only on (seed, n), not on the batch size or on earlier rows.

    Raises:
        AblateError: fewer than two symbols.
    """

    Settings = TaskSettings

    def __init__(self, symbols: int):
        self.symbols = check.whole("data.symbols", symbols, 2)

    @property
    def eot(self) -> int:
        """The id of the end-of-text token."""
        return self.symbols

    @property
    def answers(self) -> int:
        """How many answers are equally likely given the query alone."""
        return self.symbols

    def check(self, context: int) -> None:
        """Checks that a row of `context` tokens is possible.

        Raises:
            AblateError: it is not.
        """

    def numbers(self, context: int) -> int:
        """How many random numbers `draw` needs for a row."""
        raise NotImplementedError

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows from random numbers: `chance`, `[B, numbers]`, is uniform in [0, 1).

        Returns tokens and targets, each `[B, T]` int64; a target of -100 is not scored.
        """
        raise NotImplementedError

    def layout(self, settings: TaskSettings) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions and documents, each `[T]`, which all rows share; documents: None if a row is one document."""
        return np.arange(settings.context), None

    def open(self, settings: TaskSettings, seed: int, cache_dir: Path) -> "Drawn":
        """The task with rows of `settings.context` tokens. Writes nothing to `cache_dir`.

        Raises:
            AblateError: the options do not fit the context or the vocabulary.
        """
        if settings.vocab_size != self.symbols + 1:
            raise AblateError(
                f"data.vocab_size={settings.vocab_size}: {self.symbols} symbols and the end of text make "
                f"{self.symbols + 1}; leave data.vocab_size out, and it follows from data.symbols"
            )
        self.check(settings.context)
        options = (FORMAT, type(self).__name__, sorted(vars(self).items()), settings.context, settings.val_rows)
        return Drawn(
            task=self,
            tokenizer=Tokenizer.of_symbols(self.symbols),
            fingerprint=hashlib.sha256(repr(options).encode()).hexdigest(),
            train=TaskRows(self, settings, np.random.SeedSequence(seed), size=None),
            val=TaskRows(self, settings, np.random.SeedSequence(0, spawn_key=(1,)), size=settings.val_rows),
        )


class TaskRows(Dataset):
    """The rows of a split: a `RowSource`. `size`: number of rows; None: endless."""

    bytes = None  # not text

    def __init__(self, task: Task, settings: TaskSettings, seed: np.random.SeedSequence, size: int | None):
        self.task, self.context, self.size = task, settings.context, size
        self._key = seed.generate_state(2, np.uint64)
        self.positions, self.documents = task.layout(settings)
        self.targets = 0 if size is None else int((self[range(size)]["targets"] != IGNORE).sum())

    def __getitem__(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The batch of rows `ids`, as `RowSource` describes it; an id of -1 gives a row without targets."""
        ids = np.asarray(ids, dtype=np.int64)
        tokens, targets = self.task.draw(self._chance(np.maximum(ids, 0)), self.context)
        targets[ids < 0] = IGNORE
        arrays = {"tokens": tokens, "targets": targets, "positions": self.positions, "documents": self.documents}
        shape = (len(ids), self.context)
        return {
            name: torch.from_numpy(np.broadcast_to(array, shape).copy())
            for name, array in arrays.items()
            if array is not None
        }

    def pieces(self, rows: int | None = None) -> dict[int, int]:
        """`{length: count}` of the spans of one row; all rows have the same spans."""
        return {self.context: 1} if self.documents is None else pieces_of(self.documents[None])

    def _chance(self, ids: np.ndarray) -> np.ndarray:
        """Uniform numbers `[B, numbers]`. Philox has a large counter: each row gets its own range."""
        rows = np.empty((len(ids), self.task.numbers(self.context)))
        for row, number in zip(rows, ids.tolist(), strict=True):
            np.random.Generator(np.random.Philox(key=self._key, counter=[0, number, 0, 0])).random(out=row)
        return rows


@dataclass(frozen=True)
class Drawn:
    """A task that is ready for training: an `Opened`."""

    task: Task
    tokenizer: Tokenizer
    fingerprint: str
    train: TaskRows
    val: TaskRows

    def report(self) -> dict[str, float]:
        """`chance` is the accuracy of guessing from the query alone."""
        return {
            "vocabulary": len(self.tokenizer),
            "val_rows": self.val.size,
            "val_targets": self.val.targets,
            "chance": 1 / self.task.answers,
        }

    def describe(self) -> str:
        return (
            f"rows without end to train on, {self.val.targets:,} answers in {self.val.size:,} rows to validate; "
            f"chance is {level(1 / self.task.answers)}"
        )

    def require(self, batch_size: int) -> None:
        """Rows are endless, so there are always enough."""
