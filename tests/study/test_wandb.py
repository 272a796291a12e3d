"""Studies on Weights & Biases, checked in the files that wandb writes offline."""

import glob
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from omegaconf import OmegaConf
from training.harness import summary

from ablate.compose import compose_config
from ablate.errors import AblateWarning
from ablate.study import on_wandb as of_study
from ablate.study.judge.paired import PairedStatistics
from ablate.study.judge.verdict import as_json, judge
from ablate.study.on_wandb import INSTALLED, dashboard, log_verdict, sync_command
from ablate.training.wandb_logger import identity
from study.offline_runs import offline_runs
from study.report_samples import record, study

LOGGER = OmegaConf.create({"project": "ablate", "group": None})


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path, request):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    request.addfinalizer(wandb.finish)


@pytest.fixture
def position(tmp_path):
    """A study folder with a report, and the verdict in it."""
    asked = study(seeds=[0, 1])
    records = [record(tmp_path / "records", arm, seed) for arm in asked.arms for seed in asked.seeds]
    verdict = judge(asked, records)
    folder = tmp_path / "position"
    (folder / "report").mkdir(parents=True)
    for name in ("index.html", "verdict.json", "verdict.md"):
        (folder / "report" / name).write_text(f"{name} of {asked.name}")
    return folder, verdict


def table(run):
    """The rows of the verdict table, as dictionaries."""
    found = json.loads((run.path.parent / "files" / run.summary["verdict"]["path"]).read_text())
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


