"""The plot of the learning rates that each arm tried."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ablate.metrics import METRICS
from ablate.page.drawing import Plot, brief, colour_of, empty_figure, line_of, log_x, safe, see_through
from ablate.study.judge.verdict import Verdict
from ablate.words import level, setting


def learning_rates(verdict: Verdict) -> Plot:
    """The metric against the learning rate: a line for each arm, a dot for each run, a ring around the choice."""
    plot = Plot("rates", "Learning rates", "")
    tuning = verdict.tuning
    arms = {name: tuning["arms"][name] for name in verdict.runs if name in tuning["arms"]}
    diverged = [sentence for name, tried in arms.items() for sentence in _diverged(name, tried)]
    if not any(_values(tried) for tried in arms.values()):
        return replace(plot, caption=" ".join(["No tuning run finished.", *diverged]))
    figure = empty_figure(len(arms))
    for i, name in enumerate(verdict.runs):
        if name in arms and _values(arms[name]):
            for trace in _traces(name, arms[name], i):
                figure.add_scatter(**trace, legendgroup=str(i))
    log_x(figure, "learning rate", set(tuning["grid"]))
    figure.update_yaxes(title=METRICS[verdict.study.metric].titled)
    caption = (
        "Means over the tuning seeds. Each faint dot is a run; the ring marks the rate that the arm was trained with."
    )
    return replace(plot, caption=" ".join([caption, *diverged]), figure=figure)


def _values(tried: dict[str, Any]) -> dict[float, list[float]]:
    """Learning rate -> the values of the runs that did not diverge."""
    values: dict[float, list[float]] = defaultdict(list)
    for rate, _, value in sorted(tried["points"], key=lambda point: point[0]):
        if value is not None:
            values[rate].append(value)
    return values


def _traces(name: str, tried: dict[str, Any], number: int) -> Iterable[dict[str, Any]]:
    values, colour = _values(tried), colour_of(number)
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
        "name": safe(brief(name)),
        "hovertext": [
            f"{safe(name)}<br>learning rate {setting(rate)}<br>{level(mean)}" for rate, mean in means.items()
        ],
        "hoverinfo": "text",
        **line_of(number),
    }
    if tried["chosen"] in means:
        ring = {"symbol": "circle-open", "size": 19, "color": colour, "line": {"width": 2.5}}
        chosen = {"x": [tried["chosen"]], "y": [means[tried["chosen"]]]}
        yield {**chosen, "mode": "markers", "marker": ring, "hoverinfo": "skip", "showlegend": False}


def _diverged(name: str, tried: dict[str, Any]) -> Iterable[str]:
    """A sentence on how many runs diverged at which rates, if any did."""
    diverged: dict[float, list[bool]] = defaultdict(list)
    for rate, _, value in tried["points"]:
        diverged[rate].append(value is None)
    lost = [f"{sum(each)} of {len(each)} at {setting(rate)}" for rate, each in sorted(diverged.items()) if any(each)]
    if lost:
        yield f"{name}: diverged, {', '.join(lost)}."
