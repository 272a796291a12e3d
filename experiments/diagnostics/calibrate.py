"""Measures the accuracy of the diagnostic tasks: python experiments/diagnostics/calibrate.py --seeds 6 --jobs 2

An arm is `train.py` with its overrides and the defaults of the task. The results go to results.json beside this file,
which is written after every run.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from ablate.files import read_json, write_json

HERE = Path(__file__).parent
ARMS = {
    "copy, full": ["data=copy"],
    "copy, local, within reach": ["data=copy", "model/pattern=local", "model.pattern.window=33"],
    "copy, local, out of reach": ["data=copy", "model/pattern=local"],
    "copy, alternating": ["data=copy", "model/pattern=alternating"],
    "recall, full": ["data=recall"],
    "recall, local": ["data=recall", "model/pattern=local"],
    "induction, two layers": ["data=induction"],
    "induction, one layer": ["data=induction", "model.depth=1"],
    "leak, document mask": ["data=leak"],
    "leak, no document mask": ["data=leak", "data.document_mask=false"],
}


def run(arm: str, seed: int) -> dict:
    """Trains one run in this process; returns its summary, and the seconds that it took."""
    from ablate.compose import compose_config
    from ablate.run import read_summary
    from ablate.training import job

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        overrides = [*ARMS[arm], f"seed={seed}", f"run_dir={folder}/run", "trainer.accelerator=cpu"]
        job.train(compose_config("train", overrides), overrides)
        return read_summary(Path(folder) / "run") | {"seconds": time.perf_counter() - start}


def start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=1, help="how many runs at a time; they share the cores")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--only", default="", help="only arms whose name begins with this; the others stay as recorded")
    options = parser.parse_args()
    arms = [arm for arm in ARMS if arm.startswith(options.only)]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    results = {"date": time.strftime("%Y-%m-%d"), "seeds": options.seeds, "cpu": cpu(), "threads": threads}
    recorded = read_json(options.out)["arms"] if options.only else {}
    results["arms"] = {arm: row for arm, row in recorded.items() if arm not in arms}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawn, start_worker, (threads,)) as pool:
        runs = {pool.submit(run, arm, seed): (arm, seed) for seed in range(options.seeds) for arm in arms}
        for done in as_completed(runs):
            (arm, seed), summary = runs[done], done.result()
            results |= {"torch": summary["versions"]["torch"], "precision": summary["precision"]}
            row = {"overrides": ARMS[arm], "steps": summary["steps"], "chance": summary["corpus"]["chance"]}
            row = results["arms"].setdefault(arm, row | {"accuracy": {}, "seconds": {}})
            row["accuracy"][str(seed)] = round(summary["metrics"]["val/accuracy"], 4)
            row["seconds"][str(seed)] = round(summary["seconds"], 1)
            write_json(options.out, results)
            print(f"{arm}, seed {seed}: {row['accuracy'][str(seed)]:.4f}", flush=True)


def cpu() -> str:
    """The name of the processor, or of its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
