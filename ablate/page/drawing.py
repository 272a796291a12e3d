"""How the plots of the pages look."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of Okabe and Ito: read on any ground
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon")
PATTERNS = ("", "/", "x")  # of bars, where the colours begin again
GREY, FAINT = "#808080", "rgba(128, 128, 128, 0.3)"
LABELS = 6  # of an axis: as many as a telephone has room for


@dataclass(frozen=True)
class Plot:
    """One plot of the page.

    figure: None if too little was measured; the caption then says so.
    choices: what it shows one at a time; a trace's `meta` is the number of its choice, None if it is in all. The
    layout's `meta`, if there, lists what each choice changes of the layout.
    """

    name: str
    title: str
    caption: str
    figure: go.Figure | None = None
    choices: list[str] = field(default_factory=list)


def empty_figure(named: int) -> go.Figure:
    """Empty, with room for so many names in the legend, on the page's own ground.

    What is grey here takes the page's colours by its style sheet.
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
    """Its two ends, where it is too long for a plot."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most // 2]} … {name[-most // 2 + 3 :]}"


def safe(text: str) -> str:
    """For plotly, which reads some HTML in its texts."""
    return html.escape(text, quote=False)
