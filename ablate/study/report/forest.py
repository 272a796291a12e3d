"""The plot of the effects: each arm's difference from the baseline, and how sure it is."""

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from ablate.metrics import METRICS
from ablate.page.drawing import GREY, Plot, brief, colour_of, empty_figure, line_of, safe, see_through
from ablate.study.report.findings import Findings
from ablate.study.report.words import effect_and_interval, signed

ROW = 66  # pixels


def forest(findings: Findings) -> Plot:
    """One row an arm: its mean difference from the baseline, the 95% interval, every pair, and the margin as a band."""
    study = findings.study
    plot = Plot("forest", f"Difference from {study.baseline}", "")
    drawn = {arm: said for arm in findings.rivals if (said := findings.judged[arm])["effect"] is not None}
    left_out = [arm for arm in findings.rivals if arm not in drawn]
    without = f" No pair of runs gives an effect of {', '.join(left_out)}." if left_out else ""
    if not findings.judged:
        return replace(plot, caption="There is no arm beside the baseline.")
    if not drawn:
        return replace(plot, caption=without.strip())
    margin = next(iter(drawn.values()))["margin"]
    figure = empty_figure(0)
    for row, (arm, said) in enumerate(drawn.items()):
        _row(figure, arm, said, -row, findings.arms.index(arm))
    _ground(figure, margin)
    _directions(figure, study.rising)
    low, high = _reach(drawn, margin)
    unit = METRICS[study.metric].unit
    title = f"{safe(study.metric)} minus that of {safe(brief(study.baseline))}{f', {unit}' if unit else ''}"
    figure.update_xaxes(title=title, range=[low, high])
    figure.update_yaxes(visible=False, range=[0.55 - len(drawn), 0.75], fixedrange=True)
    figure.update_layout(showlegend=False, height=96 + ROW * len(drawn), margin_t=44)
    caption = "Means over pairs of one seed, and their 95% intervals; each pair is a faint dot."
    if margin is not None:
        caption += f" Grey: within the margin, ±{margin:g}."
    return replace(plot, caption=caption + without, figure=figure)


def _row(figure: go.Figure, arm: str, said: dict[str, Any], row: float, number: int) -> None:
    colour, symbol = colour_of(number), line_of(number)["marker"]["symbol"]  # as in the other plots
    effect, interval = effect_and_interval(said)
    figure.add_scatter(
        x=said["differences"],
        y=[row - 0.2] * len(said["differences"]),
        mode="markers",
        marker={"color": see_through(colour, 0.4), "size": 8},
        hovertext=[f"{safe(arm)}, {name}: {signed(d)}" for name, d in _pairs(said)],
        hoverinfo="text",
    )
    reach = {}
    if interval:
        low, high = said["interval"]
        reach = {"array": [high - said["effect"]], "arrayminus": [said["effect"] - low], "symmetric": False}
    figure.add_scatter(
        x=[said["effect"]],
        y=[row],
        error_x={"color": colour, "thickness": 3, "width": 7, **reach} if reach else None,
        mode="markers",
        marker={"color": colour, "size": 13, "symbol": symbol if interval else f"{symbol}-open"},
        hovertext=f"{safe(arm)}: {effect} ({interval or 'no interval'}), pairs: {said['pairs']}",
        hoverinfo="text",
    )
    figure.add_annotation(
        x=0,
        xref="paper",
        xanchor="left",
        y=row,
        yshift=21,
        text=f"<b>{safe(brief(arm, 34))}</b>: {said['verdict']}, {effect}",
        showarrow=False,
    )


def _pairs(said: dict[str, Any]) -> list[tuple[str, float]]:
    return [(f"seed {seed}", d) for seed, d in zip(said["seeds"], said["differences"], strict=True)]


def _ground(figure: go.Figure, margin: float | None) -> None:
    if margin is not None:
        figure.add_vrect(-margin, margin, fillcolor=see_through(GREY, 0.16), line_width=0, layer="below")
    figure.add_vline(0, line={"color": GREY, "width": 1.5}, layer="below")


def _directions(figure: go.Figure, rising: bool) -> None:
    left, right = ("worse", "better") if rising else ("better", "worse")
    shared = {"xref": "paper", "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    figure.add_annotation(x=0, xanchor="left", text=f"← {left}", **shared)
    figure.add_annotation(x=1, xanchor="right", text=f"{right} →", **shared)


def _reach(drawn: dict[str, dict[str, Any]], margin: float | None) -> tuple[float, float]:
    """Of the axis: zero, the margin, every interval and every pair lie in it."""
    values = [0.0, margin or 0.0, -(margin or 0.0)]
    for said in drawn.values():
        values += [said["effect"], *said["differences"], *(said["interval"] or [])]
    values = [value for value in values if value is not None]
    pad = 0.06 * (max(values) - min(values)) or 0.01
    return min(values) - pad, max(values) + pad
