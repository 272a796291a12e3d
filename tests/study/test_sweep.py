"""Studies through the commands: `train.py -m study=default ...` and `compare.py`."""

import json
import shutil
import signal

import pytest
from training.harness import assert_refused, before_step, signal_at, summary

from ablate.training import by_position

ARMS = "{rms: ['model/norm=rmsnorm'], layer: ['model/norm=layernorm']}"


@pytest.fixture
def study(command, place, monkeypatch):
    """study(*overrides): a tiny study of two norms, two seeds."""
    monkeypatch.setattr(by_position, "DOCUMENTS", 2)

    def run(*overrides: str, arms: str = ARMS, folder=place.runs / "norms"):
        given = ["study.name=norms", "study.question='Which norm?'", "study.baseline=rms", "study.seeds=[0,1]"]
        tiny = [o for o in place.overrides if "max_steps" not in o]
        return command(
            "train.py", "-m", *tiny, "trainer.max_steps=4", "sample=null", "study=default", *given,
            f"++study.arms={arms}", f"run_dir={folder}", *overrides,
        )  # fmt: skip

    run.folder = place.runs / "norms"
    return run


def verdict(folder):
    return json.loads((folder / "report/verdict.json").read_text())


def status(folder):
    runs = folder / "runs"
    return {str(p.parent.relative_to(runs)): summary(p.parent)["status"] for p in runs.glob("*/*/summary.json")}


def test_a_study_runs_every_arm_with_every_seed_to_its_verdict(study):
    outcome = study()
    assert outcome.status == 0, outcome.err
    assert set(status(study.folder)) == {"rms/seed_0", "rms/seed_1", "layer/seed_0", "layer/seed_1"}
    arms = verdict(study.folder)["arms"]
    assert list(arms) == ["layer"] and arms["layer"]["pairs"] == 2
    assert (study.folder / "report/index.html").stat().st_size > 1e6
    assert "study norms: 4 of 4 runs" in outcome.out and "layer: " in outcome.out

    again = study()
    assert again.status == 0 and "#0" not in again.out, "what has finished is not run again"

    more = study("study.seeds=[0,1,2]")
    assert more.status == 0 and len(status(study.folder)) == 6
    assert verdict(study.folder)["arms"]["layer"]["pairs"] == 3


@pytest.mark.slow
def test_pairs_see_the_same_tokens(study, monkeypatch):
    seen = {}

    def keep(module, batch):
        seen.setdefault(module.trainer.default_root_dir, []).append(batch["tokens"].clone())

    before_step(monkeypatch, keep)
    assert study().status == 0
    rms, layer = (next(v for k, v in seen.items() if k.endswith(f"{arm}/seed_1")) for arm in ("rms", "layer"))
    assert all((a == b).all() for a, b in zip(rms, layer, strict=True)) and len(rms) == 4


@pytest.mark.slow
def test_two_names_for_one_arm_never_differ(study):
    outcome = study(arms="{rms: ['model/norm=rmsnorm'], same: ['model/norm=rmsnorm']}")
    assert outcome.status == 0 and "A/A" in outcome.err
    found = verdict(study.folder)["arms"]["same"]
    assert found["effect"] == 0 and found["verdict"] == "equivalent"


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on(study, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, step=3, signum=signal.SIGTERM)
        stopped = study()
    assert stopped.status == 143 and "the same command again" in stopped.out
    assert list(status(study.folder).values()) == ["interrupted"]
    assert study().status == 0
    assert set(status(study.folder).values()) == {"finished"} and len(status(study.folder)) == 4


@pytest.mark.slow
def test_a_killed_run_without_a_checkpoint_is_begun_again(study):
    assert study().status == 0
    before = verdict(study.folder)["arms"]["layer"]["effect"]
    run = study.folder / "runs/layer/seed_1"
    (run / "summary.json").unlink()
    refused = study()
    assert refused.status == 1 and "no summary.json; restore that, or move the folder away" in refused.err
    for folder in ("checkpoints", "model"):
        shutil.rmtree(run / folder)
    assert study().status == 0
    assert verdict(study.folder)["arms"]["layer"]["effect"] == before


