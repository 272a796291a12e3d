"""The run folder: whole, plain, movable, and clear about what is wrong with it; law 12, the round trip."""

import dataclasses
import json
import pickle
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ablate
from ablate.compose import compose_config
from ablate.data import Tokenizer
from ablate.errors import AblateError
from ablate.files import held, write_text
from ablate.model.config import DecoderConfig
from ablate.model.decoder import Decoder
from ablate.run import create, load_model, read_config, save_model

from .harness import SCALARS, STEPS, Place, checkpoint, curves, strict_json, summary


@pytest.fixture
def run(straight, tmp_path):
    """A copy of a finished run, somewhere else."""
    return shutil.copytree(straight.path, tmp_path / "moved")


def files(path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_a_run_folder_holds_this_and_nothing_else(straight):
    assert files(straight.path) == {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        f"checkpoints/step={STEPS}.ckpt",
        "checkpoints/step=8.ckpt",
    }


def test_the_summary_says_what_the_run_was(straight, shared):
    said = summary(straight.path)
    assert said["status"] == "finished"
    assert said["steps"] == STEPS
    assert said["seed"] == 0
    assert said["precision"] == "32-true"
    assert said["overrides"] == shared.overrides
    assert said["corpus"]["name"] == "text"
    assert re.fullmatch("[0-9a-f]{64}", said["corpus"]["fingerprint"])
    assert said["corpus"]["vocabulary"] == 300
    assert said["corpus"]["train_documents"] + said["corpus"]["val_documents"] == 24
    assert said["metrics"].keys() >= {"train/loss", "val/loss", "val/bpb", "train/grad_norm"}
    assert said["speed"]["train_tokens_per_s"] > 0
    assert said["speed"]["generation"].keys() >= {"cached_tokens_per_s", "uncached_tokens_per_s", "speedup"}
    assert said["memory"]["peak_rss_bytes"] > 50e6
    assert said["versions"]["torch"] == torch.__version__
    assert said["versions"].keys() >= {"python", "lightning", "hydra-core", "tokenizers"}
    assert said["wall_s"] > 0
    assert said["sample"]["prompt"] == "def "
    assert said["git"] is None or re.fullmatch("[0-9a-f]{40}", said["git"]["revision"])


def test_the_budget_in_the_summary_is_the_models(straight):
    found, whole = summary(straight.path), ablate.budget(ablate.load(straight.path).model).to_dict()
    unpacked = whole.pop("training_flops_per_token")
    assert {name: found["budget"][name] for name in whole} == whole
    # attention within documents costs less than over full contexts
    assert 0.9 < found["training_flops_per_token"] / unpacked < 1
    assert found["budget"]["training_flops_per_token"] == found["training_flops_per_token"]


def test_the_metrics_in_the_summary_are_the_last_of_the_curves(straight):
    last = {key: float(value) for key, value in curves(straight.path)[-1].items() if key != "step"}
    metrics = summary(straight.path)["metrics"]
    assert {key: metrics[key] for key in ("train/loss", "val/loss", "val/bpb", "train/grad_norm")} == {
        key: last[key] for key in ("train/loss", "val/loss", "val/bpb", "train/grad_norm")
    }


def test_the_configuration_is_resolved_and_plain(straight):
    text = (straight.path / "config.yaml").read_text()
    config = yaml.safe_load(text)
    assert "${" not in text and "!!" not in text and "???" not in text
    assert config["run_dir"] == str(straight.path)
    assert config["model"]["vocab_size"] == 300
    assert config["model"]["norm"] == {"name": "rmsnorm", "eps": 1e-6, "bias": False}
    assert config["seed"] == 0


def test_the_models_configuration_builds_the_model(straight):
    node = strict_json(straight.path / "model/config.json")
    assert "_target_" not in json.dumps(node)
    assert Decoder(DecoderConfig.from_dict(node)).config.to_dict() == node


def test_a_moved_run_loads_with_the_weights_that_were_trained(straight, run):
    loaded = ablate.load(run)
    trained = Decoder(loaded.model.config)
    state = checkpoint(straight.path)["state_dict"]
    trained.load_state_dict({name.removeprefix("decoder."): tensor for name, tensor in state.items()})
    tokens = torch.randint(300, (2, 32))
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens), trained.eval()(tokens))
    assert not loaded.model.training
    assert loaded.path == run
    assert loaded.summary == summary(straight.path)
    assert loaded.config["model"]["dim"] == 32
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("def self")) == "def self"


def test_a_loaded_run_writes_the_sample_of_its_summary(run):
    loaded = ablate.load(str(run))
    sample = loaded.summary["sample"]
    text = ablate.generate(loaded.model, loaded.tokenizer, sample["prompt"], max_new_tokens=4, temperature=0.8, seed=0)
    assert text == sample["text"]