@pytest.mark.slow
def test_every_run_of_a_study_is_on_wandb_and_so_is_its_verdict(command, place):
    folder = place.runs / "norms"
    tiny = [o for o in place.overrides if "max_steps" not in o]
    outcome = command(
        "train.py", "-m", *tiny, "trainer.max_steps=2", "sample=null", "study=default", "logger=wandb",
        "study.name=norms", "study.question='Which norm?'", "study.baseline=rms", "study.seeds=[7]",
        "++study.arms.rms=['model/norm=rmsnorm']", "++study.arms.layer=['model/norm=layernorm']", f"run_dir={folder}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    runs = {found.run.job_type: found for found in offline_runs(folder)}
    assert runs.keys() == {"rms", "layer", "verdict"}
    assert {found.run.run_group for found in runs.values()} == {"norms"}
    assert runs["layer"].run.display_name == "layer/seed_7" and "seed=7" in runs["layer"].run.tags
    for arm in ("rms", "layer"):
        ended = summary(folder / f"runs/{arm}/seed_7")
        assert runs[arm].config["seed"] == 7
        assert runs[arm].config["study"]["arm"] == arm
        assert runs[arm].config["budget"] == ended["budget"] == runs[arm].summary["budget"]
        for key in ("status", "metrics", "speed"):
            assert runs[arm].summary[key] == ended[key]
    (row,) = table(runs["verdict"])
    assert row["arm"] == "layer" and row["pairs"] == 1
    assert outcome.out.count("wandb sync") == 1 and "runs not uploaded: 3" in outcome.out


@pytest.mark.parametrize(
    "overrides, group, job_type, name",
    [
        (["study.arm=no norm", "study.stage=runs"], "norms", "no norm", "b/c"),
        (["study.arm=no norm", "study.stage=tuning"], "norms: tuning", "no norm", "b/c"),
        (["study.arm=no norm", "study.stage=tuning", "logger.wandb.group=mine"], "mine: tuning", "no norm", "b/c"),
        ([], "b", "train", "c"),
        (["logger.wandb.job_type=mine"], "b", "mine", "c"),
    ],
)
def test_a_run_is_named_by_its_study(overrides, group, job_type, name):
    chosen = ["study=default", "study.name=norms", "study.question=?"] if name == "b/c" else []
    config = compose_config("train", ["logger=wandb", "run_dir=a/b/c", *chosen, *overrides])
    named = identity(config, [])
    assert (named["group"], named["job_type"], named["name"]) == (group, job_type, name)


def test_the_verdict_is_a_run_with_table_sentences_and_report(position):
    folder, verdict = position
    log_verdict(verdict, folder / "report", LOGGER, folder)
    (found,) = offline_runs(folder)
    assert (found.run.run_group, found.run.job_type, found.run.project) == ("position", "verdict", "ablate")
    assert found.config["study"]["question"] == verdict.study.question
    assert [row["arm"] for row in table(found)] == ["learned", "none"]
    for row in table(found):
        arm = as_json(verdict)["arms"][row["arm"]]
        assert [row["low"], row["high"]] == pytest.approx(arm["interval"])
        assert row["claim"] == arm["claim"]["expect"] and row["outcome"] == arm["claim"]["outcome"]
        for key in ("verdict", "effect", "p", "p_holm", "pairs", "mde", "diverged"):
            assert row[key] == arm[key]
        assert found.summary["sentences"][row["arm"]] == arm["sentence"]
    assert found.summary["notes"] == verdict.notes
    (artifact,) = [artifact for artifact in found.artifacts if artifact.type == "verdict"]
    assert artifact.name == "verdict-position"
    staged = {entry.path: Path(entry.local_path).read_text() for entry in artifact.manifest.contents}
    assert staged == {path.name: path.read_text() for path in (folder / "report").iterdir()}


def test_what_a_verdict_does_not_know_is_left_empty(position):
    folder, verdict = position
    nothing = {"statistics": PairedStatistics(0, 0.01), "p_holm": None}
    learned, none = (replace(verdict.arms[arm], **nothing) for arm in ("learned", "none"))
    verdict = replace(verdict, arms={"learned": replace(learned, claim=None), "none": none})
    log_verdict(verdict, folder / "report", LOGGER, folder)
    (found,) = offline_runs(folder)
    learned, none = table(found)
    assert {learned[key] for key in ("effect", "low", "high", "p", "p_holm", "mde", "claim", "outcome")} == {None}
    assert none["effect"] is None and none["claim"] == "worse"


def test_repeating_a_study_goes_on_in_the_same_run(position):
    folder, verdict = position
    log_verdict(verdict, folder / "report", LOGGER, folder)
    (first,) = offline_runs(folder)
    first.path.parent.rename(first.path.parent.with_name("offline-run-before"))  # made within the same second
    log_verdict(verdict, folder / "report", LOGGER, folder)
    assert [found.run.run_id for found in offline_runs(folder)] == [first.run.run_id] * 2


def test_another_group_is_the_verdicts_too(position):
    folder, verdict = position
    log_verdict(verdict, folder / "report", OmegaConf.merge(LOGGER, {"group": "mine", "entity": "team"}), folder)
    (found,) = offline_runs(folder)
    assert (found.run.run_group, found.run.entity) == ("mine", "team")


@pytest.mark.parametrize(
    "error, says",
    [(wandb.errors.CommError("no way\nthere"), "CommError: no way"), (TimeoutError(), "TimeoutError: ")],
)
def test_what_wandb_refuses_is_a_warning(position, monkeypatch, error, says):
    folder, verdict = position

    def refuse(**options):
        raise error

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.warns(AblateWarning, match=f"wandb: {says}.*; the report is complete"):
        log_verdict(verdict, folder / "report", LOGGER, folder)


def test_the_line_that_syncs_covers_every_run_that_waits(tmp_path):
    folder = tmp_path / "my study"
    runs = ("runs/rope/seed_0", "runs/rope/seed_1", "tuning/rope/lr_0.001_seed_100", ".")
    files = [folder / run / "wandb" / f"offline-run-2026-{i}" / f"run-{i}.wandb" for i, run in enumerate(runs)]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    program, verb, *patterns = shlex.split(sync_command(folder))
    assert (program, verb) == ("wandb", "sync") and len(patterns) == 2
    assert {Path(found) for pattern in patterns for found in glob.glob(pattern)} == {file.parent for file in files}

    files[-1].with_suffix(".wandb.synced").touch()
    assert len(shlex.split(sync_command(folder))) == 3, "what is uploaded is not named again"


def test_the_dashboard_is_made_once_and_only_online(position, monkeypatch, capsys):
    folder, verdict = position
    made = []

    def make(entity, project, group, metric):
        made.append((project, group, metric))
        return "https://wandb.example/view"

    monkeypatch.setattr(of_study, "INSTALLED", True)
    monkeypatch.setattr(of_study, "make_dashboard", make)
    log_verdict(verdict, folder / "report", LOGGER, folder)
    assert not made and "for a dashboard, go online (wandb login" in (out := capsys.readouterr().out)
    assert "run the same command again" in out

    monkeypatch.setattr(of_study, "mode", lambda: "online")
    begin = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: begin(**{**options, "mode": "offline"}))
    for _ in range(2):
        log_verdict(verdict, folder / "report", LOGGER, folder)
        assert "dashboard: https://wandb.example/view" in capsys.readouterr().out
    assert made == [("ablate", "position", "val/loss")]


@pytest.mark.skipif(not INSTALLED, reason="wants wandb-workspaces")
@pytest.mark.parametrize("group", ["position", 'it\'s "<a=b>" — ∂'])
def test_the_dashboard_shows_the_runs_of_the_group_by_arm(group):
    view = dashboard("team", "ablate", group, "val/bpb")._to_model().model_dump(by_alias=True, exclude_none=True)
    section = view["spec"]["section"]
    (runs,) = section["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("group", "=", group)
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    kinds = ["Weave", "Run History Line Plot", "Run History Line Plot", "Bar Chart", "Scatter Plot"]
    assert [panel["viewType"] for panel in panels] == kinds
    _, steps, seconds, final, speed = (panel["config"] for panel in panels)
    assert (steps["xAxis"], seconds["xAxis"]) == ("trainer/global_step", "_runtime")
    for plot in (steps, seconds, final):
        assert (plot["metrics"], plot["groupBy"], plot["aggregate"]) == (["val/bpb"], "jobType", True)
    assert (speed["xAxis"], speed["yAxis"]) == ("summary:speed.train_tokens_per_s", "summary:val/bpb")
