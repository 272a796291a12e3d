"""Reading runs: which arm each belongs to, and what is left out."""

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ablate.compose import compose_config
from ablate.errors import AblateError, AblateWarning
from ablate.files import write_json
from ablate.metrics import METRICS
from ablate.study.compare import compare
from ablate.study.records import read_any_runs, read_runs

CALLBACK = "callbacks.averaging.decay=0.9"


def run(
    folder: Path, place: str, seed: int = 0, overrides: tuple[str, ...] = (), metrics=None, plugins=(), **study: Any
) -> None:
    path = folder / place
    path.mkdir(parents=True)
    own = {"plugins": list(plugins)} if plugins else {}
    OmegaConf.save({"seed": seed, "study": study or None, **own}, path / "config.yaml")
    summary = {"status": "finished", "overrides": list(overrides), "metrics": metrics or {"val/loss": 3.0}}
    write_json(path / "summary.json", summary)


def test_an_arm_is_named_by_the_overrides_that_change_what_a_run_computes(tmp_path):
    aside = ("seed=1", "run_dir=x", "logger=csv", "paths.data=y", "callbacks.progress.every=2", "experiment=position")
    run(tmp_path, "a", overrides=("model.dim=32", "+model/norm=none", *aside))
    run(tmp_path, "b", overrides=("model.dim=32", CALLBACK))
    run(tmp_path, "c", overrides=("model.dim=32",))
    assert [record.arm for record in read_any_runs(tmp_path)] == ["model/norm=none", CALLBACK, "default"]


def test_runs_of_a_study_keep_its_arms(tmp_path):
    run(tmp_path, "a", name="norms", arm="rms")
    run(tmp_path, "b", name="norms", arm="layer", stage="tuning")
    run(tmp_path, "c", overrides=("model.dim=32",))
    assert [record.arm for record in read_runs(tmp_path)] == ["rms", "layer"]
    with pytest.warns(AblateWarning, match="left out 1 runs that belong to no study"):
        assert [record.arm for record in read_any_runs(tmp_path)] == ["rms"]


def test_tuning_runs_alone_make_no_comparison(tmp_path):
    run(tmp_path, "a", name="norms", arm="rms", stage="tuning")
    with pytest.raises(AblateError, match=r"only tuning runs; continue with the study's own command"):
        read_any_runs(tmp_path)


def test_a_metric_of_a_plugin_has_its_direction_in_a_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))
    (tmp_path / "my_metrics.py").write_text(
        "from ablate.metrics import METRICS, Metric\n"
        "METRICS.add(Metric('val/f1', 'points', rising=True, of=lambda val: val.right))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)
    for arm, high in (("base", 0.0), ("new", 1.0)):
        for seed in range(6):
            metrics = {"val/f1": 50 + high + seed / 10 + high * seed / 100}
            run(tmp_path / "runs", f"{arm}_{seed}", seed, metrics=metrics, name="own", arm=arm)
    given = [f"runs={tmp_path}/runs", "baseline=base", "metric=val/f1", "plugins=[my_metrics]"]
    compare(compose_config("compare", given))
    assert "new: better by 1.025 points" in capsys.readouterr().out
    assert "val/f1, points" in (tmp_path / "runs/report/verdict.md").read_text()


def test_a_metric_without_a_row_is_compared_with_a_warning_and_a_plugins_metric_not_at_all_without_it(tmp_path):
    for arm, plugins in (("base", []), ("new", ["my_metrics"])):
        for seed in range(2):
            run(tmp_path, f"{arm}_{seed}", seed, metrics={"val/f1": seed + 0.5}, plugins=plugins, name="own", arm=arm)
    given = [f"runs={tmp_path}", "baseline=base", "metric=val/f1", f"out={tmp_path}/report"]
    with pytest.raises(AblateError, match=r"name the runs' own: plugins=\[my_metrics\]"):
        compare(compose_config("compare", given))
    for record in tmp_path.glob("new_*/config.yaml"):
        record.write_text(record.read_text().replace("plugins:\n- my_metrics\n", ""))
    with pytest.warns(AblateWarning, match="less is taken to be better"):
        compare(compose_config("compare", given))
