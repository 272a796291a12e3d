"""How plots look on a page: colours, lines, markers, axes."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito (2008): distinct for colour-blind readers, readable on a light and on a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon")
PATTERNS = ("", "/", "x")  # of bars, once all colours are used
GREY, FAINT = "#808080", "rgba(128, 128, 128, 0.3)"
LABELS = 6  # the most labels on an axis: a phone has no room for more


@dataclass(frozen=True)
class Plot:
    """One plot of the page.

    figure: None if too little was measured; the caption then says why.
    choices: the reader picks one. A trace's `meta` is the number of the choice that shows it; None: every choice does.
        The layout's `meta`, if any, lists what each choice changes in the layout.
    """

    name: str
    title: str
    caption: str
    figure: go.Figure | None = None
    choices: list[str] = field(default_factory=list)


def empty_figure(named: int) -> go.Figure:
    """A figure without traces, with room for `named` names in its legend and a transparent background.

    The page's style sheet gives its grey text the page's colours.
    """
    axis = {"gridcolor": FAINT, "linecolor": GREY, "zeroline": False, "automargin": True}
    return go.Figure(
        layout={
            "template": "none",
            "height": 340 + 20 * named,
            "paper_bgcolor": "rgba(0, 0, 0, 0)",
            "plot_bgcolor": "rgba(0, 0, 0, 0)",
            "font": {"color": GREY, "size": 13, "family": "system-ui, sans-serif"},
            "margin": {"l": 8, "r": 12, "t": 34, "b": 8},
            "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": GREY, "activecolor": COLOURS[0]},
            "legend": {
                "orientation": "h",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "x": 0,
                "maxheight": 1,
                "tracegroupgap": 0,
            },
            "showlegend": True,
            "dragmode": False,  # a finger scrolls the page
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def log_x(figure: go.Figure, title: str, ticks: set[float]) -> None:
    shown = sorted(ticks)[:: -math.ceil(len(ticks) / LABELS)]
    figure.update_xaxes(title=title, type="log", tickvals=shown, ticktext=[f"{x:,}" for x in shown])


def log_y(figure: go.Figure, values: list[float], text: Callable[[float], str]) -> None:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low < 5 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[text(tick) for tick in ticks])


def line_of(number: int) -> dict[str, Any]:
    marker = {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9}
    return {"mode": "lines+markers", "line": {"color": colour_of(number), "width": 2.5}, "marker": marker}


def thin_line(colour: str, dash: str) -> dict[str, Any]:
    return {"mode": "lines", "line": {"color": colour, "dash": dash, "width": 1.8}}


def bar_of(number: int) -> dict[str, Any]:
    return {"color": colour_of(number), "pattern": {"shape": PATTERNS[number // len(COLOURS) % len(PATTERNS)]}}


def colour_of(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def see_through(colour: str, opacity: float) -> str:
    """#0072B2 -> rgba(0, 114, 178, 0.2)"""
    return f"rgba{(*bytes.fromhex(colour.removeprefix('#')), opacity)}"


def brief(name: str, most: int = 40) -> str:
    """The name; only its two ends if it has more than `most` characters."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most // 2]} … {name[-most // 2 + 3 :]}"


def safe(text: str) -> str:
    """Escaped for plotly, which interprets some HTML tags in its texts."""
    return html.escape(text, quote=False)