def test_loading_unpickles_and_instantiates_nothing(run, monkeypatch):
    shutil.rmtree(run / "checkpoints")

    class Refused:
        def __init__(self, *args, **kwargs):
            raise AssertionError("executes what a file says")

    for owner, name in (
        (pickle, "Unpickler"),
        (pickle, "load"),
        (pickle, "loads"),
        (torch, "load"),
        (yaml, "unsafe_load"),
    ):
        monkeypatch.setattr(owner, name, Refused)
    monkeypatch.setattr("hydra.utils.instantiate", Refused)
    ablate.load(run)


def test_what_a_configuration_names_is_not_run(run, tmp_path):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config + f"mine:\n  _target_: pathlib.Path.touch\n  _args_: [{tmp_path / 'touched'}]\n"
    )
    assert ablate.load(run).config["mine"]["_target_"] == "pathlib.Path.touch"
    (run / "config.yaml").write_text(config + f"mine: !!python/object/apply:os.mkdir ['{tmp_path / 'touched'}']\n")
    with pytest.raises(AblateError):
        ablate.load(run)
    assert not (tmp_path / "touched").exists()


def edit(path, change):
    node = json.loads(path.read_text())
    change(node)
    path.write_text(json.dumps(node))


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def reweigh(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


MODEL, WEIGHTS = "model/config.json", "model/model.safetensors"
DAMAGE = {
    "no summary": (lambda run: (run / "summary.json").unlink(), "summary.json"),
    "half a summary": (lambda run: cut(run / "summary.json", 100), "summary.json"),
    "an empty summary": (lambda run: cut(run / "summary.json", 0), "summary.json"),
    "a summary that is a list": (lambda run: (run / "summary.json").write_text("[]"), "summary.json"),
    "no config": (lambda run: (run / "config.yaml").unlink(), "config.yaml"),
    "a broken config": (lambda run: (run / "config.yaml").write_text("a: [1,\n"), "config.yaml"),
    "a binary config": (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml"),
    "no model": (lambda run: shutil.rmtree(run / "model"), "no model"),
    "no model config": (lambda run: (run / MODEL).unlink(), "config.json"),
    "half a model config": (lambda run: cut(run / MODEL, 40), "config.json"),
    "an unknown component": (lambda run: edit(run / MODEL, lambda c: c["norm"].update(name="rmsnrom")), "'rmsnorm'"),
    "an unknown option": (lambda run: edit(run / MODEL, lambda c: c["norm"].update(epss=1.0)), "model.norm.epss"),
    "an unknown key": (lambda run: edit(run / MODEL, lambda c: c.update(width=1)), "model.width"),
    "a missing key": (lambda run: edit(run / MODEL, lambda c: c.pop("dim")), "model.dim"),
    "no weights": (lambda run: (run / WEIGHTS).unlink(), "model.safetensors"),
    "half the weights": (lambda run: cut(run / WEIGHTS, 5000), "model.safetensors"),
    "empty weights": (lambda run: cut(run / WEIGHTS, 0), "model.safetensors"),
    "weights of another shape": (lambda run: edit(run / MODEL, lambda c: c.update(vocab_size=301)), "do not fit"),
    "weights of more layers": (lambda run: edit(run / MODEL, lambda c: c.update(depth=1)), "do not fit"),
    "weights of fewer layers": (lambda run: edit(run / MODEL, lambda c: c.update(depth=3)), "do not fit"),
    "a missing weight": (lambda run: reweigh(run / WEIGHTS, lambda t: t.pop("final_norm.weight")), "final_norm.weight"),
    "no tokenizer": (lambda run: (run / "model/tokenizer.json").unlink(), "tokenizer.json"),
    "half a tokenizer": (lambda run: cut(run / "model/tokenizer.json", 500), "tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_one_clear_error(run, damage):
    inflict, said = DAMAGE[damage]
    ablate.load(run)
    inflict(run)
    with pytest.raises(AblateError) as caught:
        ablate.load(run)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_loading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(AblateError, match="no such folder"):
        ablate.load(tmp_path / "nowhere")
    with pytest.raises(AblateError, match="not a run folder"):
        ablate.load(tmp_path)


@pytest.fixture
def tokenizer():
    return Tokenizer.train(["def return self"], 260)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", ["gqa_rope", "gpt2"])
def test_a_model_comes_back_as_it_went(tmp_path, tokenizer, preset, tied):
    model = ablate.build(preset, [*SCALARS, "model.vocab_size=64", f"model.tie_embeddings={tied}"], seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(tmp_path / "model", model, tokenizer)
    assert ("head.weight" in load_file(tmp_path / "model/model.safetensors")) == (not tied)
    loaded = load_model(tmp_path / "model")
    assert (loaded.head.weight is loaded.embedding.weight) == tied
    tokens = torch.randint(64, (2, 32))
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model.eval()(tokens))
    assert loaded.config == model.config


@pytest.mark.parametrize(("kernel", "loaded"), [("varlen", "auto"), ("flex", "auto"), ("reference", "reference")])
def test_a_kernel_for_another_device_gives_way_when_a_model_is_loaded(tmp_path, tokenizer, kernel, loaded):
    model = ablate.build(overrides=[*SCALARS, "model.vocab_size=64", f"model.kernel={kernel}"])
    save_model(tmp_path / "model", model, tokenizer)
    found = load_model(tmp_path / "model")
    assert found.config == dataclasses.replace(model.config, kernel=loaded)
    assert found(torch.randint(64, (2, 32))).isfinite().all()


def test_a_model_folder_is_replaced_whole_or_not_at_all(tmp_path, tokenizer, monkeypatch):
    first, second = (ablate.build(overrides=[*SCALARS, "model.vocab_size=64"], seed=seed) for seed in (1, 2))
    save_model(tmp_path / "model", first, tokenizer)
    before = (tmp_path / "model/model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_model(tmp_path / "model", second, tokenizer)
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    save_model(tmp_path / "model", second, tokenizer)
    assert (tmp_path / "model/model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_text_is_replaced_whole(tmp_path):
    write_text(tmp_path / "file", "one")
    write_text(tmp_path / "file", "zwei\n")
    assert (tmp_path / "file").read_text() == "zwei\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def created(place: Place, *overrides: str, job: int | None = None):
    merged = [f"paths.runs={place.runs}", *overrides]
    return create(compose_config("train", merged), merged, job, str(place.runs / "sweep"))


@pytest.fixture
def one_second(monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: form.replace("%", ""))


@pytest.mark.parametrize("job", [None, 0])
def test_runs_of_one_second_never_share_a_folder(place, one_second, job):
    config = compose_config("train", [f"paths.runs={place.runs}", "seed=1"])
    gate = threading.Barrier(8)

    def start(_):
        gate.wait()
        return create(config, ["seed=1"], job, str(place.runs / "sweep"))

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(start, range(8)))
    assert len(set(paths)) == 8
    assert all((path / "checkpoints").is_dir() for path in paths)


def test_the_name_of_a_run_folder_says_what_differs(place):
    name = created(place, "model/norm=layernorm", "seed=3", "trainer.max_steps=5").name
    for words in ("norm", "layernorm", "seed", "3", "max_steps", "5"):
        assert words in name
    assert "runs" not in name


def test_a_long_command_line_still_makes_a_folder(place):
    overrides = [f"tags=[{','.join('abcdefgh' * 3 for _ in range(40))}]"]
    assert created(place, *overrides).is_dir()


def test_the_name_of_a_run_folder_is_within_its_parent(place):
    path = created(place, "data=text", "data.path=../../../somewhere/../else")
    assert path.parent.parent == place.runs


def test_jobs_of_a_sweep_into_a_given_folder_lie_in_it(place, tmp_path):
    paths = [created(place, f"run_dir={tmp_path / 'mine'}", "seed=1", job=job) for job in (0, 1)]
    assert {path.parent for path in paths} == {tmp_path / "mine"}
    assert len(set(paths)) == 2


def test_an_empty_folder_is_taken_as_it_is(place, tmp_path):
    (tmp_path / "mine").mkdir()
    assert created(place, f"run_dir={tmp_path / 'mine'}") == tmp_path / "mine"


def test_a_folder_where_a_run_is_at_work_is_refused_and_left_alone(place, tmp_path):
    busy = tmp_path / "busy"
    (busy / "checkpoints").mkdir(parents=True)
    with held(busy), pytest.raises(AblateError, match="another process is at work"):
        place.train(f"run_dir={busy}")
    assert (busy / "checkpoints").is_dir()


def test_a_run_of_before_optimisers_had_names_is_read_as_one_of_now(tmp_path):
    old = {"_target_": "ablate.training.optimizer.adamw", "_partial_": True, "lr": 0.002, "betas": [0.9, 0.95]}
    (tmp_path / "config.yaml").write_text(json.dumps({"optimizer": old, "scheduler": {"name": "cosine", "final": 0.1}}))
    read = read_config(tmp_path)
    assert read["optimizer"] == {"name": "adamw", "lr": 0.002, "betas": [0.9, 0.95]}
    assert read["scheduler"] == {"name": "cosine", "final": 0.1}
