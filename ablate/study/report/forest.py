"""The plot of the effects: each arm's difference from the baseline with its interval."""

from dataclasses import replace

import plotly.graph_objects as go

from ablate.metrics import METRICS
from ablate.page.drawing import GREY, Plot, brief, colour_of, empty_figure, line_of, safe, see_through
from ablate.study.judge.verdict import ArmVerdict, Verdict
from ablate.words import estimate, rounded, scale, setting

ROW = 66  # pixels


def forest(verdict: Verdict) -> Plot:
    """A row for each arm: its mean difference from the baseline, the 95% interval, every pair, and the margin as a
    band."""
    study = verdict.study
    plot = Plot("forest", f"Difference from {study.baseline}", "")
    drawn = {name: arm for name, arm in verdict.arms.items() if arm.statistics.effect is not None}
    left_out = [name for name in verdict.arms if name not in drawn]
    without = f" Not shown, because no pair of runs gives an effect: {', '.join(left_out)}." if left_out else ""
    if not verdict.arms:
        return replace(plot, caption="There is no arm besides the baseline.")
    if not drawn:
        return replace(plot, caption=without.strip())
    numbers = list(verdict.runs)
    figure = empty_figure(0)
    for row, (name, arm) in enumerate(drawn.items()):
        _row(figure, name, arm, -row, numbers.index(name))
    figure.add_vrect(-study.margin, study.margin, fillcolor=see_through(GREY, 0.16), line_width=0, layer="below")
    figure.add_vline(0, line={"color": GREY, "width": 1.5}, layer="below")
    _directions(figure, study.rising)
    unit = METRICS[study.metric].unit
    title = f"{safe(study.metric)} minus that of {safe(brief(study.baseline))}{f', {unit}' if unit else ''}"
    figure.update_xaxes(title=title, range=_range(list(drawn.values()), study.margin))
    figure.update_yaxes(visible=False, range=[0.55 - len(drawn), 0.75], fixedrange=True)
    figure.update_layout(showlegend=False, height=96 + ROW * len(drawn), margin_t=44)
    caption = "Mean difference over the seeds, with its 95% interval; each faint dot is one seed's pair of runs."
    caption += f" Grey: within the margin, ±{setting(study.margin)}."
    return replace(plot, caption=caption + without, figure=figure)


def _row(figure: go.Figure, name: str, arm: ArmVerdict, row: float, number: int) -> None:
    colour, symbol = colour_of(number), line_of(number)["marker"]["symbol"]  # as in the other plots
    statistics = arm.statistics
    effect, interval = estimate(statistics.effect, statistics.interval)
    error = scale(statistics.effect, statistics.interval)
    figure.add_scatter(
        x=list(arm.differences.values()),
        y=[row - 0.2] * len(arm.differences),
        mode="markers",
        marker={"color": see_through(colour, 0.4), "size": 8},
        hovertext=[
            f"{safe(name)}, seed {seed}: {rounded(difference, error, sign=True)}"
            for seed, difference in arm.differences.items()
        ],
        hoverinfo="text",
    )
    bars = None
    if statistics.interval:
        low, high = statistics.interval
        ends = {"array": [high - statistics.effect], "arrayminus": [statistics.effect - low], "symmetric": False}
        bars = {"color": colour, "thickness": 3, "width": 7, **ends}
    figure.add_scatter(
        x=[statistics.effect],
        y=[row],
        error_x=bars,
        mode="markers",
        marker={"color": colour, "size": 13, "symbol": symbol if interval else f"{symbol}-open"},
        hovertext=f"{safe(name)}: {effect} ({interval or 'no interval'}), pairs: {statistics.pairs}",
        hoverinfo="text",
    )
    figure.add_annotation(
        x=0,
        xref="paper",
        xanchor="left",
        y=row,
        yshift=21,
        text=f"<b>{safe(brief(name, 34))}</b>: {arm.verdict}, {effect}",
        showarrow=False,
    )


def _directions(figure: go.Figure, rising: bool) -> None:
    left, right = ("worse", "better") if rising else ("better", "worse")
    shared = {"xref": "paper", "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    figure.add_annotation(x=0, xanchor="left", text=f"← {left}", **shared)
    figure.add_annotation(x=1, xanchor="right", text=f"{right} →", **shared)


def _range(drawn: list[ArmVerdict], margin: float) -> list[float]:
    """The range of the x axis: from zero and the margin to every interval and every pair."""
    values = [margin, -margin]
    for arm in drawn:
        values += [arm.statistics.effect, *arm.differences.values(), *(arm.statistics.interval or [])]
    pad = 0.06 * (max(values) - min(values))
    return [min(values) - pad, max(values) + pad]
