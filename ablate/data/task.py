"""Corpora that are drawn when they are asked for: what a task is, and its rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ablate.data.contract import Settings
from ablate.data.rows import IGNORE, pieces_of
from ablate.data.tokenizer import Tokenizer
from ablate.errors import AblateError

FORMAT = 1  # of the rows; a new number marks that the same options draw others


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """A task's: validation is on `val_rows` rows, which are the same whatever the seed."""

    val_rows: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(val_rows=1)


class Task:
    """A corpus of symbols, the ids 0 to symbols - 1. The end-of-text token follows them; it opens every document,
    as in text. A subclass says what a row is (`draw`); the attributes are the options.

    Row n of a seed is a function of (seed, n) alone: neither the batch size nor the rows before it count.
    """

    Settings = TaskSettings

    def __init__(self, symbols: int):
        if symbols < 2:
            raise AblateError(f"data.symbols={symbols}: at least 2, or there is nothing to tell apart")
        self.symbols = symbols

    @property
    def eot(self) -> int:
        return self.symbols

    @property
    def answers(self) -> int:
        """How many answers are equally likely to who sees nothing of the row but its query."""
        return self.symbols

    def check(self, context: int) -> None:
        """Raises AblateError if the task has no row of `context` tokens."""

    def numbers(self, context: int) -> int:
        """How many random numbers a row takes."""
        raise NotImplementedError

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Random numbers `[B, numbers]`, uniform in [0, 1) -> tokens and targets, each `[B, T]`; -100: not scored."""
        raise NotImplementedError

    def layout(self, settings: TaskSettings) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions and documents of every row, each `[T]`; None where a row is one document."""
        return np.arange(settings.context), None

    def open(self, settings: TaskSettings, seed: int, cache_dir: Path) -> "Drawn":
        """The task with rows of `settings.context` tokens; nothing is written.

        Raises:
            AblateError: the options and the context do not fit together.
        """
        if settings.vocab_size != self.symbols + 1:
            raise AblateError(
                f"data.vocab_size={settings.vocab_size}: {self.symbols} symbols and the end of text make "
                f"{self.symbols + 1}; leave data.vocab_size out, and it follows data.symbols"
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
    """The rows of a split: batches as `PackedRows` gives them. `size`: how many; None: without end."""

    bytes = None

    def __init__(self, task: Task, settings: TaskSettings, seed: np.random.SeedSequence, size: int | None):
        self.task, self.context, self.size = task, settings.context, size
        self._key = seed.generate_state(2, np.uint64)
        self.positions, self.documents = task.layout(settings)
        self.targets = 0 if size is None else int((self[range(size)]["targets"] != IGNORE).sum())

    def __getitem__(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the rows `ids`; an id of -1 is a row without targets.

        Returns:
            tokens, targets, positions: `[B, T]` int64. documents: `[B, T]` int32, where attention keeps to them.
        """
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
        """Of one row, for they are all alike: length -> how many pieces attention keeps to."""
        return {self.context: 1} if self.documents is None else pieces_of(self.documents[None])

    def _chance(self, ids: np.ndarray) -> np.ndarray:
        """Uniform numbers `[B, numbers]`. The generator counts to far: each row has a span of counts of its own."""
        rows = np.empty((len(ids), self.task.numbers(self.context)))
        for row, number in zip(rows, ids.tolist(), strict=True):
            np.random.Generator(np.random.Philox(key=self._key, counter=[0, number, 0, 0])).random(out=row)
        return rows


@dataclass(frozen=True)
class Drawn:
    """A task, open: it fulfils `Opened`."""

    task: Task
    tokenizer: Tokenizer
    fingerprint: str
    train: TaskRows
    val: TaskRows

    def report(self) -> dict[str, float]:
        """`chance`: the accuracy of an answer given without seeing the row."""
        return {
            "vocabulary": len(self.tokenizer),
            "val_rows": self.val.size,
            "val_targets": self.val.targets,
            "chance": 1 / self.task.answers,
        }

    def describe(self) -> str:
        return (
            f"rows without end to train on, {self.val.targets:,} answers in {self.val.size:,} rows to validate; "
            f"chance is {1 / self.task.answers:.2%}"
        )

    def require(self, batch_size: int) -> None:
        """There are always enough."""
