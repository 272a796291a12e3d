"""The real commands: what they accept, what they refuse, and the messages."""

import importlib.util
import io
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

import ablate
from ablate.metrics import METRICS, Metric
from ablate.training.module import LanguageModel
from ablate.training.optimizer import OPTIMIZERS

from .harness import (
    ROOT,
    SCALARS,
    STEPS,
    assert_refused,
    assert_same,
    checkpoint,
    curves,
    signal_at,
    strict_json,
    summary,
)

QUICK = ["trainer.max_steps=2", "trainer.val_check_interval=2"]


@pytest.fixture
def untrained(monkeypatch):
    """Fails if a step of training happens."""

    def training_step(self, batch, batch_idx):
        raise RuntimeError("trained")

    monkeypatch.setattr(LanguageModel, "training_step", training_step)


@pytest.fixture
def refuses(command, place, untrained):
    """refuses("model.dim=30", "model.dim") runs train.py, which must stop before training and leave nothing."""

    def check(overrides, *said):
        overrides = [overrides] if isinstance(overrides, str) else overrides
        assert_refused(command("train.py", *place.overrides, *overrides), *said)
        assert not [path for path in place.runs.rglob("*") if path.is_file()]
        assert not place.folders()

    return check


BAD_MODEL = {
    "model.dimm=32": ("model.dimm", "'dim'"),
    "model.norm.epss=1e-5": ("model.norm.epss", "'eps'"),
    "+model.norm.epss=1": ("model.norm.epss", "'eps'"),
    "model/norm=layernrom": ("model/norm", "layernrom", "'layernorm'", "rmsnorm"),
    "model=gqa_ropee": ("gqa_ropee", "'gqa_rope'"),
    "model/nrom=rmsnorm": ("model/nrom", "'model/norm'"),
    "optimiser=adamw": ("optimiser", "'optimizer'"),
    "model.norm.name=layernrom": ("model.norm", "layernrom", "'layernorm'"),
    "model.kernel=sdpaa": ("model.kernel", "'sdpa'"),
    "model.kernel=varlen": ("model.kernel=varlen", "cuda", "this is cpu"),
    "model.kernel=flex": ("model.kernel=flex", "no gradient on cpu"),
    "model.dim=30": ("model.dim=30", "model.heads=4"),
    "model.dim=abc": ("model.dim", "abc"),
    "model.depth=0": ("model.depth",),
    "model.attention.kv_heads=3": ("model.attention.kv_heads=3", "model.heads=4", "1, 2, 4"),
    "model.vocab_size=100": ("model.vocab_size", "data.vocab_size"),
}
BAD_TRAINING = {
    "trainer.max_steps=0": ("trainer.max_steps=0", "at least 1"),
    "trainer.max_steps=abc": ("trainer.max_steps='abc'", "whole number"),
    "trainer.max_step=5": ("trainer.max_step", "'max_steps'"),
    "+trainer.max_step=5": ("trainer", "max_step"),
    "+trainer.limit_val_batches=0": ("trainer.limit_val_batches=0", "above 0"),
    "trainer.precision=foo": ("precision", "foo"),
    "trainer.accelerator=tpuu": ("trainer.accelerator='tpuu'", "cpu"),
    "optimizer.lr=abc": ("optimizer", "lr"),
    "optimizer.lr=-1": ("optimizer", "lr", "-1"),
    "optimizer.lrr=1": ("optimizer.lrr", "'lr'"),
    "optimizer.name=adamm": ("optimizer", "'adamm': no such choice", "'adamw'"),
    "+optimizer.momentum=1": ("optimizer.momentum", "'adamw' has no option"),
    "~optimizer.eps": ("optimizer.eps", "needs a value"),
    "~optimizer": ("optimizer=null", "keys and values"),
    "sample=5": ("sample=5", "keys and values"),
    "scheduler.name=cosin": ("scheduler", "'cosin': no such choice", "'cosine'"),
    "+scheduler.foo=1": ("scheduler", "foo"),
    "scheduler=cosin": ("scheduler", "'cosine'"),
    "seed=-1": ("seed=-1",),
    "seed=abc": ("seed='abc'",),
    "run_dir=5": ("run_dir=5", "text"),
    "plugins=[no_such_module]": ("plugins", "no_such_module"),
    "model.dim=[1": ("model.dim=[1",),
    "experiment=nothing": ("experiment", "nothing"),
}
BAD_DATA = {
    "data.packing=concatt": ("data.packing", "'concat'", "best_fit", "padded"),
    "data.packing=foo": ("data.packing", "foo", "concat"),
    "data.batch_size=0": ("data.batch_size",),
    "data.batch_size=abc": ("data.batch_size",),
    "data.vocab_size=100": ("data.vocab_size=100", "257"),
    "data.val_fraction=2": ("data.val_fraction",),
    "data.documents=sentence": ("data.documents", "paragraph"),
    "data.document_mask=perhaps": ("data.document_mask",),
    "data.context=64": ("data.context=64", "model.context=32"),
    "data.contextt=64": ("data.contextt", "'context'"),
    "data.batch_size=1000": ("data", "fewer than one batch", "1000 x 32"),
    "data=textt": ("data", "'text'"),
}


