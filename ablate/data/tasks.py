"""Diagnostic tasks: corpora of symbols whose best accuracy is known beforehand."""

from dataclasses import dataclass

import numpy as np

from ablate.data.corpus import CORPORA
from ablate.data.rows import IGNORE
from ablate.data.task import Task, TaskSettings
from ablate.errors import AblateError

POWER = 0.01  # of the gaps before the queries of `recall`, as in Zoology's experiments


def whole(chance: np.ndarray, below: int) -> np.ndarray:
    """Uniform numbers in [0, 1) -> uniform integers from 0 to below - 1."""
    return (chance * below).astype(np.int64)


def unscored(tokens: np.ndarray) -> np.ndarray:
    return np.full_like(tokens, IGNORE)


@CORPORA.register("copy")
class Copy(Task):
    """Random symbols; each position has to give the symbol that stands `distance` before it.

    What reaches less far than `distance` cannot do better than chance.

    symbols: how many there are.
    distance: how far back the answer stands, in tokens.
    """

    def __init__(self, *, symbols: int = 32, distance: int = 32):
        super().__init__(symbols)
        if distance < 1:
            raise AblateError(f"data.distance={distance}: at least 1")
        self.distance = distance

    def check(self, context: int) -> None:
        if self.distance > context - 2:
            raise AblateError(
                f"data.distance={self.distance}: a context of {context} tokens, the first of which opens the document, "
                f"has room for {context - 2} at most; lower it or raise model.context"
            )

    def numbers(self, context: int) -> int:
        return context - 1

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(chance), context), self.eot)
        tokens[:, 1:] = whole(chance, self.symbols)
        targets = unscored(tokens)
        targets[:, 1 + self.distance :] = tokens[:, 1 : -self.distance]
        return tokens, targets


@CORPORA.register("recall")
class Recall(Task):
    """Multi-query associative recall (Arora et al. 2023, "Zoology"): `pairs` keys, each with its value; then each
    key comes once more, and there its value is due.

    The lower half of the symbols are keys, the others values, and a row has each at most once among its pairs.
    Queries stand at even distances from the end of the pairs, most of them near: gap g with a probability that
    goes with g^(0.01 - 1). Between them lie random values (there: random symbols), so that a key comes only twice.

    symbols: how many there are, keys and values together.
    pairs: how many a row has.
    """

    def __init__(self, *, symbols: int = 64, pairs: int = 4):
        super().__init__(symbols)
        self.keys, self.pairs = symbols // 2, pairs
        if not 1 <= pairs <= self.keys:
            raise AblateError(
                f"data.pairs={pairs}: expected 1 to {self.keys}, for half of data.symbols={symbols} are keys"
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
        """Places for queries, every other one after the pairs."""
        return (context - 2 * self.pairs) // 2

    def _filler(self, context: int) -> int:
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
        # Without replacement, by weight: the earliest of exponential clocks that run at these rates.
        rate = np.arange(1, gaps + 1) ** (POWER - 1)
        queries = after + 2 * (-np.log1p(-for_gaps) / rate).argsort(1)[:, : self.pairs]
        tokens = np.full((len(chance), context), self.eot)
        tokens[:, 1:after:2], tokens[:, 2:after:2] = keys, values
        tokens[:, after:] = whole(for_filler, self.answers) + self.keys
        np.put_along_axis(tokens, queries, keys, axis=1)
        targets = unscored(tokens)
        np.put_along_axis(targets, queries, values, axis=1)
        return tokens, targets


@CORPORA.register("induction")
class Induction(Task):
    """A random segment, again and again (Olsson et al. 2022, "repeated random tokens"): from the second time on, the
    next symbol is due: ... A B ... A -> B.

    No symbol comes twice in a segment. Its length, `shortest` to `longest`, differs from row to row, so that it must
    be found by what the tokens are, not by how far away they stand.

    symbols: how many there are.
    shortest: the least length of a segment.
    longest: the greatest length of a segment.
    """

    def __init__(self, *, symbols: int = 32, shortest: int = 4, longest: int = 16):
        super().__init__(symbols)
        if not 1 <= shortest <= longest:
            raise AblateError(f"data.shortest={shortest}: expected 1 to data.longest={longest}")
        if longest > symbols:
            raise AblateError(f"data.longest={longest}: no symbol comes twice, and there are data.symbols={symbols}")
        self.shortest, self.longest = shortest, longest

    def check(self, context: int) -> None:
        if self.longest > context - 2:
            raise AblateError(
                f"data.longest={self.longest}: to begin again within a context of {context} tokens a segment has "
                f"{context - 2} at most; lower it or raise model.context"
            )

    def numbers(self, context: int) -> int:
        return self.symbols + 1

    def draw(self, chance: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
        segment = chance[:, 1:].argsort(1)
        length = self.shortest + whole(chance[:, :1], self.longest - self.shortest + 1)
        along = np.arange(context)
        sequence = np.take_along_axis(segment, along % length, axis=1)
        tokens = np.full_like(sequence, self.eot)
        tokens[:, 1:] = sequence[:, :-1]
        return tokens, np.where(along > length, sequence, IGNORE)


@dataclass(frozen=True, kw_only=True)
class LeakSettings(TaskSettings):
    """Validation keeps to documents, or not, as training does: that is what is measured."""

    document_mask: bool
    restart_positions: bool


@CORPORA.register("leak")
class Leak(Task):
    """A random document and the same one again, packed into a row; the symbols of the second are due.

    Who sees the first can copy it; within one document, no answer is better than chance.

    symbols: how many there are.
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
        tokens[:, 1:half] = tokens[:, half + 1 :] = whole(chance, self.symbols)
        targets = unscored(tokens)
        targets[:, half:-1] = tokens[:, half + 1 :]
        return tokens, targets
