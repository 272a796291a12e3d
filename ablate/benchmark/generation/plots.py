"""The plots of the benchmark of generation: gain and cost of the cache, latency and throughput, all ways compared."""

from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from ablate.benchmark.generation.measure import UNCACHED, Point, Workload
from ablate.benchmark.generation.results import Result
from ablate.benchmark.generation.words import described, spread
from ablate.benchmark.rounds import Measured
from ablate.page.drawing import GREY, Plot, bar_of, colour_of, empty_figure, line_of, log_x, log_y, safe, thin_line
from ablate.words import number, size

WIDE = 30  # above this ratio of the largest value to the smallest, the axis is logarithmic
OPTIONS = {"batch": "batch=[1,4,16]", "new_tokens": "new_tokens=[32,128,512]"}


@dataclass(frozen=True)
class _Dot:
    """A value of the result with this index, and the limit of the machine for it."""

    result: int
    workload: Workload
    value: Measured
    limit: float | None = None


def all_plots(results: list[Result]) -> list[Plot]:
    return [speedup(results), memory(results), latency(results), throughput(results), ways(results)]


# --- lines over new tokens or batches ----------------------------------------------------------------


def speedup(results: list[Result]) -> Plot:
    plot = Plot(
        "speedup",
        "Speed-up by the cache, against new tokens",
        "Tokens/s with the KV cache divided by tokens/s without it. The bars reach from the slowest round with it "
        "divided by the fastest without it, to the fastest divided by the slowest.",
    )
    dots = [_Dot(i, p.workload, _gain(result, p)) for i, result, p in _cached(results) if p.speedup]
    if not dots:
        return replace(plot, caption="Nothing was measured without the cache; uncached=true does.")
    return _lines(plot, results, dots, "new_tokens", "times as fast as without")


def latency(results: list[Result]) -> Plot:
    plot = Plot(
        "latency",
        "Latency against batch",
        "Time of a decoding step with the KV cache, after the first token. The bars reach from the fastest round to "
        "the slowest.",
    )
    dots = [
        _Dot(i, p.workload, p.token_s.scaled(1e3), p.limit_token_s and p.limit_token_s * 1e3)
        for i, _, p in _cached(results)
        if p.token_s
    ]
    if not dots:
        return replace(plot, caption="No decoding step was timed: every text was one token long.")
    return _lines(plot, results, dots, "batch", "ms per decoding step")


def throughput(results: list[Result]) -> Plot:
    plot = Plot(
        "throughput",
        "Throughput against batch",
        "New tokens of all rows divided by the whole time, with the KV cache, including the prompts' pass. The limit "
        "counts only the decoding steps.",
    )
    dots = [
        _Dot(i, p.workload, p.tokens_per_s, p.limit_token_s and p.batch / p.limit_token_s)
        for i, _, p in _cached(results)
    ]
    if not dots:
        return replace(plot, caption="Nothing was measured with the cache.")
    return _lines(plot, results, dots, "batch", "tokens/s")


def _cached(results: list[Result]) -> list[tuple[int, Result, Point]]:
    return [(i, result, point) for i, result in enumerate(results) for point in result.cached]


def _gain(result: Result, point: Point) -> Measured:
    fast, slow = point.tokens_per_s, result.at(point.workload)[UNCACHED].tokens_per_s
    return Measured(fast.median / slow.median, fast.min / slow.max, fast.max / slow.min)


def _lines(plot: Plot, results: list[Result], dots: list[_Dot], axis: str, unit: str) -> Plot:
    """`plot` with a line per result over `axis`, a field of Workload, and a choice per value of the other fields."""
    groups: dict[Workload, list[_Dot]] = {}
    for dot in sorted(dots, key=lambda dot: dot.workload):
        groups.setdefault(replace(dot.workload, **{axis: 1}), []).append(dot)
    groups = {rest: group for rest, group in groups.items() if len({_along(dot, axis) for dot in group}) > 1}
    if not groups:
        return replace(plot, caption=f"{axis} had one value only; {OPTIONS[axis]} draws this plot.")
    drawn = [dot for group in groups.values() for dot in group]
    figure = empty_figure(len(results) + 1)
    choices = sorted(groups, key=_main_first)
    for choice, rest in enumerate(choices):
        for i, result in enumerate(results):
            line = [dot for dot in groups[rest] if dot.result == i]
            shown = {"meta": choice, "visible": choice == 0, "legendgroup": str(i)}
            if any(dot.limit for dot in line):
                _add_limit(figure, i, line, axis, shown)
            _add_line(figure, result, i, line, axis, unit, shown)
    if any(dot.limit for dot in drawn):
        figure.add_scatter(x=[None], y=[None], **thin_line(GREY, "dash"), name="limit by bandwidth and FLOP rate")
    log_x(figure, axis.replace("_", " "), {_along(dot, axis) for dot in drawn})
    values = [y for dot in drawn for y in (dot.value.median, dot.limit) if y]
    figure.update_yaxes(title=unit, rangemode="tozero")
    if max(values) > WIDE * min(values):
        log_y(figure, values, number)
    return replace(plot, figure=figure, choices=[described(rest, leave_out=axis) for rest in choices])


def _add_limit(figure: go.Figure, i: int, line: list[_Dot], axis: str, shown: dict[str, Any]) -> None:
    figure.add_scatter(
        x=[_along(dot, axis) for dot in line],
        y=[dot.limit for dot in line],
        hoverinfo="skip",
        showlegend=False,
        **thin_line(colour_of(i), "dash"),
        **shown,
    )