@pytest.mark.parametrize("override", BAD_MODEL)
def test_a_wrong_model_is_refused(refuses, override):
    refuses(override, *BAD_MODEL[override])


@pytest.mark.parametrize("override", BAD_TRAINING)
def test_wrong_training_is_refused(refuses, override):
    refuses(override, *BAD_TRAINING[override])


def test_an_optimiser_that_makes_none_is_refused(refuses):
    with OPTIMIZERS.scoped():

        @OPTIMIZERS.register("nothing")
        class Nothing:
            def __call__(self, model):
                return None

        options = [f"~optimizer.{option}" for option in OPTIMIZERS.options("adamw")]
        refuses(["optimizer.name=nothing", *options], "optimizer=null: expected a torch optimiser")


def test_a_metric_that_fails_is_refused_by_its_name(refuses, monkeypatch):
    monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))
    METRICS.add(Metric("val/odd", "", of=lambda val: val.nots))
    refuses([], "metrics: val/odd", "nots")


def test_an_optimiser_that_cannot_take_the_model_is_refused_by_its_key(refuses):
    with OPTIMIZERS.scoped():

        @OPTIMIZERS.register("picky")
        class Picky:
            def __call__(self, model):
                raise ValueError(f"{len(list(model.parameters()))} parameters are too many\nfor me")

        options = [f"~optimizer.{option}" for option in OPTIMIZERS.options("adamw")]
        refuses(["optimizer.name=picky", *options], "optimizer: ", "parameters are too many")


@pytest.mark.parametrize("override", BAD_DATA)
def test_wrong_data_is_refused(refuses, override):
    refuses(override, *BAD_DATA[override])


def test_a_window_of_no_keys_is_refused(refuses):
    refuses(["model/pattern=local", "model.pattern.window=0"], "model.pattern.window=0", "at least 1")


def test_a_context_beyond_the_learned_positions_is_refused(refuses):
    refuses(
        ["model/position=learned", "model.position.max_positions=16"],
        "model.context=32",
        "16 learned positions",
        "model.position.max_positions",
    )


def test_an_option_of_another_component_is_refused(refuses):
    refuses(["model/pattern=full", "+model.pattern.window=8"], "model.pattern.window")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_gpu_that_is_not_there_is_refused(refuses):
    refuses("trainer.accelerator=gpu", "trainer.accelerator=gpu", "trainer.accelerator=cpu")


