"""The plot of the learning rates that were tried with each arm."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ablate.page.drawing import Plot, brief, colour_of, empty_figure, line_of, log_x, safe, see_through
from ablate.study.report.findings import Findings
from ablate.study.report.words import level, with_unit


def learning_rates(findings: Findings) -> Plot:
    """The metric against the learning rate, a line an arm, every tuning run a dot, and what was chosen."""
    plot = Plot("rates", "Learning rates", "")
    tuning = findings.verdict["tuning"]
    arms = {arm: found for arm in findings.arms if (found := tuning["arms"].get(arm))}
    said = [sentence for arm, found in arms.items() for sentence in _sentences(arm, found)]
    if not any(_values(found) for found in arms.values()):
        return replace(plot, caption=" ".join(["No tuning run finished.", *said]))
    figure = empty_figure(len(arms))
    for i, arm in enumerate(findings.arms):
        if arm in arms and _values(arms[arm]):
            for trace in _traces(arm, arms[arm], i):
                figure.add_scatter(**trace, legendgroup=str(i))
    log_x(figure, "learning rate", set(tuning["grid"]))
    figure.update_yaxes(title=with_unit(findings.study.metric))
    caption = "Means over the tuning seeds; each run a faint dot; the ring is what the arm was then trained with."
    return replace(plot, caption=" ".join([caption, *said]), figure=figure)


def _values(found: dict[str, Any]) -> dict[float, list[float]]:
    """Learning rate -> the values of the runs that did not diverge."""
    values: dict[float, list[float]] = {}
    for rate, _, value in sorted(found["points"], key=lambda point: point[0]):
        if value is not None:
            values.setdefault(rate, []).append(value)
    return values


def _traces(arm: str, found: dict[str, Any], number: int) -> Iterable[dict[str, Any]]:
    values, colour = _values(found), colour_of(number)
    runs = [(rate, value) for rate, each in values.items() for value in each if len(each) > 1]
    means = {rate: sum(each) / len(each) for rate, each in values.items()}
    yield {
        "x": [rate for rate, _ in runs],
        "y": [value for _, value in runs],
        "mode": "markers",
        "marker": {"color": see_through(colour, 0.35), "size": 6},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    yield {
        "x": list(means),
        "y": list(means.values()),
        "name": safe(brief(arm)),
        "hovertext": [f"{safe(arm)}<br>learning rate {rate:g}<br>{level(mean)}" for rate, mean in means.items()],
        "hoverinfo": "text",
        **line_of(number),
    }
    if found["chosen"] in means:
        ring = {"symbol": "circle-open", "size": 19, "color": colour, "line": {"width": 2.5}}
        chosen = {"x": [found["chosen"]], "y": [means[found["chosen"]]]}
        yield {**chosen, "mode": "markers", "marker": ring, "hoverinfo": "skip", "showlegend": False}


def _sentences(arm: str, found: dict[str, Any]) -> Iterable[str]:
    tried: dict[float, list[bool]] = {}
    for rate, _, value in found["points"]:
        tried.setdefault(rate, []).append(value is None)
    lost = [f"{sum(d)} of {len(d)} at {rate:g}" for rate, d in sorted(tried.items()) if any(d)]
    if lost:
        yield f"{arm}: diverged, {', '.join(lost)}."