@pytest.mark.slow
def test_a_crashed_run_is_counted_and_the_rest_goes_on(study, monkeypatch):
    def crash(module, batch):
        if module.trainer.default_root_dir.endswith("layer/seed_0"):
            raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        before_step(patch, crash)
        outcome = study()
    assert outcome.status == 1 and "1 of 4 runs failed" in outcome.err and "out of luck" in outcome.err
    assert status(study.folder)["layer/seed_0"] == "failed"
    assert verdict(study.folder)["arms"]["layer"]["pairs"] == 1
    assert study().status == 0
    assert verdict(study.folder)["arms"]["layer"]["pairs"] == 2


@pytest.mark.slow
def test_a_diverged_run_is_counted_and_not_run_again(study, monkeypatch):
    def diverge(module, batch):
        if "layer" in module.trainer.default_root_dir:
            batch["targets"].fill_(0)
            module.decoder.embedding.weight.data.fill_(float("nan"))

    with monkeypatch.context() as patch:
        before_step(patch, diverge)
        outcome = study()
    assert outcome.status == 0, outcome.err
    assert verdict(study.folder)["arms"]["layer"]["diverged"] == 2
    assert "2 diverged" in outcome.out
    assert "#0" not in study().out


@pytest.mark.slow
def test_a_sweep_over_the_seed_sets_the_seeds(study):
    assert study("seed=3,4").status == 0
    assert set(status(study.folder)) == {"rms/seed_3", "rms/seed_4", "layer/seed_3", "layer/seed_4"}


@pytest.mark.slow
def test_arms_are_matched(study):
    arms = "{mha: ['model/attention=mha'], mqa: ['model/attention=mqa', 'model/ffn=relu']}"
    outcome = study("study.baseline=mha", "study.seeds=[0]", arms=arms)
    assert outcome.status == 0 and "model.ffn.hidden=" in outcome.out
    totals = [summary(study.folder / f"runs/{arm}/seed_0")["budget"]["total"] for arm in ("mha", "mqa")]
    assert abs(totals[1] / totals[0] - 1) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("spent", ["flops", "seconds"])
def test_a_study_may_hold_flops_or_seconds(study, spent):
    arms = "{base: ['model.ffn.hidden=32'], wide: ['model.ffn.hidden=900']}"
    held = ["study.baseline=base", "study.match=none", f"study.hold={spent}", "trainer.max_steps=12"]
    outcome = study(*held, "study.seeds=[0]", arms=arms)
    assert outcome.status == 0, outcome.err
    steps = {arm: summary(study.folder / f"runs/{arm}/seed_0")["steps"] for arm in ("base", "wide")}
    assert steps["base"] == 12 and steps["wide"] < 12
    assert verdict(study.folder)["hold"] == spent
    assert study(*held, "study.seeds=[0,1]", arms=arms).status == 0, "timed anew, it would be another study"
    assert summary(study.folder / "runs/wide/seed_1")["steps"] == steps["wide"]


@pytest.mark.slow
def test_an_arm_that_comes_later_leaves_the_steps_of_the_others_as_they_are(study):
    arms = "{base: ['model.ffn.hidden=32'], wide: ['model.ffn.hidden=900']}"
    held = ["study.baseline=base", "study.match=none", "study.hold=seconds", "trainer.max_steps=12", "study.seeds=[0]"]
    assert study(*held, arms=arms).status == 0
    before = summary(study.folder / "runs/wide/seed_0")
    outcome = study(*held, arms=arms.replace("}", ", wider: ['model.ffn.hidden=9000']}"))
    assert outcome.status == 0, outcome.err
    assert "timing the steps of 2 arms" in outcome.out
    assert summary(study.folder / "runs/wide/seed_0") == before, "its run stands"
    assert summary(study.folder / "runs/wider/seed_0")["steps"] < 12


