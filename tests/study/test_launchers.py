"""Studies on Hydra's other launchers: real commands, with each run in its own process."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from training.harness import ROOT, SCALARS, summary, write_corpus

from ablate.errors import AblateError
from ablate.study.launch.launchers import check_devices, launch_all
from ablate.study.launch.progress import status_of
from ablate.study.plan.arms import Arm, Job

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.remote.max_retries=0"],
}

EXPERIMENT = """
# @package _global_
defaults:
  - override /study: default
study:
  name: norms
  question: Which norm?
  baseline: rms
  arms:
    rms: [model/norm=rmsnorm]
    layer: [model/norm=layernorm]
  seeds: [0, 1]
"""

# A user's plugin in the folder where the study is started. A file `ill` there makes two of the runs fail; a file `slow`
# makes each run five seconds longer.
PLUGIN = """
import os, pathlib, signal, time
from ablate.training.module import LanguageModel

step = LanguageModel.training_step

def training_step(module, batch, batch_idx):
    run, at = module.trainer.default_root_dir, module.trainer.global_step
    if os.path.exists("ill") and run.endswith("layer/seed_0") and at == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.path.exists("ill") and run.endswith("rms/seed_0") and at == 2:
        raise RuntimeError("out of luck")
    if os.path.exists("slow") and at == 2:
        pathlib.Path("at_work").touch()
        time.sleep(5)
    return step(module, batch, batch_idx)

LanguageModel.training_step = training_step
"""


@pytest.fixture(params=LAUNCHERS)
def launcher(request):
    module = "hydra_plugins.hydra_{}_launcher".format(request.param.split("_")[0])
    if importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install -e '.[launchers]' -c constraints.txt")
    return request.param


@pytest.fixture
def home(tmp_path):
    """A user's folder with a corpus, an experiment and a module; the command gets them by relative paths."""
    write_corpus(tmp_path / "text")
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/norms.yaml").write_text(EXPERIMENT)
    (tmp_path / "luck.py").write_text(PLUGIN)
    return tmp_path


def start(home: Path, launcher: str, *overrides: str) -> subprocess.Popen:
    tiny = [*SCALARS, "model.dim=16", "model.depth=1", "data=text", "data.path=text", "data.vocab_size=300"]
    tiny += ["data.batch_size=4", "data.val_fraction=0.2", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    tiny += ["trainer.accelerator=cpu", "trainer.precision=32-true", "sample=null"]
    users = [f"hydra.searchpath=[file://{home}/conf]", "experiment=norms", "plugins=[luck]"]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"STUDY_OF_A_TEST": str(home), "RAY_AUTH_MODE": "disabled"}
    if launcher == "submitit_local":  # which starts all runs at once
        environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *tiny, *users, *LAUNCHERS[launcher], *overrides],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def statuses(home: Path) -> dict[str, str]:
    runs = home / "runs/norms/runs"
    return {str(p.parent.relative_to(runs)): summary(p.parent)["status"] for p in runs.glob("*/*/summary.json")}


def pairs(home: Path) -> int:
    return json.loads((home / "runs/norms/report/verdict.json").read_text())["arms"]["layer"]["pairs"]


