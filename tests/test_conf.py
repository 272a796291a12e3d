"""conf/: every file in a config group can be chosen, and gives a complete run."""

from pathlib import Path

import pytest

from ablate.compose import compose_config, config_dir
from ablate.data import CORPORA
from ablate.model.config import AXES

CONF = Path(config_dir())
COMMANDS = {"task": "benchmark"}  # the group -> the command that reads it; the others are of train.py
GROUPS = sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} - {"."})
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def test_there_are_groups_to_check():
    assert {"data", "model", "model/norm", "hydra/sweeper", "scale"} <= set(GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_an_option_that_a_group_offers_can_be_chosen(group, option):
    command = COMMANDS.get(group, "train")
    config = compose_config(command, [f"{group}={option}"])
    assert set(AXES) <= set(config.model)
    assert command != "train" or config.data.name in CORPORA.names()


def test_a_tasks_local_windows_are_short_and_those_of_text_are_not():
    for pattern in ("local", "alternating"):
        windows = {
            data: compose_config("train", [f"data={data}", f"model/pattern={pattern}"]).model.pattern.window
            for data in ("stdlib", "copy", "recall", "induction", "leak")
        }
        assert windows == {"stdlib": 128, "copy": 4, "recall": 4, "induction": 4, "leak": 4}
    assert "window" not in compose_config("train", ["data=copy"]).model.pattern


def test_the_command_line_and_an_experiment_win_over_a_tasks_window():
    local = ["data=copy", "model/pattern=local"]
    assert compose_config("train", [*local, "model.pattern.window=33"]).model.pattern.window == 33
    assert compose_config("train", ["experiment=local_attention", "model=mistral"]).model.pattern.window == 4
