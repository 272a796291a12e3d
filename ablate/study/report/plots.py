"""The plots of a report: effects, curves, loss by position, learning rates.

A curve's line is the mean over the seeds; its band reaches from the least to the most. A plot shows one `View` at a
time, which the reader chooses.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import plotly.graph_objects as go

from ablate.metrics import METRICS
from ablate.page.drawing import GREY, Plot, brief, colour_of, empty_figure, line_of, safe, see_through
from ablate.study.judge.contest import HELD
from ablate.study.judge.verdict import Verdict
from ablate.study.records import TOKENS, RunRecord
from ablate.study.report.forest import forest
from ablate.study.report.rates import learning_rates
from ablate.words import level, rounded, scale, short

MARKED = 16  # points: a line with at most this many gets a marker at each
START = 0.2  # share of a curve that the y axis leaves out: it falls so far there that the rest would look flat
BANDS = "Means over the seeds; the bands reach from the least to the most."
POSITION = "position in the document, tokens"

Curve = dict[float, float]


def all_plots(verdict: Verdict) -> list[Plot]:
    plots = [forest(verdict), curves(verdict), positions(verdict)]
    return [*plots, learning_rates(verdict)] if verdict.tuning else plots


# --- what is shown ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One choice of a plot.

    curves: arm -> a curve for each finished run. broken: arm -> a curve for each run that diverged.
    settled: whether the y axis leaves out the start. difference: whether the y axis shows zero.
    text: arm, value -> the value as text.
    """

    label: str
    x_title: str
    y_title: str
    curves: dict[str, list[Curve]]
    broken: dict[str, list[Curve]] = field(default_factory=dict)
    settled: bool = False
    difference: bool = False
    text: Callable[[str, float], str] = lambda arm, value: level(value)

    @property
    def empty(self) -> bool:
        """Whether no line in it has two points."""
        return not any(len(curve) > 1 for lines in (self.curves, self.broken) for c in lines.values() for curve in c)


def curves(verdict: Verdict) -> Plot:
    """The metric and the training loss against their cost, and the metric's difference from the baseline."""
    metric = verdict.study.metric
    plot = Plot("curves", "Over the training", "")
    names = list(dict.fromkeys([metric, "train/loss"]))
    views = [_against(verdict, name, axis) for name in names for axis in HELD]
    views.insert(len(HELD), _from_baseline(verdict))
    views = [view for view in views if not view.empty]
    if not views:
        return replace(
            plot, caption=f"No run logged {metric} twice; set a smaller trainer.val_check_interval to get this plot."
        )
    caption = BANDS
    if any(view.broken and any(view.broken.values()) for view in views):
        caption += " Dotted: runs that diverged, one by one."
    if any(map(_cut_off, views)):
        caption += " The button Autoscale shows what is cut off, such as the start."
    figure = _drawn(views, list(verdict.runs))
    figure.update_xaxes(tickformat="~s", rangemode="tozero")
    return replace(plot, caption=caption, figure=figure, choices=[view.label for view in views])


def _against(verdict: Verdict, metric: str, axis: str) -> View:
    def of(runs: Callable[[Any], list[RunRecord]]) -> dict[str, list[Curve]]:
        return {name: list(_curves(runs(arm), metric, axis).values()) for name, arm in verdict.runs.items()}

    return View(
        f"{metric} against {HELD[axis]}",
        HELD[axis],
        METRICS[metric].titled,
        of(lambda arm: arm.finished),
        of(lambda arm: [run for run in arm.runs.values() if run.diverged]),
        settled=True,
    )


def _from_baseline(verdict: Verdict) -> View:
    metric, baseline = verdict.study.metric, verdict.study.baseline

    def text(arm: str, value: float) -> str:
        effect, interval = verdict.arms[arm].statistics.effect, verdict.arms[arm].statistics.interval
        return level(value) if effect is None else rounded(value, scale(effect, interval), sign=True)

    by_seed = {name: _curves(arm.finished, metric, TOKENS) for name, arm in verdict.runs.items()}
    return View(
        f"{metric}, difference from {baseline}",
        HELD[TOKENS],
        f"{metric} minus that of {baseline}",
        {arm: _minus(by_seed[arm], by_seed[baseline]) for arm in verdict.arms},
        settled=True,
        difference=True,
        text=text,
    )


def _curves(runs: list[RunRecord], metric: str, axis: str) -> dict[int, Curve]:
    """{seed: {cost so far: value}}. Each step costs the mean over these runs; empty if no cost is known."""
    costs = [cost for run in runs if (cost := run.cost_of_step(axis))]
    if not costs:
        return {}
    cost = sum(costs) / len(costs)
    by_seed = {run.seed: {step * cost: y for step, y in run.curve(metric) if math.isfinite(y)} for run in runs}
    return {seed: curve for seed, curve in by_seed.items() if curve}


def positions(verdict: Verdict) -> Plot:
    """Validation loss by position, also beyond the context, and its difference from the baseline's."""
    plot = Plot("positions", "Loss by position in the document", "")
    finished = {name: arm.finished for name, arm in verdict.runs.items()}
    by_seed = {name: {run.seed: _by_position(run) for run in runs} for name, runs in finished.items()}
    baseline, loss = verdict.study.baseline, METRICS["val/loss"]
    difference = {arm: _minus(by_seed[arm], by_seed[baseline]) for arm in verdict.arms}
    views = [
        View("loss", POSITION, f"validation loss, {loss.unit}", {arm: [*c.values()] for arm, c in by_seed.items()}),
        View(f"difference from {baseline}", POSITION, f"loss minus that of {baseline}", difference),
    ]
    views = [view for view in views if not view.empty]
    if not views:
        return replace(plot, caption="No run measured its loss by position.")
    contexts = {run.recorded("by_position.context") for runs in finished.values() for run in runs}
    figure = _drawn(views, list(verdict.runs))
    for context in sorted(filter(None, contexts)):
        label = {"text": f"context: {context:,}", "textposition": "end", "textangle": 0, "yanchor": "bottom"}
        figure.add_vline(context, line={"dash": "dash", "width": 1.5, "color": GREY}, label=label)
    figure.update_xaxes(rangemode="tozero")
    caption = f"{BANDS} Dashed: the end of the trained context."
    missing = [arm for arm, of_arm in by_seed.items() if not any(of_arm.values())]
    if missing:
        caption += f" Not measured: {', '.join(missing)}."
    return replace(plot, caption=caption, figure=figure, choices=[view.label for view in views])


