"""metrics.csv: the curves of one run, one row per logged step."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from ablate.errors import AblateError
from ablate.files import replacing


class Curves(Logger):
    """Keeps all rows in memory and replaces the whole file after each validation.

    When a run is resumed, Lightning's CSVLogger deletes the earlier curves; this logger keeps the rows before the
    checkpoint's step (`resume_from`).
    """

    def __init__(self, path: str):
        super().__init__()
        self._path = Path(path)
        self._rows: dict[int, dict[str, float]] = {}

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the hyperparameters are in the run folder's config.yaml."""

    def resume_from(self, step: int) -> None:
        """Loads the rows before `step`; later ones were lost and will be logged again.

        Raises:
            AblateError: the file is damaged.
        """
        if not self._path.is_file():
            return
        try:
            with self._path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    number = int(row.pop("step"))
                    if number < step:
                        self._rows[number] = {key: float(value) for key, value in row.items() if value}
        except (ValueError, KeyError, TypeError) as error:
            raise AblateError(
                f"{self._path}: is damaged: {error}; repair it or move it away, and resume again"
            ) from error

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(int(step or 0), {})
        row.update({key: float(value) for key, value in metrics.items() if key != "epoch"})
        if any(key.startswith("val/") for key in metrics):
            self.save()

    def last(self) -> dict[str, float]:
        """The last value of each metric."""
        return {key: value for _, row in sorted(self._rows.items()) for key, value in row.items()}

    def save(self) -> None:
        if not self._rows:
            return
        columns = sorted({key for row in self._rows.values() for key in row})
        with replacing(self._path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))

    def finalize(self, status: str) -> None:
        self.save()