def test_a_missing_path_is_refused(command, place, untrained):
    overrides = [o for o in place.overrides if not o.startswith("data.path=")]
    assert_refused(command("train.py", *overrides), "data.path")
    assert not place.folders()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b"", "no text"),
        ("blank.txt", b" \n\t\n", "no text"),
        ("binary.txt", bytes(range(256)) * 8, "not UTF-8"),
        ("one.txt", b"one document only\n", "one document"),
    ],
)
def test_a_file_without_text_is_refused(refuses, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refuses(f"data.path={tmp_path / name}", str(tmp_path / name) if said != "one document" else "data", said)


def test_a_corpus_smaller_than_a_batch_is_refused(refuses, tmp_path):
    (tmp_path / "small").mkdir()
    for name in "abc":
        (tmp_path / "small" / f"{name}.txt").write_text(f"the letter {name}\n")
    refuses([f"data.path={tmp_path / 'small'}", "data.vocab_size=257"], "data", "fewer than one batch", "4 x 32")


def test_a_tokenizer_of_another_vocabulary_is_refused(refuses, straight):
    tokenizer = straight.path / "model/tokenizer.json"
    refuses([f"data.tokenizer='{tokenizer}'", "data.vocab_size=512"], "data.tokenizer", "300", "data.vocab_size=300")


def test_a_run_dir_under_a_file_is_refused(refuses, tmp_path):
    (tmp_path / "file").write_text("mine")
    refuses(f"run_dir={tmp_path / 'file' / 'run'}", "run_dir", "file")
    refuses(f"run_dir={tmp_path / 'file'}", "run_dir", "file")
    refuses(f"paths.runs={tmp_path / 'file'}", "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_dir_that_is_not_empty_is_refused_and_left_as_it_was(refuses, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    refuses(f"run_dir={tmp_path / 'mine'}", "run_dir", "not empty")
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["notes.txt"]
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_a_mistake_leaves_a_given_run_dir_as_it_was(refuses, tmp_path):
    refuses(["data.batch_size=1000", f"run_dir={tmp_path / 'new'}"], "fewer than one batch")
    assert not (tmp_path / "new").exists()


def test_a_diverging_run_says_so_and_keeps_its_curves(command, place):
    outcome = command("train.py", *place.overrides, "optimizer.lr=1e6", "trainer.gradient_clip_val=null")
    assert_refused(outcome, "diverged", "optimizer.lr")
    (run,) = place.folders()
    assert summary(run)["status"] == "diverged"
    assert not (run / "model").exists()
    assert curves(run)[0]["train/loss"]


def test_the_trace_is_there_when_asked_for(place):
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(
        [sys.executable, "train.py", *place.overrides, "model.dimm=30"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "model.dimm" in done.stderr


def test_help_names_the_groups_and_imports_nothing_heavy(tmp_path):
    code = """
import runpy, sys, time
sys.argv = ["train.py", "--help"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({"lightning", "datasets", "wandb", "pandas", "transformers"} & sys.modules.keys())
print(f"{time.process_time():.2f}", *heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for line in ("model/norm: cycle, layernorm, none, rmsnorm", "optimizer: adamw", "scheduler: constant, cosine, wsd"):
        assert line in done.stdout
    seconds, *heavy = done.stderr.split()
    assert not heavy
    assert float(seconds) < 3.0  # processor time: a busy machine does not count


def test_a_run_says_what_it_is_and_what_came_out(command, place):
    outcome = command("train.py", *place.overrides, *QUICK, "model/pattern=alternating", "model.pattern.window=8")
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    (run,) = place.folders()
    for words in ("rmsnorm", "kv_heads=2", "local window=8", "parameters", "val/loss", "val/bpb", "cache", str(run)):
        assert words in outcome.out, words
    assert f"{summary(run)['metrics']['val/loss']:.4f}" in outcome.out


def test_an_interrupted_run_goes_on_by_the_line_it_printed(command, straight, place, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        outcome = command("train.py", *place.overrides)
    assert outcome.status == 143
    (line,) = [line for line in outcome.out.splitlines() if "resume=" in line]
    words = shlex.split(line.partition("python ")[2])
    outcome = command(*words)
    assert outcome.status == 0, outcome.err
    (run,) = place.folders()
    assert_same(run, straight.path)


@pytest.mark.parametrize("script", ["train.py", "generate.py"])
def test_a_command_takes_a_run_folder_under_its_default_name(command, straight, script):
    if script == "train.py":
        assert_refused(command(script, f"resume={straight.path}"), "finished")
    else:
        outcome = command(script, f"run={straight.path}", "prompt=def")
        assert outcome.status == 0, outcome.err


def test_resume_refuses_by_the_command_too(command, tmp_path, straight, untrained):
    assert_refused(command("train.py", f"resume={tmp_path / 'nowhere'}"), "nowhere", "no such folder")
    run = straight.killed_at(9, tmp_path / "run")
    assert_refused(command("train.py", f"resume={run}", "model.dim=64"), "model.dim is 64", "32")


def test_a_sweep_gives_each_job_its_folder(command, place):
    outcome = command("train.py", "-m", *place.overrides, *QUICK, "model/norm=layernorm,rmsnorm", "seed=0,1")
    assert outcome.status == 0, outcome.err
    runs = place.folders()
    assert len(runs) == 4
    assert len({run.parent for run in runs}) == 1
    found = {}
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        found[config["model"]["norm"]["name"], config["seed"]] = summary(run)
        assert f"norm={config['model']['norm']['name']}" in summary(run)["overrides"][-2]
        assert summary(run)["overrides"][-1] == f"seed={config['seed']}"
    assert found.keys() == {(norm, seed) for norm in ("layernorm", "rmsnorm") for seed in (0, 1)}
    assert {one["status"] for one in found.values()} == {"finished"}
    assert len({one["corpus"]["fingerprint"] for one in found.values()}) == 1
    assert len({one["metrics"]["val/loss"] for one in found.values()}) == 4
    assert len({tuple(one["metrics"]) for one in found.values()}) == 1


def test_a_failing_job_of_a_sweep_is_told_in_one_line(command, place):
    outcome = command("train.py", "-m", *place.overrides, *QUICK, "model.dim=32,30")
    assert_refused(outcome, "model.dim=30", "model.heads=4")


def test_an_axis_cycles_over_depth_from_the_command_line(command, place):
    outcome = command(
        "train.py",
        *place.overrides,
        *QUICK,
        "model/norm=cycle",
        "model.norm.cycle=[rmsnorm,{name: layernorm, bias: false}]",
    )
    assert outcome.status == 0, outcome.err
    (run,) = place.folders()
    model = ablate.load(run).model
    assert [type(block.ffn_norm).__name__ for block in model.blocks] == ["RMSNorm", "LayerNorm"]
    assert model.blocks[1].ffn_norm.bias is None


@pytest.fixture
def plugin(tmp_path, monkeypatch, registries):
    """A user's norm and its YAML, in the user's own folders."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/my_norms.py").write_text(
        "import torch\nfrom torch import nn\nfrom ablate.model import NORMS\n\n"
        '@NORMS.register("scalenorm")\nclass ScaleNorm(nn.Module):\n'
        "    def __init__(self, given, *, eps: float = 1e-5):\n"
        "        super().__init__()\n        self.eps = eps\n"
        "        self.g = nn.Parameter(torch.tensor(given.dim**0.5))\n\n"
        "    def forward(self, x):\n        return self.g * x / (x.norm(dim=-1, keepdim=True) + self.eps)\n"
    )
    (tmp_path / "my_conf/model/norm").mkdir(parents=True)
    (tmp_path / "my_conf/model/norm/scalenorm.yaml").write_text("name: scalenorm\neps: 1.0e-3\n")
    (tmp_path / "my_conf/experiment").mkdir()
    (tmp_path / "my_conf/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model/norm: layernorm\n\nmodel:\n  depth: 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "my_norms", raising=False)
    yield [f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]"]
    sys.modules.pop("my_norms", None)


def test_an_experiment_file_overrides_an_axis_and_the_command_line_overrides_it(command, place, plugin):
    outcome = command("train.py", *place.overrides[4:], *plugin, *SCALARS[:1], *SCALARS[2:], *QUICK, "experiment=mine")
    assert outcome.status == 0, outcome.err
    (run,) = place.folders()
    model = ablate.load(run).model
    assert type(model.final_norm).__name__ == "LayerNorm"
    assert len(model.blocks) == 1
    outcome = command(
        "train.py",
        *place.overrides,
        *plugin,
        *QUICK,
        "experiment=mine",
        "model/norm=rmsnorm",
        "run_dir=" + str(run.parent / "2"),
    )
    assert outcome.status == 0, outcome.err
    model = ablate.load(run.parent / "2").model
    assert type(model.final_norm).__name__ == "RMSNorm"
    assert len(model.blocks) == 2


def test_a_users_norm_trains_loads_generates(command, place, plugin):
    words = [*plugin, "plugins=[my_norms]"]
    outcome = command(
        "train.py", *place.overrides, *QUICK, *words, "model/norm=scalenorm", f"run_dir={place.runs / 'mine'}"
    )
    assert outcome.status == 0, outcome.err
    run = ablate.load(place.runs / "mine")
    assert type(run.model.final_norm).__name__ == "ScaleNorm"
    assert run.model.final_norm.eps == 1e-3
    assert run.model.final_norm.g.item() == checkpoint(run.path, 2)["state_dict"]["decoder.final_norm.g"].item()
    outcome = command("generate.py", f"run={run.path}", "plugins=[my_norms]", "prompt=def", "max_new_tokens=4")
    assert outcome.status == 0, outcome.err


def test_a_run_of_a_users_norm_can_be_resumed(command, place, plugin, monkeypatch):
    words = [*place.overrides, *plugin, "plugins=[my_norms]", "model/norm=scalenorm"]
    run = place.runs / "stopped"
    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        assert command("train.py", *words, f"run_dir={run}").status == 143
    assert_refused(command("train.py", f"resume={run}", *plugin), "plugins=[my_norms]", "names code")
    outcome = command("train.py", f"resume={run}", *plugin, "plugins=[my_norms]")
    assert outcome.status == 0, outcome.err
    assert summary(run)["steps"] == STEPS


def test_loading_a_users_norm_without_its_module_says_what_is_missing(command, place, plugin, registries):
    words = [*plugin, "plugins=[my_norms]", "model/norm=scalenorm"]
    with registries["norm"].scoped():
        assert command("train.py", *place.overrides, *QUICK, *words, f"run_dir={place.runs / 'mine'}").status == 0
    outcome = command("generate.py", f"run={place.runs / 'mine'}")
    assert_refused(outcome, "model.norm", "scalenorm")


def test_generate_streams_the_prompt_and_its_continuation(command, straight):
    words = ["generate.py", f"run='{straight.path}'", "prompt='def self '", "max_new_tokens=8"]
    greedy = command(*words, "temperature=0")
    run = ablate.load(straight.path)
    assert greedy.status == 0, greedy.err
    assert greedy.out == "def self " + ablate.generate(run.model, run.tokenizer, "def self ", max_new_tokens=8) + "\n"
    assert command(*words, "temperature=0", "use_cache=false").out == greedy.out
    assert command(*words, "top_k=1").out == greedy.out
    sampled = [command(*words, f"seed={seed}", "temperature=2").out for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["temperature=-1"], ["temperature=-1"]),
        (["top_p=2"], ["top_p=2"]),
        (["top_k=0"], ["top_k=0"]),
        (["min_p=1"], ["min_p=1"]),
        (["repetition_penalty=0"], ["repetition_penalty=0"]),
        (["max_new_tokens=0"], ["max_new_tokens=0"]),
        (["prefill_chunk=0"], ["prefill_chunk=0"]),
        (["prefill_chunk=4", "use_cache=false"], ["prefill_chunk=4", "no effect"]),
        (["use_cache=maybe"], ["use_cache='maybe'"]),
        (["seed=x"], ["seed='x'"]),
        (["prompt="], ["prompt: it is empty"]),
        (["prompt=12"], ["prompt=12", "expected text"]),
        (["prompt='" + "def " * 40 + "'"], ["prompt: its", "context of 32"]),
        (["prompts=some.txt"], ["prompts: prompt is set too"]),
        (["prompt=null", "prompts=nowhere.txt"], ["prompts=nowhere.txt", "cannot be read"]),
        (["run=null"], ["run=None", "run folder"]),
        (["run=3"], ["run=3", "run folder"]),
        (["temperatur=1"], ["temperatur", "'temperature'"]),
        (["accelerator=tpu"], ["accelerator='tpu'"]),
    ],
)
def test_generate_refuses(command, straight, words, said):
    assert_refused(command("generate.py", f"run='{straight.path}'", "prompt=def", *words), *said)


def test_generate_takes_a_file_of_prompts(command, straight, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "def self "}\n{"prompt": "if\\nelse"}\n')
    words = ["generate.py", f"run='{straight.path}'", "max_new_tokens=8", "repetition_penalty=1.2", "prefill_chunk=2"]
    outcome = command(*words, f"prompts={tmp_path / 'p.jsonl'}")
    alone = [command(*words, f"prompt='{prompt}'").out for prompt in ("def self ", "if\nelse")]
    assert outcome.status == 0 and outcome.out == "\n".join(alone), outcome
    (tmp_path / "p.txt").write_text("def\n" + "def " * 40)
    assert_refused(command(*words, f"prompts={tmp_path / 'p.txt'}"), "prompts: number 2", "context of 32")


def test_generate_reads_piped_prompts(command, straight, monkeypatch):
    words = ["generate.py", f"run='{straight.path}'", "max_new_tokens=8"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("def\n\nself value\n"))
    alone = [command(*words, f"prompt='{prompt}'").out for prompt in ("def", "self value")]
    assert command(*words).out == "\n".join(alone)
    assert_refused(command(*words), "prompt: needs a value")  # the input has ended


def test_generate_warns_in_one_line_and_goes_on(command, straight):
    outcome = command("generate.py", f"run='{straight.path}'", "prompt=def", "max_new_tokens=40", "temperature=0")
    assert outcome.status == 0 and outcome.out.startswith("def")
    assert outcome.err == "warning: max_new_tokens=40 leads beyond the 32 tokens of this model's training context\n"
    outcome = command(
        "generate.py", f"run='{straight.path}'", "prompt=def", "max_new_tokens=4", "top_k=2", "temperature=0"
    )
    assert outcome.status == 0
    assert outcome.err == "warning: top_k: no effect at temperature=0 (greedy); set temperature=1.0 to sample\n"


def test_generate_refuses_weights_that_do_not_fit(command, straight, tmp_path):
    run = shutil.copytree(straight.path, tmp_path / "run")
    config = json.loads((run / "model/config.json").read_text())
    (run / "model/config.json").write_text(json.dumps(config | {"dim": 2 * config["dim"]}))
    assert_refused(command("generate.py", f"run={run}", "prompt=def"), "model.safetensors", "do not fit config.json")


def test_generate_wants_a_run(command, tmp_path):
    assert_refused(command("generate.py"), "run", "run=...")
    assert_refused(command("generate.py", f"run={tmp_path / 'nowhere'}"), "nowhere", "no such folder")
    assert_refused(command("generate.py", f"run={tmp_path}"), "not a run folder")


def test_generate_refuses_a_run_without_a_model(command, straight, tmp_path):
    run = straight.killed_at(9, tmp_path / "run")
    assert_refused(command("generate.py", f"run={run}"), str(run), "running", "resume=")


def test_generate_refuses_a_prompt_beyond_the_learned_positions(command, place):
    run = place.train(*QUICK, "model/position=learned", f"run_dir={place.runs / 'learned'}")
    outcome = command("generate.py", f"run={run}", "prompt='def self return value '", "max_new_tokens=32")
    assert_refused(outcome, "32 learned positions", "max_new_tokens")


BENCHMARK = [*SCALARS, "model.vocab_size=300", "model.ffn.hidden=64", "batch_size=2", "rounds=1", "steps=1"]


def benchmark(command, tmp_path, *words):
    outcome = command(
        "benchmark.py",
        "task=training",
        *BENCHMARK,
        "precisions=[32-true]",
        "compile=[false]",
        f"out={tmp_path}",
        *words,
    )
    assert outcome.status == 0, outcome.err
    return strict_json(tmp_path / "training.json")


def test_the_benchmark_times_training(command, tmp_path):
    result = benchmark(command, tmp_path)
    (row,) = result["results"]
    assert (row["name"], row["precision"], row["compile"]) == ("ablate", "32-true", False)
    assert 0 < row["step_ms_min"] <= row["step_ms"] <= row["step_ms_max"]
    assert row["tokens_per_s"] == pytest.approx(2 * 32 / row["step_ms"] * 1e3)
    assert row["mfu"] > 0
    assert result["batch"] == [2, 32]
    assert result["versions"]["torch"]


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="wants transformers")
def test_the_benchmark_compares_with_transformers(command, tmp_path):
    rows = {row["name"]: row for row in benchmark(command, tmp_path, "peers=true")["results"]}
    assert rows.keys() == {"ablate", "transformers", "transformers, document mask"}
    assert rows["transformers"]["times_transformers"] == 1.0
    ratio = rows["transformers"]["step_ms"] / rows["ablate"]["step_ms"]
    assert rows["ablate"]["times_transformers"] == pytest.approx(ratio)


def test_the_benchmark_refuses_another_task(command, tmp_path):
    assert_refused(command("benchmark.py", "task=trainin", f"out={tmp_path}"), "task", "trainin", "'training'")


@pytest.mark.parametrize("debug", ["default", "fdr", "overfit"])
def test_every_debug_configuration_runs(command, place, debug):
    outcome = command("train.py", *place.overrides, f"debug={debug}", "trainer.max_steps=6")
    assert outcome.status == 0, outcome.err


def test_overfitting_sees_one_batch_of_rows(place, monkeypatch):
    seen = []
    step = LanguageModel.training_step
    monkeypatch.setattr(
        LanguageModel, "training_step", lambda self, batch, index: seen.append(batch) or step(self, batch, index)
    )
    place.train("data.max_rows=4", "data.batch_size=4", "trainer.max_steps=5")
    first, *others = (sorted(batch["tokens"].tolist()) for batch in seen)
    assert len(others) == 4
    assert all(rows == first for rows in others)


def test_bits_per_byte_of_a_part_of_the_validation_rows_are_of_their_bytes(place):
    whole = summary(place.train("trainer.max_steps=1"))["metrics"]
    part = summary(place.train("trainer.max_steps=1", "+trainer.limit_val_batches=1"))["metrics"]
    assert part["val/bpb"] / part["val/loss"] == pytest.approx(whole["val/bpb"] / whole["val/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("sample.temperature=-1", "sample.temperature"),
        ("sample.max_new_tokens=0", "sample.max_new_tokens"),
        ("sample.prompt=5", "sample.prompt"),
        ("sample.prompt=", "sample.prompt"),
        ("compile=foo", "compile"),
        ("plugins=my_norms", "plugins"),
        ("trainer.devices=0", "trainer.devices"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val"),
        ("scheduler.warmup=2", "scheduler.warmup"),
        ("optimizer.betas=[0.9]", "optimizer"),
        ("model.position.theta=-1", "model.position.theta"),
        ("seed=18446744073709551616", "seed"),
        ("data.path=null", "data.path"),
    ],
)
def test_a_value_without_meaning_is_refused_before_training(refuses, override, key):
    refuses(override, key)


def test_a_prompt_that_fills_the_context_costs_the_sample_not_the_run(place):
    run = place.train("sample.prompt='" + "word " * 40 + "'")
    assert summary(run)["status"] == "finished"
    assert "sample" not in summary(run)


def test_ctrl_c_before_training_ends_in_one_line(command, place, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ablate.data.corpus.prepare", interrupt)
    outcome = command("train.py", *place.overrides)
    assert outcome.status == 130
    assert outcome.err.strip() == "interrupted"
    assert not place.folders()
