"""What the arms are: their layers, and where their configurations part."""

from typing import Any

from ablate.errors import AblateError
from ablate.model.config import AXES, DecoderConfig, component, stretches
from ablate.study.records import ASIDE, RunRecord
from ablate.study.report.findings import Findings

MISSING = object()


def layer_rows(run: RunRecord) -> list[tuple[str, ...]] | str:
    """Which layers, and the component of each axis, a row for each stretch of equal layers; or why there are none."""
    if "model" not in run.config:
        return "its configuration names no model"
    try:
        specs = DecoderConfig.from_dict(run.config["model"]).layers()
    except (AblateError, TypeError, AttributeError) as error:
        return f"its configuration cannot be built here: {str(error).splitlines()[0]}"
    return stretches([tuple(component(spec[axis]) for axis in AXES) for spec in specs])


def differences(findings: Findings) -> dict[str, dict[str, str]]:
    """Key -> arm -> its value as text, of every key in which an arm's first run is not the baseline's."""
    flat = {arm: flatten(runs[0].config) for arm in findings.arms if (runs := findings.runs(arm))}
    base = flat.get(findings.study.baseline)
    if base is None:
        return {}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    return {
        key: {arm: _text(values.get(key, MISSING)) for arm, values in flat.items()}
        for key in keys
        if any(values.get(key, MISSING) != base.get(key, MISSING) for values in flat.values())
    }


def _text(value: Any) -> str:
    """As YAML has it; a dash for what is not there."""
    if value is MISSING:
        return "–"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """`a.b.c` -> value; lists are values. What is of the run and not of the arm is left out."""
    flat = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if path in (*ASIDE, "callbacks.checkpoint.dirpath"):
            continue
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat
