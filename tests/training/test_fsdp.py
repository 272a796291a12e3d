"""FSDP: each process holds its share of the model, and together they train, stop and continue as one process does."""

import signal
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import ablate
from ablate.compose import compose_config, plain
from ablate.model.config import DecoderConfig
from ablate.model.context import Record
from ablate.model.decoder import Decoder
from ablate.model.loss import next_token_loss
from ablate.training.optimizer import AdamW
from ablate.training.sharding import ShardedStrategy, shard

from .harness import (
    SCALARS,
    STEPS,
    Outcome,
    Place,
    assert_refused,
    assert_same,
    assert_same_to_rounding,
    checkpoint,
    curves,
    resume,
    summary,
    with_plugin,
    without_end,
)

FSDP = ["trainer.devices=2", "trainer.strategy=fsdp", "data.batch_size=4"]
HELD = "open({path!r}, 'w').write(str(sum(p.to_local().numel() for p in self.decoder.parameters())))"

SCALAR = """
import torch
from ablate.model.axes.norm import NORMS, RMSNorm

@NORMS.register("scalar_norm")
class ScalarNorm(RMSNorm):
    def __init__(self, given, *, eps: float = 1e-6, bias: bool = False):
        super().__init__(given, eps=eps, bias=bias)
        self.gain = torch.nn.Parameter(torch.tensor(1.0))
"""


def test_one_process_has_nothing_to_share(straight, place):
    assert_same(place.train("trainer.strategy=fsdp"), straight.path)


def test_a_parameter_without_rows_is_refused_in_one_line(command, place, registries, monkeypatch, tmp_path):
    (tmp_path / "scalar_norm_plugin.py").write_text(SCALAR)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["plugins=[scalar_norm_plugin]", "model.norm.name=scalar_norm"]
    outcome = command("train.py", *place.overrides, *FSDP, *words)
    assert_refused(outcome, "trainer.strategy=fsdp", "blocks.0.attention_norm.gain", "torch.ones(1)")
    assert not place.folders()


@pytest.fixture
def mesh():
    """A mesh of this process only, which shards and gathers as several processes do."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def build(overrides: list[str], mesh: DeviceMesh | None) -> Decoder:
    config = compose_config("train", [*SCALARS, "data.vocab_size=300", *overrides])
    decoder = Decoder(DecoderConfig.from_dict(plain(config.model)))
    if mesh is not None:
        shard(decoder, mesh)
    return decoder


def backward(decoder: Decoder) -> None:
    """Gradients of all losses, the layers' own included, after a pass without gradients, as validation makes it."""
    tokens = torch.arange(128).view(4, 32)
    with torch.no_grad():
        decoder.hidden(tokens)
    record = Record()
    loss = next_token_loss(decoder.hidden(tokens, record=record), decoder.head.weight, tokens + 1)
    (loss + sum(record.losses.values())).backward()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model/ffn=moe", "model.ffn.experts=3", "model.ffn.z_loss=0.1", "model.tie_embeddings=false"],
        ["model/position=learned", "model/placement=post"],
    ],
)
def test_a_sharded_model_has_the_gradients_of_a_whole_one(mesh, overrides):
    sharded, whole = build(overrides, mesh), build(overrides, None)
    for decoder in (sharded, whole):
        backward(decoder)
    for (name, mine), other in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.full_tensor(), other.grad, msg=name)


def test_a_checkpoint_of_one_process_gives_each_weight_its_own_moments(mesh):
    sharded, whole = build([], mesh), build([], None)
    adamw = AdamW(lr=0.01, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)
    optimizers = [adamw(decoder) for decoder in (sharded, whole)]
    backward(whole)
    optimizers[1].step()
    strategy = ShardedStrategy(1)
    strategy.model, strategy.optimizers = sharded, optimizers[:1]
    saved = deepcopy({"state_dict": whole.state_dict(), "optimizer_states": [optimizers[1].state_dict()]})
    strategy.load_model_state_dict(saved)
    strategy.load_optimizer_state_dict(saved)
    for decoder, optimizer in zip((sharded, whole), optimizers, strict=True):
        optimizer.zero_grad()
        backward(decoder)
        optimizer.step()
    torch.testing.assert_close(strategy.lightning_module_state_dict(), dict(whole.state_dict()))
    torch.testing.assert_close(strategy.optimizer_state(optimizers[0]), optimizers[1].state_dict())


# --- real processes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(run, shared, tmp_path_factory) -> tuple[Place, Path, Outcome]:
    """A run of two processes that was never stopped. Rows have unequal numbers of targets."""
    folder = tmp_path_factory.mktemp("two")
    place, path = Place(shared.corpus, folder / "runs", shared.data), folder / "runs/straight"
    plugins = with_plugin(folder, 1, HELD.format(path=str(folder / "held")))
    words = [*FSDP, "data.packing=padded", "plugins=[ranks_plugin]", f"run_dir={path}"]
    outcome = run("train.py", *place.overrides, *words, plugins=plugins)
    assert outcome.status == 0, outcome.err
    return place, path, outcome


