"""What each run may spend: as many tokens as the baseline, as many training FLOPs, or as many seconds."""

import json
from hashlib import sha256
from pathlib import Path

from ablate.accounting import tokens_per_step
from ablate.errors import AblateError
from ablate.files import make_folder, write_json
from ablate.model.config import DecoderConfig
from ablate.study.plan.arms import Arm, Compose
from ablate.study.plan.match import budget_of
from ablate.study.question import Study
from ablate.study.records import settings
from ablate.training.optimizer import OPTIMIZERS
from ablate.training.parts import read_data


def hold(study: Study, arms: list[Arm], compose: Compose, shared: list[str], folder: Path) -> list[Arm]:
    """The arms, each with the number of steps that costs what the baseline's cost.

    folder: the study's, where the seconds of a step are kept, so that the same command goes on with the same steps.
    """
    if study.hold == "tokens":
        cost = {arm.name: tokens_per_step(arm.config) for arm in arms}
    else:
        cost = _flops(arms) if study.hold == "flops" else _kept_seconds(arms, folder / "seconds_a_step.json")
    first = arms[0].config["trainer"]["max_steps"]
    changed = [arms[0]]
    for arm in arms[1:]:
        steps = round(first * cost[arms[0].name] / cost[arm.name])
        if steps < 1:
            raise AblateError(f"study.hold={study.hold}: one step of '{arm.name}' costs more than the whole baseline")
        if steps != first:
            arm = arm.with_overrides([f"trainer.max_steps={steps}"], compose, shared)
        changed.append(arm)
    return changed


def _flops(arms: list[Arm]) -> dict[str, float]:
    """Training FLOPs of one optimiser step, on the corpus as each arm packs it."""
    cost = {}
    for arm in arms:
        data, corpus = read_data(arm.config["data"])
        rows = corpus.open(data, arm.config["seed"], Path(arm.config["paths"]["data"])).train
        counted = budget_of(arm.config["model"], rows.pieces(data.max_rows))
        cost[arm.name] = counted.training_flops_per_token * tokens_per_step(arm.config)
    return cost


def _kept_seconds(arms: list[Arm], file: Path) -> dict[str, float]:
    """Of a step, as measured when an arm came to the study; one that comes later is timed beside the baseline."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    key = {arm.name: sha256(json.dumps(settings(arm.config), sort_keys=True).encode()).hexdigest() for arm in arms}
    first, *others = arms
    new = [arm for arm in others if key[arm.name] not in kept] if key[first.name] in kept else arms
    if new:
        timed = _seconds([first, *(arm for arm in new if arm is not first)])
        pace = kept.get(key[first.name], timed[first.name]) / timed[first.name]
        kept |= {key[arm.name]: timed[arm.name] * pace for arm in new}
        make_folder(file.parent, "run_dir")
        write_json(file, kept)
    return {arm.name: kept[key[arm.name]] for arm in arms}


def _seconds(arms: list[Arm], rounds: int = 3) -> dict[str, float]:
    """Seconds of one optimiser step, measured here and now, in turn, with all that a run does around it."""
    from ablate.benchmark.training.measure import compare

    print(f"study.hold=seconds: timing the steps of {len(arms)} arms in turn", flush=True)
    rows = compare([_contestant(arm) for arm in arms], rounds, say=lambda line: None)
    return {
        arm.name: row["step_ms"] / 1e3 * arm.config["trainer"]["accumulate_grad_batches"]
        for arm, row in zip(arms, rows, strict=True)
    }


def _contestant(arm: Arm):
    from ablate.benchmark.training.measure import Setting, ours, packed_batch
    from ablate.hardware import resolve_accelerator, resolve_precision

    config = DecoderConfig.from_dict(arm.config["model"])
    accelerator = resolve_accelerator(arm.config["trainer"]["accelerator"])
    precision = resolve_precision(arm.config["trainer"]["precision"], accelerator)
    batch = packed_batch(config, arm.config["data"]["batch_size"], documents_per_row=4, seed=0)
    optimizer = OPTIMIZERS.build(arm.config["optimizer"])
    return ours(Setting(config, optimizer, batch, accelerator, steps=8, seed=0), precision, arm.config["compile"])
