"""benchmark.py: what it writes, what a sweep writes, and what it refuses in one line."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
from training.harness import assert_refused, strict_json

from ablate import budget, build
from ablate.benchmark.generation.command import first_of_model
from ablate.benchmark.generation.limits import weight_bytes
from ablate.data.tokenizer import Tokenizer
from ablate.model.kernels.linear import PRODUCTS
from ablate.run import save_model

SIZE = ["model.dim=32", "model.depth=2", "model.heads=4", "model.context=32", "model.vocab_size=61"]
QUICK = ["rounds=1", "prompt_tokens=4", "new_tokens=3", "batch=1"]
FIGURES = ["first_token_s", "token_s", "tokens_per_s"]


@pytest.fixture(autouse=True)
def pages(monkeypatch) -> list:
    """The folders in which a page was written, each with the jobs that already had results there."""
    written = []

    def write_page(folder):
        written.append((folder, sorted(path.parent.name for path in folder.glob("*/generation.json"))))
        return folder / "index.html"

    monkeypatch.setitem(sys.modules, "ablate.benchmark.generation.page", SimpleNamespace(write_page=write_page))
    return written


@pytest.fixture
def run(tmp_path):
    """The parts of a run folder that `ablate.load` reads."""
    folder = tmp_path / "one run"
    model = build("llama3", [*SIZE, "model/attention=mqa"])
    save_model(folder / "model", model, Tokenizer.of_symbols(60))
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def measured(command, tmp_path, *words):
    outcome = command("benchmark.py", *QUICK, f"out={tmp_path / 'out'}", *words)
    assert outcome.status == 0, outcome.err
    return strict_json(tmp_path / "out/generation.json"), outcome


def test_it_measures_a_grid_with_and_without_the_cache(command, tmp_path, pages):
    words = ["prompt_tokens=[4,6]", "new_tokens=[1,5]", "batch=[1,3]", "rounds=2"]
    data, outcome = measured(command, tmp_path, *SIZE, *words)
    grid = itertools.product([4, 6], [1, 5], [1, 3], ["cached", "uncached"])
    points = data["points"]
    assert [(p["prompt_tokens"], p["new_tokens"], p["batch"], p["way"]) for p in points] == list(grid)
    for point in points:
        for key in FIGURES:
            if key == "token_s" and point["new_tokens"] == 1:
                assert point[key] is None
            else:
                assert 0 < point[key]["min"] <= point[key]["median"] <= point[key]["max"]
        assert (point["limit_token_s"] is None) == (point["fraction_of_limit"] is None) == (point["new_tokens"] == 1)
        assert (point["speedup"] is None) == (point["way"] == "uncached")
        assert point["times_peer"] is None and point["peak_memory_bytes"] is None
        kept = point["batch"] * (point["prompt_tokens"] + point["new_tokens"] - 1) * 2 * 2 * 2 * 8 * 4
        assert point["cache_bytes"] == (kept if point["way"] == "cached" else 0)
    assert "limit" in outcome.out and "cached" in outcome.out and "bytes to the cache" in outcome.out
    assert pages == [(tmp_path / "out", [])]


def test_the_json_is_as_the_page_reads_it(command, tmp_path):
    data, _ = measured(command, tmp_path, *SIZE)
    model = build("gqa_rope", SIZE)
    expected = {
        "task": "generation",
        "format": 1,
        "label": "gqa_rope",
        "model": model.config.to_dict(),
        "budget": budget(model).to_dict(),
        "weight_bytes": weight_bytes(model, 1),
        "device": "cpu",
        "gpu": None,
        "threads": 1,
        "precision": "float32",
        "compile": False,
        "rounds": 1,
    }
    assert {key: data[key] for key in expected} == expected
    assert data.keys() - expected.keys() == {
        *("limits", "points", "cache_memory", "kernels", "products"),
        *("command", "versions", "machine", "git"),
    }
    assert data["kernels"] == ["sdpa"] and data["products"][0] in PRODUCTS
    assert data["limits"].keys() == {"bandwidth_bytes_per_s", "flops_per_s"}
    assert data["limits"]["flops_per_s"] == 1e11
    assert data["points"][0].keys() == {
        *("way", "batch", "prompt_tokens", "new_tokens", *FIGURES, "peak_memory_bytes", "cache_bytes"),
        *("limit_token_s", "fraction_of_limit", "speedup", "times_peer"),
    }
    assert [curve["name"] for curve in data["cache_memory"]][:3] == ["mha", "gqa (2 kv heads)", "mqa"]
    assert data["cache_memory"][0].keys() == {"name", "this", "points"}


def test_peers_take_part(command, tmp_path):
    pytest.importorskip("transformers")
    data, _ = measured(command, tmp_path, *SIZE, "peers=true")
    points = {point["way"]: point for point in data["points"]}
    theirs = [f"transformers, {cache} cache" for cache in ("dynamic", "static", "no")]
    assert list(points) == ["cached", "uncached", *theirs]
    for way in theirs:
        assert points[way]["tokens_per_s"]["min"] > 0
        assert {points[way][key] for key in ("cache_bytes", "limit_token_s", "fraction_of_limit")} == {None}
    fastest = max(points[way]["tokens_per_s"]["median"] for way in theirs)
    assert points["cached"]["times_peer"] == pytest.approx(points["cached"]["tokens_per_s"]["median"] / fastest)


def test_in_bfloat16_every_byte_is_half(command, tmp_path):
    data, _ = measured(command, tmp_path, *SIZE, "uncached=false", "precision=bf16")
    model = build("gqa_rope", SIZE)
    assert data["precision"] == "bfloat16"
    assert [point["way"] for point in data["points"]] == ["cached"]
    assert data["weight_bytes"] == weight_bytes(model, 1) / 2
    assert data["points"][0]["cache_bytes"] == model.cache_bytes(6) / 2
    assert data["budget"]["kv_bytes_per_token"] == budget(model).kv_bytes_per_token / 2


def test_only_the_steps_with_the_cache_are_compiled(command, tmp_path, monkeypatch):
    asked = []

    def seconds(model, rows, new_tokens, use_cache, compile=False):
        asked.append((use_cache, compile))
        return 1.0, 2.0

    monkeypatch.setattr("ablate.benchmark.generation.measure.time_greedy", seconds)
    data, _ = measured(command, tmp_path, *SIZE, "compile=true")
    assert data["compile"] is True
    assert set(asked) == {(True, True), (False, False)}


def test_a_run_is_measured_with_its_own_model(command, tmp_path, run):
    data, outcome = measured(command, tmp_path, f"run='{run}'")
    assert data["label"] == "one run" and "one run: float32" in outcome.out
    assert data["model"]["attention"]["name"] == "mqa"


def test_the_jobs_of_a_sweep_share_a_folder(command, tmp_path, pages):
    words = [*SIZE, *QUICK, "model/attention=mha,gqa,mqa", f"out={tmp_path}"]
    outcome = command("benchmark.py", "-m", *words)
    assert outcome.status == 0, outcome.err
    jobs = ["attention=gqa", "attention=mha", "attention=mqa"]
    data = {path.parent.name: strict_json(path) for path in tmp_path.rglob("*.json")}
    assert {name: job["label"] for name, job in data.items()} == {job: job for job in jobs}
    assert [data[job]["model"]["attention"]["name"] for job in jobs] == ["gqa", "mha", "mqa"]
    assert pages == [(tmp_path, [jobs[1]]), (tmp_path, jobs[:2]), (tmp_path, jobs)]


def test_a_sweep_without_out_gets_a_folder_of_its_own(command, tmp_path, pages, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["model=gqa_rope,llama3", "model.pattern.name=full,strided", *SIZE, *QUICK]
    outcome = command("benchmark.py", "-m", *words)
    assert outcome.status == 0, outcome.err
    files = sorted(tmp_path.glob("results/benchmark/*/*/generation.json"))
    assert len({path.parent.parent for path in files}) == 1
    names = ["gqa_rope name=full", "gqa_rope name=strided", "llama3 name=full", "llama3 name=strided"]
    assert [strict_json(path)["label"] for path in files] == names
    assert [path.parent.name for path in files] == [name.replace(" ", "_") for name in names]


def test_jobs_whose_labels_differ_in_punctuation_alone_share_no_folder(command, tmp_path):
    outcome = command("benchmark.py", "-m", *SIZE, *QUICK, "new_tokens=[1,2],[2,1]", f"out={tmp_path}")
    assert outcome.status == 0, outcome.err
    assert sorted(path.parent.name for path in tmp_path.rglob("*.json")) == [
        "new_tokens=_1_2__0",
        "new_tokens=_2_1__1",
    ]


def test_a_sweep_of_runs_is_named_by_their_folders(command, tmp_path, run):
    other = tmp_path / "elsewhere" / run.name  # the same name
    other.mkdir(parents=True)
    for name in ("model", "summary.json", "config.yaml"):
        (other / name).symlink_to(run / name)
    outcome = command("benchmark.py", "-m", *QUICK, f"run='{run}','{other}'", f"out={tmp_path / 'out'}")
    assert outcome.status == 0, outcome.err
    files = sorted((tmp_path / "out").rglob("*.json"))
    assert [path.parent.name for path in files] == ["one_run_0", "one_run_1"]
    assert {strict_json(path)["label"] for path in files} == {"one run"}


REFUSED = {
    "rounds=0": ("rounds=0", "at least 1"),
    "new_tokens=[]": ("new_tokens=[]", "new_tokens=[1,4]"),
    "new_tokens=[8,29]": ("prompt_tokens=4 and new_tokens=29 make 33", "model.context=32", "raise model.context"),
    "precision=float8": ("precision='float8'", "float32", "bfloat16"),
    "batch_size=4": ("batch_size", "'batch'"),
    "optimizer=adamw": ("optimizer", "leave it out"),
    "model.kernel=varlen": ("model.kernel=varlen", "cuda"),
    "run=nowhere": ("nowhere", "no such folder"),
    "out=occupied": ("out=occupied", "cannot be made"),
    "batch=1000000000": ("1000000000 x", "GiB"),
}


@pytest.fixture
def refuses(command, tmp_path, monkeypatch):
    """refuses(overrides, *parts of the message): the command refuses before it measures or writes anything."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied").write_text("")

    def measure(*args):
        raise RuntimeError("measured")

    monkeypatch.setattr("ablate.benchmark.generation.command.measure_limits", measure)
    monkeypatch.setattr("ablate.benchmark.generation.command.measure", measure)

    def check(words, *parts):
        assert_refused(command("benchmark.py", *QUICK, *words), *parts)
        assert not (tmp_path / "results").exists()

    return check


