"""Several processes train as one: the same rows, losses and weights, one folder, one output, one exit."""

import signal
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ablate.training.datamodule import RowData

from .harness import (
    STEPS,
    Outcome,
    Place,
    assert_refused,
    assert_same,
    assert_same_to_rounding,
    curves,
    summary,
    weights,
    with_plugin,
)

DDP = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4"]


class Rows:
    """Seven rows; a batch is its ids."""

    size, targets, bytes = 7, 7, 7

    def __getitem__(self, ids):
        return torch.tensor(ids)


def batches(split: str, batch_size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """The first batches of a rank, from step 3 on."""
    data = RowData(SimpleNamespace(train=Rows(), val=Rows()), batch_size, seed=0, workers=0, max_rows=None)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, global_step=3, accumulate_grad_batches=2, strategy=device
    )
    return [batch.tolist() for batch in islice(getattr(data, f"{split}_dataloader")(), 10)]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("split", ["train", "val"])
def test_ranks_take_together_the_rows_of_one_process(split, world):
    ranks = [batches(split, 2, rank, world) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == batches(split, 2 * world)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_validated_once(world):
    ids = [i for rank in range(world) for batch in batches("val", 2, rank, world) for i in batch]
    assert sorted(i for i in ids if i >= 0) == list(range(7))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.strategy=ddp_spawn"], ["trainer.strategy='ddp_spawn'", "auto, ddp, fsdp"]),
        (["trainer.devices=0"], ["trainer.devices=0", "at least 1"]),
        (["trainer.devices=auto"], ["trainer.devices='auto'", "whole number"]),
        (["trainer.num_nodes=2"], ["run_dir=null", "set run_dir=..."]),
        (["trainer.devices=3", "data.batch_size=80"], ["fewer than one batch", "240 x 32"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(command, place, overrides, said):
    assert_refused(command("train.py", *place.overrides, *overrides), *said)
    assert not place.folders()


def test_torchrun_must_start_as_many_processes_as_the_run_has(command, place, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for devices in (1, 2):
        outcome = command("train.py", *place.overrides, f"trainer.devices={devices}")
        assert_refused(outcome, f"trainer.devices={devices}", "torchrun started 4")


# --- real processes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(run, shared, tmp_path_factory) -> tuple[Place, Path, Outcome]:
    """A run of two processes that was never stopped. Rows have unequal numbers of targets."""
    place = Place(shared.corpus, tmp_path_factory.mktemp("two"), shared.data)
    path = place.runs / "straight"
    outcome = run("train.py", *place.overrides, *DDP, "data.packing=padded", f"run_dir={path}")
    assert outcome.status == 0, outcome.err
    return place, path, outcome


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_batch(two, place):
    one = place.train("data.batch_size=8", "data.packing=padded")
    _, path, outcome = two
    assert len(curves(path)) == STEPS
    assert_same_to_rounding(path, one)
    assert summary(path)["status"] == "finished"
    assert outcome.err == ""
    assert outcome.out.count("run folder") == 2  # once before, once after
    assert f"{STEPS} steps of 256 tokens, 32-true on 2 x cpu" in outcome.out


@pytest.mark.slow
def test_experts_are_balanced_over_all_ranks(run, place, tmp_path):
    moe = ["model/ffn=moe", "model.ffn.bias_update=0.1", "model.ffn.balance_loss=0", "trainer.max_steps=3"]
    moe += ["trainer.accumulate_grad_batches=2"]
    one = place.train(*moe, "data.batch_size=8")
    outcome = run("train.py", *place.overrides, *DDP, *moe, f"run_dir={tmp_path / 'moe'}")
    assert outcome.status == 0, outcome.err
    assert_same_to_rounding(tmp_path / "moe", one)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_bit_for_bit(run, two, tmp_path, rank):
    place, straight, _ = two
    path = place.runs / f"stopped-{rank}"
    plugins = with_plugin(tmp_path, rank, "os.kill(os.getpid(), signal.SIGTERM)")
    words = [*place.overrides, *DDP, "data.packing=padded", "plugins=[ranks_plugin]", f"run_dir={path}"]
    stopped = run("train.py", *words, plugins=plugins)
    assert (stopped.status, stopped.err) == (128 + signal.SIGTERM, "")
    assert stopped.out.count("stopped by SIGTERM; to continue") == 1
    assert (summary(path)["status"], summary(path)["steps"]) == ("interrupted", 5)
    resumed = run("train.py", f"resume={path}", "plugins=[]")
    assert (resumed.status, resumed.err) == (0, "")
    assert_same(path, straight)


@pytest.mark.slow
def test_a_run_goes_on_in_one_process_with_the_same_rows(run, two, tmp_path):
    place, straight, _ = two
    plugins = with_plugin(tmp_path, 0, "os.kill(os.getpid(), signal.SIGTERM)")
    words = [*place.overrides, *DDP, "data.packing=padded", "plugins=[ranks_plugin]", f"run_dir={tmp_path / 'run'}"]
    run("train.py", *words, plugins=plugins)
    one = ["trainer.devices=1", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=2", "plugins=[]"]
    assert run("train.py", f"resume={tmp_path / 'run'}", *one).status == 0
    values = [summary(path)["metrics"]["val/loss"] for path in (tmp_path / "run", straight)]
    assert values[0] == pytest.approx(values[1], rel=1e-2)  # gradients of unequal batches are averaged as equals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", ["error: rank 1 was ended by SIGKILL"]),
        ("raise AblateError('no disk')", ["error: rank 1: no disk", "error: rank 1 ended with exit status 1"]),
    ],
)
def test_a_rank_that_dies_ends_the_run(run, place, tmp_path, action, said):
    plugins = with_plugin(tmp_path, 1, action)
    words = [*place.overrides, *DDP, "plugins=[ranks_plugin]", f"run_dir={tmp_path / 'run'}"]
    outcome = run("train.py", *words, plugins=plugins)
    assert outcome.status == 1
    lines = outcome.err.splitlines()
    assert len(lines) == len(said), outcome.err
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(start)
    assert f"resume={tmp_path / 'run'}" in lines[-1]
    assert summary(tmp_path / "run")["status"] == "failed"


@pytest.mark.slow
def test_a_rank_that_cannot_start_ends_the_run(run, place, tmp_path):
    (tmp_path / "absent.py").write_text("import os\nif os.environ.get('LOCAL_RANK') == '1':\n    os._exit(7)\n")
    words = [*place.overrides, *DDP, "plugins=[absent]", f"run_dir={tmp_path / 'run'}"]
    outcome = run("train.py", *words, plugins=tmp_path)
    assert_refused(outcome, "rank 1 ended with exit status 7", f"resume={tmp_path / 'run'}")


@pytest.mark.slow
def test_a_run_that_diverges_says_so_once(run, place, tmp_path):
    words = [
        *place.overrides,
        *DDP,
        "optimizer.lr=1e30",
        "trainer.gradient_clip_val=null",
        f"run_dir={tmp_path / 'run'}",
    ]
    outcome = run("train.py", *words)
    assert_refused(outcome, "the run diverged", "lower optimizer.lr")
    assert summary(tmp_path / "run")["status"] == "diverged"


@pytest.mark.slow
def test_a_sweep_starts_ranks_for_each_of_its_jobs(run, place):
    words = [*place.overrides, *DDP, "trainer.max_steps=2", "seed=0,1", f"run_dir={place.runs}"]
    outcome = run("train.py", "-m", *words)
    assert (outcome.status, outcome.err) == (0, "")
    first, second = place.folders()
    assert [summary(path)["seed"] for path in (first, second)] == [0, 1]
    assert weights(first) != weights(second)


@pytest.mark.slow
def test_torchrun_starts_the_ranks(run, two):
    place, straight, _ = two
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    path = place.runs / "torchrun"
    outcome = run(*torchrun, *place.overrides, *DDP, "data.packing=padded", f"run_dir={path}")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("run folder") == 2
    assert_same(path, straight)