@pytest.fixture(scope="module")
def one(shared, one_thread, tmp_path_factory) -> Path:
    """The same in one process."""
    place = Place(shared.corpus, tmp_path_factory.mktemp("one"), shared.data)
    return place.train("data.batch_size=8", "data.packing=padded")


def test_two_processes_train_as_one_with_their_batch(two, one):
    _, path, outcome = two
    assert len(curves(path)) == STEPS
    assert_same_to_rounding(path, one)
    assert (summary(path)["status"], outcome.err) == ("finished", "")
    assert outcome.out.count("run folder") == 2  # once before, once after


def test_each_holds_its_share_and_no_more(two):
    place, path, _ = two
    assert 2 * int((place.runs.parent / "held").read_text()) == summary(path)["budget"]["total"]


def test_a_checkpoint_is_that_of_one_process(two, one):
    """The same names and numbers, each with the whole tensor of the same weight."""
    mine, other = checkpoint(two[1]), checkpoint(one)
    assert mine.keys() == other.keys()
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(mine[part], other[part], rtol=1e-3, atol=1e-5)


def test_the_model_of_the_run_folder_is_whole(two):
    path = two[1]
    loaded = ablate.load(path).model.state_dict()
    for name, tensor in checkpoint(path)["state_dict"].items():
        assert torch.equal(tensor, loaded[name.removeprefix("decoder.")]), name


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit(run, two, tmp_path):
    path = without_end(two[1], tmp_path / "run")
    outcome = run("train.py", f"resume={path}", "plugins=[]")
    assert (outcome.status, outcome.err) == (0, "")
    assert_same(path, two[1])


def test_a_run_goes_on_in_one_process_with_the_same_rows(two, tmp_path):
    path = without_end(two[1], tmp_path / "run")
    resume(path, "trainer.devices=1", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=2", "plugins=[]")
    values = [summary(run)["metrics"]["val/loss"] for run in (path, two[1])]
    assert values[0] == pytest.approx(values[1], rel=1e-2)  # gradients of unequal batches are averaged as equals


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(run, place, tmp_path):
    one = place.train("trainer.accumulate_grad_batches=2")
    path = without_end(one, tmp_path / "run")
    outcome = run(
        "train.py", f"resume={path}", *FSDP, "trainer.accumulate_grad_batches=1", "trainer.val_check_interval=2"
    )
    assert outcome.status == 0, outcome.err
    for name in ("train/grad_norm", "val/loss"):  # train/loss is of the last micro-batch
        values = [[float(row[name]) for row in curves(run) if row[name]] for run in (path, one)]
        assert values[0] == pytest.approx(values[1], rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_experts_an_untied_head_and_learned_positions_train_as_in_one_process(run, place, tmp_path, compiled):
    options = ["model/ffn=moe", "model.ffn.experts=3", "model.ffn.bias_update=0.1", "model.ffn.balance_loss=0"]
    options += ["model.tie_embeddings=false", "model/position=learned", "trainer.accumulate_grad_batches=2"]
    options += ["trainer.max_steps=3"]
    one = place.train(*options, "data.batch_size=8")
    words = [*FSDP, *options, f"compile={compiled}", f"run_dir={tmp_path / 'run'}"]
    outcome = run("train.py", *place.overrides, *words)
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_to_rounding(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_trains_as_in_one_process(run, place, tmp_path, precision):
    options = [f"trainer.precision={precision}"]
    one = place.train(*options, "data.batch_size=8")
    outcome = run("train.py", *place.overrides, *FSDP, *options, f"run_dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    values = [[float(row["train/loss"]) for row in curves(path)] for path in (tmp_path / "run", one)]
    assert values[0] == pytest.approx(values[1], rel=1e-2)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_bit_for_bit(run, two, tmp_path):
    place, straight, _ = two
    path = place.runs / "stopped"
    plugins = with_plugin(tmp_path, 1, "os.kill(os.getpid(), signal.SIGTERM)")
    words = [*place.overrides, *FSDP, "data.packing=padded", "plugins=[ranks_plugin]", f"run_dir={path}"]
    stopped = run("train.py", *words, plugins=plugins)
    assert (stopped.status, stopped.err) == (128 + signal.SIGTERM, "")
    assert (summary(path)["status"], summary(path)["steps"]) == ("interrupted", 5)
    resumed = run("train.py", f"resume={path}", "plugins=[]")
    assert (resumed.status, resumed.err) == (0, "")
    assert_same(path, straight)