@pytest.mark.parametrize("override", REFUSED)
def test_mistakes_are_refused_in_one_line(refuses, override):
    size = [] if override.startswith("run=") else SIZE
    refuses([*size, override], *REFUSED[override])


def test_a_run_has_a_model_of_its_own(refuses, run):
    refuses([f"run='{run}'", "model/attention=mha"], "model/attention=mha", "a model of its own")
    refuses([f"run='{run}'", "new_tokens=30"], "model.context=32", "lower them")
    (run / "summary.json").unlink()
    refuses([f"run='{run}'"], "not a run folder")


@pytest.mark.parametrize("override", ["model=llama3", "model.dim=32", "++model.norm.eps=1", "model/attention=mha"])
def test_overrides_of_the_model_are_known(override):
    assert first_of_model(["rounds=1", override]) == override
    assert first_of_model(["rounds=1", "modelling=1", "+x.model=2", "run=model"]) is None


def test_peers_are_for_llamas_kind(refuses):
    pytest.importorskip("transformers")
    refuses([*SIZE, "peers=true", "model/ffn=moe"], "peers=true compares with Llama", "use model=llama3")


def test_training_refuses_what_it_does_not_know(command):
    assert_refused(command("benchmark.py", "task=training", "new_tokens=3"), "new_tokens: no such key")
    assert_refused(command("benchmark.py", "task=training", "accelerator=tpu"), "error: accelerator='tpu'")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("steps=0", ["steps=0", "at least 1"]),
        ("precisions=[32-true,fp8]", ["precisions='fp8'", "bf16-mixed"]),
        ("out=occupied", ["out=occupied", "cannot be made"]),
    ],
)
def test_mistakes_in_options_of_training_are_refused_in_one_line(command, tmp_path, monkeypatch, override, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied").write_text("")
    assert_refused(command("benchmark.py", "task=training", *SIZE, override), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]


def test_training_is_for_llamas_kind_too(command):
    pytest.importorskip("transformers")
    outcome = command("benchmark.py", "task=training", "peers=true", "model/pattern=local")
    assert_refused(outcome, "model.pattern=local", "use model=llama3")


@pytest.mark.gpu
def test_on_a_gpu_memory_is_measured_too(command, tmp_path):
    data, outcome = measured(command, tmp_path, *SIZE, "accelerator=gpu", "precision=null", "peers=true")
    assert data["device"] == "cuda" and data["gpu"] in outcome.out and "peak" in outcome.out
    assert len(data["points"]) == 5
    for point in data["points"]:
        assert point["peak_memory_bytes"] >= (point["cache_bytes"] or 1)
