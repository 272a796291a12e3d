"""`python benchmark.py task=training`: from a configuration to a table and `training.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table

from ablate import check
from ablate.benchmark.options import listed
from ablate.benchmark.peers import check_peer
from ablate.benchmark.training.measure import Contestant, Setting, ours, packed_batch, time_steps, with_rates
from ablate.benchmark.training.peers import transformers_llama
from ablate.cli import console
from ablate.compose import plain
from ablate.files import make_folder, write_json
from ablate.hardware import resolve_accelerator
from ablate.model.config import DecoderConfig, load_plugins
from ablate.page.table import Cell, Column, filled
from ablate.training.optimizer import OPTIMIZERS
from ablate.training.provenance import provenance
from ablate.training.quiet import quiet
from ablate.words import number

PEER_PRECISIONS = ("32-true", "bf16-mixed")  # supported by our bare loop around transformers
PRECISIONS = (*PEER_PRECISIONS, "bf16-true", "16-mixed", "16-true", "64-true")  # supported by Lightning


def benchmark_training(config: DictConfig) -> None:
    """Measures what `conf/task/training.yaml` and the overrides describe; prints a table, writes `training.json`.

    Raises:
        AblateError: the user made a mistake.
    """
    quiet()
    load_plugins(config.plugins)
    model = DecoderConfig.from_dict(plain(config.model))
    options = Options.of(config, model.context)
    if options.peers:
        check_peer(model)
    make_folder(options.out, "out")
    setting = Setting(
        model,
        OPTIMIZERS.build(plain(config.optimizer)),
        packed_batch(model, options.batch_size, options.documents_per_row, options.seed),
        options.accelerator,
        options.steps,
        options.seed,
    )
    terminal = console()
    rows = with_rates(time_steps(_contestants(setting, options), options.rounds, terminal.print), setting)
    terminal.print(_table(rows))
    file = options.out / "training.json"
    write_json(
        file,
        {
            "task": "training",
            "model": model.to_dict(),
            "batch": [options.batch_size, model.context],
            "rounds": options.rounds,
            "steps_per_round": options.steps,
            "results": rows,
            "gpu": torch.cuda.get_device_name() if options.accelerator == "gpu" else None,
            **provenance(),
        },
    )
    terminal.print(f"written to {file}")


@dataclass(frozen=True)
class Options:
    """What is measured and how, apart from the model and the optimiser."""

    batch_size: int
    documents_per_row: int
    precisions: list[str]
    compile: list[bool]
    peers: bool
    steps: int
    rounds: int
    seed: int
    accelerator: str
    out: Path

    @classmethod
    def of(cls, config: DictConfig, context: int) -> "Options":
        """From `conf/benchmark.yaml` and the overrides.

        Raises:
            AblateError: an option of the wrong type or out of range, or a device that the machine does not have.
        """
        peers = check.switch("peers", config.peers)
        valid = PEER_PRECISIONS if peers else PRECISIONS
        return cls(
            batch_size=check.whole("batch_size", config.batch_size, 1),
            documents_per_row=check.whole("documents_per_row", config.documents_per_row, 1, context),
            precisions=listed(config, "precisions", lambda key, value: check.choice(key, value, valid), "[32-true]"),
            compile=listed(config, "compile", check.switch, "[false,true]"),
            peers=peers,
            steps=check.whole("steps", config.steps, 1),
            rounds=check.whole("rounds", config.rounds, 1),
            seed=check.seed("seed", config.seed),
            accelerator=resolve_accelerator(config.accelerator, "accelerator"),
            out=Path(check.text("out", config.out)),
        )


def _contestants(setting: Setting, options: Options) -> list[Contestant]:
    contestants = [ours(setting, precision, compile) for precision in options.precisions for compile in options.compile]
    if options.peers:
        contestants += [
            transformers_llama(setting, precision, masked)
            for precision in options.precisions
            for masked in (False, True)
        ]
    return contestants


Row = dict[str, Any]
COLUMNS: list[Column[Row]] = [
    Column("", lambda row: Cell(row["name"])),
    Column("precision", lambda row: Cell(row["precision"])),
    Column("compiled", lambda row: Cell("yes" if row["compile"] else "no")),
    Column("ms per step", lambda row: Cell(number(row["step_ms"]))),
    Column("min – max", lambda row: Cell(f"{number(row['step_ms_min'])} – {number(row['step_ms_max'])}")),
    Column("tokens/s", lambda row: Cell(number(row["tokens_per_s"]))),
    Column("MFU, %", lambda row: Cell(number(100 * row["mfu"]))),
    Column(
        "x transformers", lambda row: Cell(number(row["times_transformers"]) if "times_transformers" in row else "")
    ),
]


def _table(rows: list[Row]) -> Table:
    """Rows by precision, the fastest first."""
    titles, cells = filled(COLUMNS, sorted(rows, key=lambda row: (row["precision"], row["step_ms"])))
    table = Table(*titles)
    for row in cells:
        table.add_row(*(cell.text for cell in row))
    return table