@pytest.mark.slow
def test_learning_rates_are_tuned_on_seeds_of_their_own(study, command):
    outcome = study("study.tune=lr", "study.lr_grid=[1e-5,3e-3]", "study.tuning_seeds=[7]", "study.seeds=[0]")
    assert outcome.status == 0, outcome.err
    assert len(list(study.folder.glob("tuning/*/*/summary.json"))) == 4
    tuned = verdict(study.folder)["tuning"]["arms"]["layer"]
    assert tuned["chosen"] == 3e-3 and tuned["edge"] and "edge" in outcome.err
    assert [lr for lr, _, _ in tuned["points"]] == [1e-5, 3e-3]
    assert "optimizer.lr=0.003" in summary(study.folder / "runs/layer/seed_0")["overrides"]
    before = verdict(study.folder)
    assert command("compare.py", f"runs={study.folder}").status == 0
    assert verdict(study.folder) == before


@pytest.mark.slow
def test_no_learning_rate_is_chosen_while_one_has_failed(study, monkeypatch):
    tuned = ["study.tune=lr", "study.lr_grid=[1e-5,3e-3]", "study.tuning_seeds=[7]", "study.seeds=[0]"]

    def crash(module, batch):
        if "tuning/layer/lr_0.003" in module.trainer.default_root_dir:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        before_step(patch, crash)
        outcome = study(*tuned)
    assert outcome.status == 1 and "1 of 4 runs that choose the learning rates failed" in outcome.err
    assert not (study.folder / "runs").exists()
    outcome = study(*tuned)
    assert outcome.status == 0, outcome.err
    assert "study norms: 3 of 6 runs" in outcome.out, "the study's own runs count from the beginning"
    assert verdict(study.folder)["tuning"]["arms"]["layer"]["chosen"] == 3e-3


