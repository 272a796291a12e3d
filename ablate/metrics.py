"""The metrics, one row each. Logs, the terminal, verdicts and reports read name, unit and direction from here.

A validation metric is a function of the sums over the validation set; its row is all that it costs:

    METRICS.add(Metric("val/perplexity", "tokens", of=lambda val: (val.nats / val.targets).exp()))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ablate.errors import AblateError

Data = Literal["text", "task"]


@dataclass(frozen=True)
class Sums:
    """Sums over the whole validation set, as scalar tensors (or plain numbers).

    nats: the loss of all scored targets together. targets: the number of scored targets. right: how many of them have
    the largest logit; counted only for tasks. bytes: UTF-8 bytes of the text; None for a task.
    """

    nats: Any
    targets: Any
    right: Any
    bytes: Any


@dataclass(frozen=True)
class Metric:
    """One metric.

    name: as it is logged. unit: in words, "" for none. rising: whether more is better.
    of: computes it from the sums over the validation set; None: training logs it.
    data: the kind of data it is logged for; None: both.
    """

    name: str
    unit: str = ""
    rising: bool = False
    of: Callable[[Sums], Any] | None = None
    data: Data | None = None

    @property
    def titled(self) -> str:
        """val/loss, nats per token"""
        return f"{self.name}, {self.unit}" if self.unit else self.name


class Metrics:
    """The rows, by name, in the order in which they are shown."""

    def __init__(self, *rows: Metric):
        self._rows = {row.name: row for row in rows}

    def add(self, row: Metric) -> None:
        """Adds a row; a module that is imported twice may add its row twice.

        Raises:
            AblateError: a different metric has that name.
        """
        known = self._rows.setdefault(row.name, row)
        if _described(known) != _described(row):
            raise AblateError(f"metrics: there is another metric '{row.name}' already; choose another name")

    def __getitem__(self, name: str) -> Metric:
        """The row of that name. A metric without a row, such as a callback's, has no unit, and less of it is better."""
        return self._rows.get(name) or Metric(name)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def of_validation(self, data: Data | None = None) -> list[Metric]:
        """The validation metrics, for all data or for one kind."""
        return [row for row in self._rows.values() if row.of is not None and (not data or row.data in (None, data))]

    def logged(self, data: Data) -> list[str]:
        """The names of all metrics that a run on such data logs."""
        return [row.name for row in self._rows.values() if row.data in (None, data)]


def _described(row: Metric) -> tuple[object, ...]:
    return row.unit, row.rising, row.data, getattr(row.of, "__module__", None)


METRICS = Metrics(
    Metric("val/loss", "nats per token", of=lambda val: val.nats / val.targets),
    Metric("val/bpb", "bits per byte", of=lambda val: val.nats / math.log(2) / val.bytes, data="text"),
    Metric("val/accuracy", "", rising=True, of=lambda val: val.right / val.targets, data="task"),
    Metric("train/loss", "nats per token"),
    Metric("train/grad_norm"),
    Metric("train/tokens_per_s", "tokens/s", rising=True),
    Metric("train/mfu", rising=True),
)
