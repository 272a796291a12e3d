"""A study that was never run: plausible records of three arms, and the verdict on them."""

import csv
import math
import random
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import ablate
from ablate.study.question import Claim, Study
from ablate.study.records import RunRecord

LOSSES = {"rope": 3.412, "learned": 3.428, "none": 3.497}
RATES = {"rope": 24_000.0, "learned": 25_100.0, "none": 25_600.0}
STEPS, EVERY, TOKENS_A_STEP, CONTEXT = 400, 40, 16 * 256, 256
EDGES = [0, 16, 32, 64, 128, 192, 256, 384, 512]
SEEDS = [0, 1, 2, 3, 4, 5]
MODEL = ablate.build("gqa_rope", overrides=["model.dim=32", "model.depth=4"]).config.to_dict()


def study(arms: tuple[str, ...] = tuple(LOSSES), seeds: list[int] = SEEDS, **options: Any) -> Study:
    """The first arm is the baseline."""
    claims = {"learned": Claim(expect="not worse", source="Su et al. 2021"), "none": Claim(expect="worse")}
    node = {
        "name": "position",
        "question": "Do rotary positions give a lower loss than learned ones?",
        "baseline": arms[0],
        "arms": {arm: [f"model/position={arm}"] for arm in arms},
        "seeds": seeds,
        "match": "params",
        "claims": {arm: claim for arm, claim in claims.items() if arm in arms},
    }
    return Study(**(node | options))


def record(folder: Path, arm: str, seed: int, *, loss: float | None = None, status: str = "finished") -> RunRecord:
    """A run with curves that fall to `loss`; one that diverged stops half way."""
    noise = random.Random(f"{arm}{seed}")
    of_seed = random.Random(seed).gauss(0, 0.01)
    final = (LOSSES.get(arm, 3.45) if loss is None else loss) + of_seed + noise.gauss(0, 0.004)
    path = folder / f"{arm[:8].replace('/', '_').replace('<', '_')}-{seed}"
    path.mkdir(parents=True, exist_ok=True)
    _write_curves(path, final, STEPS if status == "finished" else STEPS // 2, status)
    beyond = {"rope": 0.12, "none": 0.05}.get(arm, 1.6)
    rate = RATES.get(arm, 24_500.0) * (1 + noise.gauss(0, 0.01))
    total = 1_480_000 + 1000 * len(arm)
    summary = {
        "status": status,
        "seed": seed,
        "training_flops_per_token": 9.3e6,
        "budget": {
            "total": total,
            "active": total,
            "non_embedding": total - 262_144,
            "flops_per_token": 3.1e6,
            "training_flops_per_token": 9.3e6,
            "kv_bytes_per_token": 1024,
        },
        "corpus": {"name": "stdlib", "fingerprint": "c06177d9e15f8f05"},
        "precision": "32-true",
        "command": "train.py -m experiment=position",
        "versions": {"python": "3.12.4", "torch": "2.13.0+cpu"},
        "machine": {"platform": "Linux-6.1.0-x86_64-with-glibc2.36", "threads": 2, "gpu": None},
        "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "steps": STEPS if status == "finished" else STEPS // 2,
        "wall_s": STEPS * TOKENS_A_STEP / rate + 9,
    }
    if status == "finished":
        summary |= {
            "metrics": {"val/loss": final, "val/bpb": final / 1.43, "train/loss": final - 0.05},
            "speed": {
                "train_tokens_per_s": rate,
                "train_mfu": 0.22,
                "generation": {"cached_tokens_per_s": 498.9, "cache_bytes": 16128},
            },
            "memory": {"peak_rss_bytes": 827_211_776},
            "by_position": {
                "context": CONTEXT,
                "edges": EDGES,
                "loss": [
                    final + 0.9 / (1 + middle / 20) - 0.05 + beyond * max(0.0, middle / CONTEXT - 1)
                    for middle in (sum(pair) / 2 for pair in pairwise(EDGES))
                ],
            },
        }
    return RunRecord(path, arm, seed, status, _config(path, arm, seed), summary)


def _write_curves(path: Path, final: float, steps: int, status: str) -> None:
    with (path / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/loss"])
        writer.writeheader()
        for step in range(9, steps, 10):
            loss = final + 4.2 * math.exp(-step / 45) + 0.35 * (1 - step / STEPS)
            if status == "diverged" and step > steps - 40:
                loss = math.nan if step == steps - 1 else loss + (step - steps + 40) ** 2 / 100
            val = {"val/loss": loss} if (step + 1) % EVERY == 0 else {}
            writer.writerow({"step": step, "train/loss": loss - 0.05 + random.Random(step).gauss(0, 0.03), **val})


def _config(path: Path, arm: str, seed: int) -> dict[str, Any]:
    model = deepcopy(MODEL) | {"context": CONTEXT, "position": {"name": arm if arm in LOSSES else "rope"}}
    if arm == "learned":
        model["ffn"] = model["ffn"] | {"hidden": 88}
    return {
        "model": model,
        "optimizer": {"lr": 0.002, "betas": [0.9, 0.95]},
        "data": {"batch_size": 16, "context": 256},
        "trainer": {"accumulate_grad_batches": 1, "devices": 1, "num_nodes": 1, "max_steps": STEPS},
        "logger": {"csv": {"path": str(path / "metrics.csv")}},
        "callbacks": {"checkpoint": {"dirpath": str(path / "checkpoints")}},
        "seed": seed,
        "run_dir": str(path),
        "study": {"arm": arm},
    }


def records_of(folder: Path, asked: Study) -> list[RunRecord]:
    return [record(folder, arm, seed) for arm in asked.arms for seed in asked.seeds]


def tuning() -> dict[str, Any]:
    """The node `tuning` of a verdict. The arm without positions diverges at the largest rate."""
    grid = [0.0003, 0.001, 0.003, 0.01]
    shape = {0.0003: 0.3, 0.001: 0.08, 0.003: 0.0, 0.01: 0.12}
    arms = {}
    for arm, loss in LOSSES.items():
        points = [[lr, seed, loss + shape[lr] + 0.004 * (seed - 100)] for lr in grid for seed in (100, 101)]
        arms[arm] = {"points": points, "chosen": 0.003, "edge": False}
    arms["none"]["points"][-1][2] = None
    arms["learned"] |= {"chosen": 0.01, "edge": True}
    return {"grid": grid, "arms": arms}