@pytest.mark.slow
def test_studies_are_compared_by_their_names(study, command, place):
    for name in ("one", "two"):
        outcome = study(f"study.name={name}", "study.seeds=[0]", "trainer.max_steps=2", folder=place.runs / name)
        assert outcome.status == 0, outcome.err
    assert command("compare.py", f"runs={place.runs}").status == 0
    found = verdict(place.runs)
    assert (found["baseline"], list(found["arms"])) == ("one/layer", ["one/rms", "two/layer", "two/rms"])
    assert "The runs belong to different studies: 2 one, 2 two." in found["notes"]


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["model/norm=none"], "of the study sets model/norm"),
        (["model.dim=16,32"], "give model.dim one value"),
        (["study.baseline=rm"], "did you mean 'rms'"),
        (["++study.arms={rms: ['model/norm=rmsnorm'], bad: ['model/norm=rmsnrm']}"], "study.arms.bad"),
        (["++study.arms={rms: ['model/norm=rmsnorm'], bad: ['model.norm.epss=1']}"], "study.arms.bad"),
        (["++study.arms={rms: ['model/norm=rmsnorm'], bad: ['model/norm=null']}"], "study.arms.bad: model/norm=null"),
        (["++study.arms={rms: [], bad: ['model.depth=2.5']}"], "model.depth"),
        (["++study.arms={rms: [], bad: ['data.packing=foo']}"], "study.arms.bad: data.packing"),
        (["++study.arms={rms: [], bad: ['optimizer.lr=fast']}"], "study.arms.bad: optimizer.lr='fast'"),
        (["++study.arms={rms: [], bad: ['seed=1']}"], "study.arms.bad: it sets seed"),
        (["++study.arms={rms: [], bad: ['study.metric=val/bpb']}"], "study.arms.bad: it sets study.metric"),
        (["++study.arms={rms: [], bad: ['trainer.max_steps=9']}"], "study.arms.bad: it sets trainer.max_steps"),
        (["++study.arms={rms: [], bad: ['optimizer.lr=1']}", "study.tune=lr"], "study.tune=lr chooses"),
        (["++study.arms={rms: [], bad: ['++model.ffn.hidden=999']}"], "it sets model.ffn.hidden, which study.match"),
        (["study.design=foo"], "study.design='foo': no such choice"),
        (["++study.claims.rms={expect: better}"], "study.claims.rms: this is the baseline"),
        (["study.metric=train/nonsense"], "study.metric: no run logs 'train/nonsense'"),
        (["seed=interval(0,1)"], "seed=interval(0,1): expected seeds one by one"),
        (["resume=somewhere"], "resume: a study continues when its own command is run again"),
        (["trainer.strategy=none"], "study.arms.rms: trainer.strategy='none'"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(study, overrides, said):
    assert_refused(study(*overrides), said)
    assert not study.folder.exists() or not list(study.folder.rglob("summary.json"))


def test_a_metric_that_no_run_logs_is_refused_before_training(study):
    assert_refused(study("study.metric=val/los"), "did you mean 'val/loss'")
    assert not list(study.folder.rglob("summary.json"))


def test_a_folder_that_cannot_be_made_is_refused(study, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(study(folder=tmp_path / "file"), "cannot be made", "choose another folder")


def test_one_study_at_a_time(command, place):
    assert_refused(command("train.py", "-m", *place.overrides, "experiment=position,rmsnorm"), "one at a time")


def test_tokens_are_equal_whatever_the_batch(study):
    arms = "{rms: ['trainer.accumulate_grad_batches=1'], large: ['trainer.accumulate_grad_batches=2']}"
    outcome = study("study.seeds=[0]", arms=arms)
    assert outcome.status == 0, outcome.err
    steps = [summary(study.folder / f"runs/{arm}/seed_0")["steps"] for arm in ("rms", "large")]
    assert steps == [4, 2]


def test_what_cannot_be_read_is_left_out_and_said(study, command, place):
    folder = place.runs / "it's"
    quoted = str(folder).replace("'", "\\'")
    assert study(folder=f"'{quoted}'").status == 0
    (folder / "runs/rms/seed_0/summary.json").write_text("{")
    outcome = command("compare.py", f"runs='{quoted}'")
    assert outcome.status == 0 and "seed_0/summary.json: cannot be read" in outcome.err
    assert verdict(folder)["arms"]["layer"]["pairs"] == 1


def test_a_study_wants_m(command):
    assert_refused(command("train.py", "experiment=position"), "position is a study", "-m")


@pytest.mark.slow
def test_a_folder_of_other_settings_is_refused(study):
    assert study("study.seeds=[0]").status == 0
    assert_refused(study("study.seeds=[0]", "model.depth=3"), "model.depth=2", "run_dir=")
    renamed = ARMS.replace("layer:", "layer-:")
    assert_refused(study("study.seeds=[0]", arms=renamed), "holds a run of the arm 'layer', not of 'layer-'")


def test_a_sweep_of_the_basic_sweeper_is_compared(command, place):
    swept = [o for o in place.overrides if "max_steps" not in o]
    sweep = ["trainer.max_steps=4", "sample=null", f"run_dir={place.runs}", "model/norm=layernorm,rmsnorm", "seed=0,1"]
    assert command("train.py", "-m", *swept, *sweep).status == 0
    outcome = command("compare.py", f"runs={place.runs}", "baseline=layernorm")
    assert outcome.status == 0, outcome.err
    found = verdict(place.runs)
    assert found["baseline"] == "model/norm=layernorm" and list(found["arms"]) == ["model/norm=rmsnorm"]
    assert found["arms"]["model/norm=rmsnorm"]["pairs"] == 2
    assert_refused(command("compare.py", f"runs={place.runs}", "baseline=relu"), "baseline", "model/norm=rmsnorm")
    assert_refused(command("compare.py", f"runs={place.runs}", "metric=val/lss"), "val/loss")
    assert_refused(command("compare.py", f"runs={place.runs}/none"), "no such folder")
    assert_refused(command("compare.py", f"runs={place.data}"), "no readable run")
    assert_refused(command("compare.py", "runs=x", "margin=-1"), "margin")
    one = next(place.runs.glob("*layernorm*"))
    assert_refused(command("compare.py", f"runs={one}"), "expected at least two arms")