def _add_line(
    figure: go.Figure, result: Result, i: int, line: list[_Dot], axis: str, unit: str, shown: dict[str, Any]
) -> None:
    figure.add_scatter(
        x=[_along(dot, axis) for dot in line],
        y=[dot.value.median for dot in line],
        error_y=_error_bars([dot.value for dot in line]),
        name=safe(result.label),
        hovertext=[_hover(result, described(dot.workload), dot.value, unit, dot.limit) for dot in line],
        hoverinfo="text",
        **line_of(i),
        **shown,
    )


def _along(dot: _Dot, axis: str) -> int:
    return getattr(dot.workload, axis)


# --- the cache ---------------------------------------------------------------------------------------


def memory(results: list[Result]) -> Plot:
    """The cache of each result, and of the first result's model with other attention and patterns."""
    plot = Plot(
        "memory",
        "Memory of the cache, against context",
        f"Keys and values of one row, counted, not measured. Dotted: {results[0].label} with other attention and "
        "patterns.",
    )
    own = [(i, r, curve) for i, r in enumerate(results) for curve in r.cache_memory if curve.this and curve.points]
    taken = [curve.points for _, _, curve in own]
    others = [curve for curve in results[0].cache_memory if curve.points and curve.points not in taken]
    if not own and not others:
        return replace(plot, caption="Nothing was counted.")
    figure = empty_figure(len(own) + len(others))
    for i, result, curve in own:
        name = result.label if len(results) > 1 else _this_model(curve.name)
        _add_curve(figure, name, curve.points, line_of(i))
    for i, curve in enumerate(others, start=len(results)):
        _add_curve(figure, curve.name, curve.points, thin_line(colour_of(i), "dot"))
    points = [point for curve in [*taken, *(other.points for other in others)] for point in curve]
    log_x(figure, "context, tokens", {x for x, _ in points})
    figure.update_yaxes(title="cache")
    log_y(figure, [y for _, y in points], size)
    return replace(plot, figure=figure)


def _add_curve(figure: go.Figure, name: str, points: list[list[int]], style: dict[str, Any]) -> None:
    hover = [f"{safe(name)}<br>{x:,} tokens: {size(y)}" for x, y in points]
    x, y = zip(*points, strict=True)
    figure.add_scatter(x=x, y=y, name=safe(name), hovertext=hover, hoverinfo="text", **style)


def _this_model(name: str) -> str:
    return name if name == "this model" else f"{name}, this model"


# --- all ways ----------------------------------------------------------------------------------------


def ways(results: list[Result]) -> Plot:
    """Bars of tokens/s at one workload at a time. The first choice is the workload with the most measurements."""
    plot = Plot("ways", "Tokens/s of every way", "The thin bars reach from the slowest round to the fastest.")
    points = [point for result in results for point in result.points]
    names = list(dict.fromkeys(_broken(point.way) for point in points))
    workloads = [point.workload for point in points]
    choices = sorted(set(workloads), key=lambda workload: (-workloads.count(workload), _main_first(workload)))
    if not choices:
        return replace(plot, caption="Nothing was measured.")
    figure = empty_figure(len(results))
    for choice, workload in enumerate(choices):
        for i, result in enumerate(results):
            _add_bars(figure, result, i, workload, {"meta": choice, "visible": choice == 0})
    height = 130 + 20 * len(results) + 28 * len(names) * len(results)
    figure.update_layout(
        height=height, showlegend=len(results) > 1, bargap=0.25, scattermode="group", scattergap=0.25, margin_r=56
    )
    figure.update_xaxes(title="tokens/s", rangemode="tozero")
    figure.update_yaxes(categoryorder="array", categoryarray=names, autorange="reversed")
    return replace(plot, figure=figure, choices=[described(workload) for workload in choices])


def _add_bars(figure: go.Figure, result: Result, i: int, workload: Workload, shown: dict[str, Any]) -> None:
    """A bar for each way of one result at one workload, with its number to the right."""
    points = list(result.at(workload).values())
    rates = [point.tokens_per_s for point in points]
    shared = {
        "y": [_broken(point.way) for point in points],
        "orientation": "h",
        "name": safe(result.label),
        "offsetgroup": str(i),
        "legendgroup": str(i),
        **shown,
    }
    there = described(workload)
    figure.add_bar(
        x=[rate.median for rate in rates],
        error_x=_error_bars(rates, GREY),
        marker=bar_of(i),
        hovertext=[_hover(result, f"{safe(p.way)}, {there}", p.tokens_per_s, "tokens/s") for p in points],
        hoverinfo="text",
        **shared,
    )
    figure.add_scatter(
        x=[rate.max for rate in rates],
        text=[f" {number(rate.median)}" for rate in rates],
        mode="text",
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
        **shared,
    )


# --- shared ------------------------------------------------------------------------------------------


def _error_bars(values: list[Measured], colour: str | None = None) -> dict[str, Any]:
    return {
        "color": colour,
        "array": [value.max - value.median for value in values],
        "arrayminus": [value.median - value.min for value in values],
        "symmetric": False,
        "thickness": 1.5,
        "width": 4,
    }


def _main_first(workload: Workload) -> tuple[int, int, int]:
    """A key for sorting: the longest texts first, then the smallest batch, then the shortest prompt."""
    return -workload.new_tokens, workload.batch, workload.prompt_tokens


def _hover(result: Result, there: str, value: Measured, unit: str, limit: float | None = None) -> str:
    bound = f"<br>limit: {number(limit)} {unit}" if limit else ""
    return f"{safe(result.label)}<br>{there}<br>{number(value.median)} {unit} ({spread(value)}){bound}"


def _broken(way: str) -> str:
    return safe(way).replace(", ", ",<br>")
