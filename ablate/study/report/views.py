"""Lines of several arms: the mean over the seeds, and the band from the least to the most."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from ablate.page.drawing import GREY, brief, colour_of, empty_figure, line_of, safe, see_through
from ablate.study.report.words import level
from ablate.words import short

MARKED = 16  # points: as many of a line are marked one by one
START = 0.2  # of a curve: it falls so far there that the rest would be flat

Curve = dict[float, float]


@dataclass(frozen=True)
class View:
    """One choice of a plot.

    curves: arm -> a curve of each finished run. broken: arm -> of each run that diverged.
    settled: whether the axis shows what comes after the start. difference: whether it shows zero too.
    """

    label: str
    x_title: str
    y_title: str
    curves: dict[str, list[Curve]]
    broken: dict[str, list[Curve]] = field(default_factory=dict)
    settled: bool = False
    difference: bool = False

    @property
    def empty(self) -> bool:
        """Whether no line in it has two points."""
        return not any(len(curve) > 1 for lines in (self.curves, self.broken) for c in lines.values() for curve in c)


@dataclass(frozen=True)
class Band:
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def band(curves: list[Curve]) -> Band:
    """Over the points that all have."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = [[curve[x] for curve in curves] for x in shared]
    return Band(shared, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values])


def bands(curves: list[Curve]) -> list[Band]:
    """One over all; where they share no two points, one of each."""
    together = band(curves)
    return [together] if len(together.x) > 1 else [band([curve]) for curve in curves if curve]


def minus(curves: dict[int, Curve], base: dict[int, Curve]) -> list[Curve]:
    """Of each seed that both have: the one curve less the other, where both have a point."""
    pairs = [(curves[seed], base[seed]) for seed in sorted(curves.keys() & base.keys())]
    return [{x: y - other[x] for x, y in curve.items() if x in other} for curve, other in pairs]


def draw(views: list[View], arms: list[str]) -> go.Figure:
    """A figure with a choice for each view; an arm's colour is that of its place in `arms`."""
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
    found = bands(view.curves.get(arm, []))
    for order, line in enumerate(found):
        if line.low != line.high:
            yield {
                "x": line.x + line.x[::-1],
                "y": line.high + line.low[::-1],
                "fill": "toself",
                "fillcolor": see_through(colour, 0.18),
                "line": {"width": 0},
                "mode": "lines",
                "hoverinfo": "skip",
                "showlegend": False,
            }
        style = line_of(number) | {"mode": "lines+markers" if len(line.x) <= MARKED else "lines"}
        style["marker"] = style["marker"] | {"size": 7}
        hover = [_hover(view, arm, line, at) for at in range(len(line.x))]
        named = {"name": name, "showlegend": order == 0}
        yield {"x": line.x, "y": line.mean, "hovertext": hover, "hoverinfo": "text", **named, **style}
    for order, curve in enumerate(c for c in view.broken.get(arm, []) if c):
        yield {
            "x": list(curve),
            "y": list(curve.values()),
            "name": f"{name}, diverged",
            "showlegend": order == 0,
            "mode": "lines",
            "line": {"color": colour, "width": 1.5, "dash": "dot"},
            "hoverinfo": "name",
        }


def _hover(view: View, arm: str, line: Band, at: int) -> str:
    spread = f" ({level(line.low[at])} – {level(line.high[at])})" if line.low[at] != line.high[at] else ""
    return f"{safe(arm)}<br>{short(line.x[at])} {view.x_title}<br>{level(line.mean[at])}{spread}"


def _layout(view: View) -> dict[str, Any]:
    """By flat keys, which Plotly.update takes."""
    layout = {"xaxis.title.text": view.x_title, "yaxis.title.text": view.y_title}
    shown = _range(view)
    return layout | ({"yaxis.range": shown, "yaxis.autorange": False} if shown else {"yaxis.autorange": True})


def _range(view: View) -> list[float] | None:
    """From the least to the most of the settled part of the bands; None: as it comes."""
    lines = [line for curves in view.curves.values() for line in bands(curves) if len(line.x) > 1]
    if not view.settled or not lines:
        return None
    begin = START * max(line.x[-1] for line in lines)
    ends = [y for line in lines for ys in (line.low, line.high) for x, y in zip(line.x, ys, strict=True) if x >= begin]
    if not ends:
        return None
    ends += [0.0] if view.difference else []
    pad = 0.06 * (max(ends) - min(ends)) or 0.01
    return [min(ends) - pad, max(ends) + pad]


def cut_off(view: View) -> bool:
    """Whether some of its lines lies outside of what the axis shows."""
    shown = _range(view)
    drawn = [y for lines in (view.curves, view.broken) for curves in lines.values() for c in curves for y in c.values()]
    return shown is not None and not shown[0] <= min(drawn) <= max(drawn) <= shown[1]
