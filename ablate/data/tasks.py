"""The diagnostic tasks. The best possible accuracy of each is known."""

from dataclasses import dataclass

import numpy as np

from ablate import check
from ablate.data.corpus import CORPORA
from ablate.data.rows import IGNORE
from ablate.data.task import Task, TaskSettings
from ablate.errors import AblateError

POWER = 0.01  # `power_a` in Zoology's experiments: how the gaps before the queries of `recall` are distributed


def integers(chance: np.ndarray, below: int) -> np.ndarray:
    """Uniform integers from 0 to `below - 1`, from uniform numbers in [0, 1)."""
    return (chance * below).astype(np.int64)


def unscored(tokens: np.ndarray) -> np.ndarray:
    """Targets `[B, T]` for `tokens` `[B, T]`, none of them scored."""
    return np.full_like(tokens, IGNORE)


@CORPORA.register("copy")
class Copy(Task):
    """Random symbols; at each position the target is the symbol `distance` tokens before it.

    A model with a reach shorter than `distance` cannot do better than chance.

    symbols: number of symbols.
    distance: tokens from the query back to the answer.
    """

    def __init__(self, *, symbols: int = 32, distance: int = 32):
        super().__init__(symbols)
        self.distance = check.whole("data.distance", distance, 1)

    def check(self, context: int) -> None:
        if self.distance > context - 2:
            raise AblateError(
                f"data.distance={self.distance}: a context of {context} tokens, with the end of text as its first, "
                f"has room for {context - 2} at most; lower it or raise model.context"
            )

    def numbers(self, context: int) -> int:
        return context - 1

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(chance), context), self.eot)
        tokens[:, 1:] = integers(chance, self.symbols)
        targets = unscored(tokens)
        targets[:, 1 + self.distance :] = tokens[:, 1 : -self.distance]
        return tokens, targets


@CORPORA.register("recall")
class Recall(Task):
    """Multi-query associative recall (Arora et al. 2023, "Zoology"): `pairs` keys, each followed by its value; then
    each key once more, as a query whose target is the value.

    The lower half of the symbols are keys, the others are values; no key and no value is in two pairs of a row.
    Queries are at even distances from the end of the pairs, most of them near it: the probability of gap g is
    proportional to g^(0.01 - 1). Random values fill the places between the queries (in the paper: random symbols), so
    that a key occurs exactly twice.

    symbols: number of symbols, keys and values together.
    pairs: pairs of key and value in a row.
    """

    def __init__(self, *, symbols: int = 64, pairs: int = 4):
        super().__init__(symbols)
        self.keys, self.pairs = symbols // 2, pairs
        if not 1 <= pairs <= self.keys:
            raise AblateError(
                f"data.pairs={pairs}: expected 1 to {self.keys}, as half of data.symbols={symbols} are keys"
            )

    @property
    def answers(self) -> int:
        return self.symbols - self.keys

    def check(self, context: int) -> None:
        if self.pairs > self._gaps(context):
            raise AblateError(
                f"data.pairs={self.pairs}: pairs and queries take {4 * self.pairs} tokens, more than the context "
                f"of {context}; lower it or raise model.context"
            )

    def _gaps(self, context: int) -> int:
        """The number of places for queries: every other place after the pairs."""
        return (context - 2 * self.pairs) // 2

    def _filler(self, context: int) -> int:
        """The number of places after the pairs."""
        return context - 1 - 2 * self.pairs

    def numbers(self, context: int) -> int:
        return self.symbols + self._gaps(context) + self._filler(context)

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        gaps, after = self._gaps(context), 2 * self.pairs + 1
        for_keys, for_values, for_gaps, for_filler = np.split(
            chance, np.cumsum([self.keys, self.answers, gaps]), axis=1
        )
        keys = for_keys.argsort(1)[:, : self.pairs]
        values = for_values.argsort(1)[:, : self.pairs] + self.keys
        # Weighted sampling without replacement: the first arrivals of exponential clocks with these rates.
        rate = np.arange(1, gaps + 1) ** (POWER - 1)
        queries = after + 2 * (-np.log1p(-for_gaps) / rate).argsort(1)[:, : self.pairs]
        tokens = np.full((len(chance), context), self.eot)
        tokens[:, 1:after:2], tokens[:, 2:after:2] = keys, values
        tokens[:, after:] = integers(for_filler, self.answers) + self.keys
        np.put_along_axis(tokens, queries, keys, axis=1)
        targets = unscored(tokens)
        np.put_along_axis(targets, queries, values, axis=1)
        return tokens, targets


@CORPORA.register("induction")
class Induction(Task):
    """A random segment, repeated (Olsson et al. 2022, "repeated random tokens"); from the second copy on, the target is
    the next symbol: ... A B ... A -> B.

    No symbol occurs twice in a segment. The length of the segment differs from row to row, so that a model has to find
    the answer by symbol, not by distance.

    symbols: number of symbols.
    shortest: the smallest length of a segment.
    longest: the largest length of a segment.
    """

    def __init__(self, *, symbols: int = 32, shortest: int = 4, longest: int = 16):
        super().__init__(symbols)
        if not 1 <= shortest <= longest:
            raise AblateError(f"data.shortest={shortest}: expected 1 to data.longest={longest}")
        if longest > symbols:
            raise AblateError(f"data.longest={longest}: a segment repeats no symbol, and data.symbols={symbols}")
        self.shortest, self.longest = shortest, longest

    def check(self, context: int) -> None:
        if self.longest > context - 2:
            raise AblateError(
                f"data.longest={self.longest}: expected at most {context - 2}, so that a segment repeats in a context "
                f"of {context} tokens; lower it or raise model.context"
            )

    def numbers(self, context: int) -> int:
        return self.symbols + 1

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        segment = chance[:, 1:].argsort(1)
        length = self.shortest + integers(chance[:, :1], self.longest - self.shortest + 1)
        along = np.arange(context)
        sequence = np.take_along_axis(segment, along % length, axis=1)
        tokens = np.full_like(sequence, self.eot)
        tokens[:, 1:] = sequence[:, :-1]
        return tokens, np.where(along > length, sequence, IGNORE)


@dataclass(frozen=True, kw_only=True)
class LeakSettings(TaskSettings):
    """The settings of `leak`. They apply in training and in validation."""

    document_mask: bool  # attention stays within a document
    restart_positions: bool  # positions start at 0 in each document


@CORPORA.register("leak")
class Leak(Task):
    """A row packs two copies of one random document; the targets are the symbols of the second copy.

    A model that attends to the first copy can repeat it; for one that sees only the second, no answer is better than
    chance.

    symbols: number of symbols.
    """

    Settings = LeakSettings

    def __init__(self, *, symbols: int = 20):
        super().__init__(symbols)

    def check(self, context: int) -> None:
        if context < 4 or context % 2:
            raise AblateError(f"data.context={context}: two equal documents need an even number of tokens, 4 or more")

    def layout(self, settings: LeakSettings) -> tuple[np.ndarray, np.ndarray | None]:
        along, half = np.arange(settings.context), settings.context // 2
        positions = along % half if settings.restart_positions else along
        return positions, (along // half).astype(np.int32) if settings.document_mask else None

    def numbers(self, context: int) -> int:
        return context // 2 - 1

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        half = context // 2
        tokens = np.full((len(chance), context), self.eot)
        tokens[:, 1:half] = tokens[:, half + 1 :] = integers(chance, self.symbols)
        targets = unscored(tokens)
        targets[:, half:-1] = tokens[:, half + 1 :]
        return tokens, targets