def processes(home: Path) -> list[str]:
    """The command lines of all processes that the command started, with orphans."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"STUDY_OF_A_TEST={home}\0".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def write_status(job: Job, status: str) -> None:
    job.path.mkdir(parents=True, exist_ok=True)
    (job.path / "summary.json").write_text(json.dumps({"status": status}))


def pool(jobs: dict[str, Job], deadly: set[str], launched: list[list[str]]):
    """Launches two jobs at once; with a deadly one both die, and the launcher gives up."""

    def launch(overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        names = [next(o.split("'")[1] for o in given if "study.arm" in o) for given in overrides]
        launched.append(names)
        for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
            for name in pair:
                write_status(jobs[name], "running" if deadly & set(pair) else "finished")
            if deadly & set(pair):
                raise RuntimeError("a process died")
        return [JobReturn(status=JobStatus.COMPLETED) for _ in names]

    return launch


@pytest.fixture
def jobs(tmp_path):
    return {name: Job(Arm(name, [], OmegaConf.create(), None), 0, tmp_path / name) for name in "abcdef"}


def test_a_job_that_kills_the_pool_is_found_and_all_others_are_run(jobs):
    launched = []
    returns = launch_all(pool(jobs, {"c"}, launched), list(jobs.values()), 0, "joblib")
    assert launched == [list("abcdef"), list("ef"), ["c"], ["d"]], "those that had begun come last, each alone"
    assert [found.status == JobStatus.FAILED for found in returns] == [name == "c" for name in jobs]
    assert {name: status_of(job.path) for name, job in jobs.items() if name != "c"} == dict.fromkeys(
        "abdef", "finished"
    )


def test_a_launcher_that_begins_nothing_is_the_users_to_mend(jobs):
    def launch(overrides, initial_job_idx):
        raise RuntimeError("sbatch: command not found")

    with pytest.raises(AblateError, match="hydra/launcher=slurm: sbatch: command not found"):
        launch_all(launch, list(jobs.values()), 0, "slurm")


@pytest.mark.parametrize("launcher, devices, refused", [("joblib", 2, True), ("joblib", 1, False), ("basic", 2, False)])
def test_a_run_of_several_processes_is_the_basic_launchers(launcher, devices, refused):
    hydra = OmegaConf.create({"runtime": {"choices": {"hydra/launcher": launcher}}})
    arms = [Arm("rms", [], OmegaConf.create({"trainer": {"devices": devices, "num_nodes": 1}}), None)]
    with pytest.raises(AblateError, match=r"trainer\.devices=1") if refused else nullcontext():
        check_devices(hydra, arms)


@pytest.mark.slow
def test_a_study_goes_on_when_runs_fail_and_when_their_process_dies(launcher, home):
    (home / "ill").touch()
    status, out = finish(start(home, launcher))
    assert status == 1 and "2 of 4 runs failed; run the same command" in out, out
    assert "rms, seed 0: failed: RuntimeError: out of luck" in out and "layer, seed 0: failed: " in out
    there = {"rms/seed_0": "failed", "layer/seed_0": "running", "rms/seed_1": "finished", "layer/seed_1": "finished"}
    assert statuses(home) == there and pairs(home) == 1
    assert "out of luck" in (home / "runs/norms/output/runs/rms/seed_0.txt").read_text(), "each run's output has a file"
    assert "step 2/4" not in out
    if launcher != "submitit_local":
        threads = summary(home / "runs/norms/runs/rms/seed_1")["machine"]["threads"]
        assert threads <= max(1, os.cpu_count() // 2), "two runs at once share the cores"

    (home / "ill").unlink()
    status, out = finish(start(home, launcher))
    assert status == 0 and "study norms: 2 of 4 runs" in out and "study norms: 4 of 4 runs" in out, out
    assert set(statuses(home).values()) == {"finished"} and pairs(home) == 2

    status, out = finish(start(home, launcher))
    assert status == 0 and "#" not in out, "what has finished is not run again"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_sigterm_leaves_no_process_behind_and_the_same_command_goes_on(launcher, home):
    (home / "slow").touch()
    process = start(home, launcher, "study.seeds=[0]")
    until = time.monotonic() + 200
    while not (home / "at_work").exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    status, out = finish(process)
    assert status != 0 and "the study was stopped; run the same command again to continue" in out, out
    until = time.monotonic() + 10
    while processes(home) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes(home)
    assert "finished" not in statuses(home).values()

    (home / "slow").unlink()
    status, out = finish(start(home, launcher, "study.seeds=[0]"))
    assert status == 0 and statuses(home) == {"rms/seed_0": "finished", "layer/seed_0": "finished"}, out
