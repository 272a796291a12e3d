"""How many steps each arm trains, so that its runs cost what the baseline's cost: tokens, training FLOPs or seconds."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from ablate.accounting import tokens_per_step
from ablate.benchmark.training import measure
from ablate.errors import AblateError
from ablate.files import make_folder, read_json, write_json
from ablate.overrides import settings
from ablate.study.plan.arms import Arm, naming
from ablate.study.plan.match import budget_of
from ablate.study.question import Study
from ablate.training.parts import assemble


def hold(study: Study, arms: list[Arm], pieces: Mapping[str, Mapping[int, int]], folder: Path) -> list[Arm]:
    """The arms, each with the number of steps that costs as much as the baseline's steps.

    pieces: arm -> the pieces of its training rows; read only with hold=flops.
    folder: the study's; it keeps the measured seconds, so that repeating the command gives the same numbers of steps.

    Raises:
        AblateError: one step of an arm costs more than all of the baseline's.
    """
    if study.hold == "tokens":
        cost = {arm.name: tokens_per_step(arm.config) for arm in arms}
    elif study.hold == "flops":
        cost = {arm.name: _flops(arm, pieces[arm.name]) for arm in arms}
    else:
        cost = _kept_seconds(arms, folder / "seconds_a_step.json")
    baseline, *others = arms
    baseline_steps = baseline.config["trainer"]["max_steps"]
    held = [baseline]
    for arm in others:
        steps = round(baseline_steps * cost[baseline.name] / cost[arm.name])
        if steps < 1:
            raise AblateError(
                f"study.hold={study.hold}: one step of '{arm.name}' costs more than all of the baseline's"
            )
        held.append(arm if steps == baseline_steps else arm.with_override(f"trainer.max_steps={steps}"))
    return held


def _flops(arm: Arm, pieces: Mapping[int, int]) -> float:
    """Training FLOPs of one optimiser step, on the corpus as the arm packs it."""
    return budget_of(arm.config["model"], pieces).training_flops_per_token * tokens_per_step(arm.config)


def _kept_seconds(arms: list[Arm], file: Path) -> dict[str, float]:
    """Arm -> seconds of one step, as measured when the arm joined the study.

    An arm that joins later is timed beside the baseline, and its seconds are multiplied by the baseline's seconds as
    first measured over those measured now.
    """
    try:
        kept = read_json(file)
    except AblateError:
        kept = {}
    key = {arm.name: sha256(json.dumps(settings(arm.config), sort_keys=True).encode()).hexdigest() for arm in arms}
    baseline, *others = arms
    known = key[baseline.name] in kept
    new = [arm for arm in others if not known or key[arm.name] not in kept]
    if new:
        measured = _seconds([baseline, *new])
        before = kept.setdefault(key[baseline.name], measured[baseline.name])
        kept |= {key[arm.name]: measured[arm.name] * before / measured[baseline.name] for arm in new}
        make_folder(file.parent, "run_dir")
        write_json(file, kept)
    return {arm.name: kept[key[arm.name]] for arm in arms}


def _seconds(arms: list[Arm], rounds: int = 3) -> dict[str, float]:
    """Arm -> seconds of one optimiser step, with callbacks and logging; the arms are timed in turn on this machine."""
    print(f"study.hold=seconds: timing the steps of {len(arms)} arms in turn", flush=True)
    rows = measure.time_steps([_contestant(arm) for arm in arms], rounds, say=lambda line: None)
    return {
        arm.name: row["step_ms"] / 1e3 * arm.config["trainer"]["accumulate_grad_batches"]
        for arm, row in zip(arms, rows, strict=True)
    }


def _contestant(arm: Arm) -> measure.Contestant:
    with naming(arm.name):
        parts = assemble(arm.node, device="meta")
    config = parts.decoder.config
    batch = measure.packed_batch(config, parts.data.batch_size, documents_per_row=4, seed=0)
    setting = measure.Setting(config, parts.optimizer, batch, parts.accelerator, steps=8, seed=0)
    return measure.ours(setting, parts.precision, arm.config["compile"])