def _by_position(run: RunRecord) -> Curve:
    """{middle of a stretch of positions: its loss}."""
    edges, losses = (run.recorded(f"by_position.{key}") or [] for key in ("edges", "loss"))
    stretches = zip(edges, edges[1:], losses, strict=False)
    return {(low + high) / 2: loss for low, high, loss in stretches if loss is not None and math.isfinite(loss)}


def _minus(curves: dict[int, Curve], base: dict[int, Curve]) -> list[Curve]:
    """For each seed in both: its curve minus its base, at the points that both have."""
    pairs = [(curves[seed], base[seed]) for seed in sorted(curves.keys() & base.keys())]
    return [{x: y - other[x] for x, y in curve.items() if x in other} for curve, other in pairs]


# --- how it is drawn -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Band:
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def _band(curves: list[Curve]) -> _Band:
    """The mean, least and most at the points that all curves share."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[x] for curve in curves] for x in shared]
    return _Band(shared, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def _bands(curves: list[Curve]) -> list[_Band]:
    """One band over all curves; if they share fewer than two points, one band for each."""
    together = _band(curves)
    return [together] if len(together.x) > 1 else [_band([curve]) for curve in curves if curve]


def _drawn(views: list[View], arms: list[str]) -> go.Figure:
    """A figure with a choice for each view; an arm's place in `arms` sets its colour."""
    figure = empty_figure(len(arms))
    for choice, view in enumerate(views):
        for i, arm in enumerate(arms):
            for trace in _traces(view, arm, i):
                figure.add_scatter(**trace, meta=choice, visible=choice == 0, legendgroup=str(i))
    layouts = [_layout(view) for view in views]
    figure.update_layout(layouts[0])
    figure.update_layout(meta=layouts)
    figure.update_yaxes(zeroline=True, zerolinecolor=GREY)
    return figure


def _traces(view: View, arm: str, number: int) -> Iterable[dict[str, Any]]:
    name, colour = safe(brief(arm)), colour_of(number)
    for order, band in enumerate(_bands(view.curves.get(arm, []))):
        if band.low != band.high:
            yield {
                "x": band.x + band.x[::-1],
                "y": band.high + band.low[::-1],
                "fill": "toself",
                "fillcolor": see_through(colour, 0.18),
                "line": {"width": 0},
                "mode": "lines",
                "hoverinfo": "skip",
                "showlegend": False,
            }
        style = line_of(number) | {"mode": "lines+markers" if len(band.x) <= MARKED else "lines"}
        style["marker"] = style["marker"] | {"size": 7}
        hover = [_hover(view, arm, band, at) for at in range(len(band.x))]
        named = {"name": name, "showlegend": order == 0}
        yield {"x": band.x, "y": band.mean, "hovertext": hover, "hoverinfo": "text", **named, **style}
    for order, curve in enumerate(curve for curve in view.broken.get(arm, []) if curve):
        yield {
            "x": list(curve),
            "y": list(curve.values()),
            "name": f"{name}, diverged",
            "showlegend": order == 0,
            "mode": "lines",
            "line": {"color": colour, "width": 1.5, "dash": "dot"},
            "hoverinfo": "name",
        }


def _hover(view: View, arm: str, band: _Band, at: int) -> str:
    mean, low, high = (view.text(arm, values[at]) for values in (band.mean, band.low, band.high))
    spread = f" ({low} – {high})" if band.low[at] != band.high[at] else ""
    return f"{safe(arm)}<br>{short(band.x[at])} {view.x_title}<br>{mean}{spread}"


def _layout(view: View) -> dict[str, Any]:
    """The layout of a view, with the flat keys that Plotly.update takes."""
    layout = {"xaxis.title.text": view.x_title, "yaxis.title.text": view.y_title}
    shown = _range(view)
    return layout | ({"yaxis.range": shown, "yaxis.autorange": False} if shown else {"yaxis.autorange": True})


def _range(view: View) -> list[float] | None:
    """The range of the y axis: from the least to the most of the bands after their start; None leaves it to plotly."""
    bands = [band for curves in view.curves.values() for band in _bands(curves) if len(band.x) > 1]
    if not view.settled or not bands:
        return None
    begin = START * max(band.x[-1] for band in bands)
    ends = [y for band in bands for ys in (band.low, band.high) for x, y in zip(band.x, ys, strict=True) if x >= begin]
    if not ends:
        return None
    ends += [0.0] if view.difference else []
    pad = 0.06 * (max(ends) - min(ends)) or 0.01
    return [min(ends) - pad, max(ends) + pad]


def _cut_off(view: View) -> bool:
    """Whether the y axis leaves out some part of a line."""
    shown = _range(view)
    drawn = [y for lines in (view.curves, view.broken) for curves in lines.values() for c in curves for y in c.values()]
    return shown is not None and not shown[0] <= min(drawn) <= max(drawn) <= shown[1]
