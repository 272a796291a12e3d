"""The plots of the generation benchmark: what the cache gains and takes, batches, and the ways beside each other."""

from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from ablate.benchmark.generation.results import Measured, Place, Point, Result
from ablate.benchmark.generation.words import spread, where
from ablate.page.drawing import GREY, Plot, bar_of, colour_of, empty_figure, line_of, log_x, log_y, safe, thin_line
from ablate.words import number, size

WIDE = 30  # values so many times apart get a logarithmic axis
OPTIONS = {"batch": "batch=[1,4,16]", "new_tokens": "new_tokens=[32,128,512]"}


@dataclass(frozen=True)
class _Dot:
    """One value of the result of this number, and the bound that the limits put on it."""

    result: int
    place: Place
    value: Measured
    limit: float | None = None


def all_plots(results: list[Result]) -> list[Plot]:
    return [speedup(results), memory(results), latency(results), throughput(results), ways(results)]


def speedup(results: list[Result]) -> Plot:
    plot = Plot(
        "speedup",
        "Speed-up by the cache, against new tokens",
        "Tokens/s with the KV cache over tokens/s without it. The bars reach from the slowest round with it over the "
        "fastest without it to the reverse.",
    )
    dots = [_Dot(i, p.place, _gain(result, p)) for i, result in enumerate(results) for p in result.cached if p.speedup]
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
        _Dot(i, p.place, _milliseconds(p.token_s), p.limit_token_s and p.limit_token_s * 1e3)
        for i, result in enumerate(results)
        for p in result.cached
        if p.token_s
    ]
    if not dots:
        return replace(plot, caption="No decoding step was timed: every text was one token long.")
    return _lines(plot, results, dots, "batch", "ms per decoding step")


def throughput(results: list[Result]) -> Plot:
    plot = Plot(
        "throughput",
        "Throughput against batch",
        "New tokens of all rows over the whole time, with the KV cache, the prompts' pass included; the limit is that "
        "of the decoding steps alone.",
    )
    dots = [
        _Dot(i, p.place, p.tokens_per_s, p.limit_token_s and p.place.batch / p.limit_token_s)
        for i, result in enumerate(results)
        for p in result.cached
    ]
    if not dots:
        return replace(plot, caption="Nothing was measured with the cache.")
    return _lines(plot, results, dots, "batch", "tokens/s")


def _gain(result: Result, point: Point) -> Measured:
    fast, slow = point.tokens_per_s, result.at(point.place)["uncached"].tokens_per_s
    return Measured(point.speedup, fast.min / slow.max, fast.max / slow.min)


def _milliseconds(measured: Measured) -> Measured:
    return Measured(measured.median * 1e3, measured.min * 1e3, measured.max * 1e3)


def _lines(plot: Plot, results: list[Result], dots: list[_Dot], axis: str, unit: str) -> Plot:
    """`plot` with one line a result over `axis`, a field of Place, and a choice for all that the other fields were."""
    groups: dict[Place, list[_Dot]] = {}
    for dot in sorted(dots, key=lambda dot: dot.place):
        groups.setdefault(dot.place._replace(**{axis: 0}), []).append(dot)
    groups = {rest: group for rest, group in groups.items() if len({getattr(d.place, axis) for d in group}) > 1}
    if not groups:
        return replace(plot, caption=f"{axis} had one value only; {OPTIONS[axis]} draws this plot.")
    figure = empty_figure(len(results) + 1)
    choices = sorted(groups, key=_main_first)
    for choice, rest in enumerate(choices):
        for i, result in enumerate(results):
            line = [dot for dot in groups[rest] if dot.result == i]
            x = [getattr(dot.place, axis) for dot in line]
            seen = {"meta": choice, "visible": choice == 0, "legendgroup": str(i)}
            if any(dot.limit for dot in line):
                figure.add_scatter(
                    x=x,
                    y=[dot.limit for dot in line],
                    hoverinfo="skip",
                    showlegend=False,
                    **thin_line(colour_of(i), "dash"),
                    **seen,
                )
            figure.add_scatter(
                x=x,
                y=[dot.value.median for dot in line],
                error_y=_error_bars([dot.value for dot in line]),
                name=safe(result.label),
                hovertext=[_hover(result, where(dot.place), dot.value, unit, dot.limit) for dot in line],
                hoverinfo="text",
                **line_of(i),
                **seen,
            )
    drawn = [dot for group in groups.values() for dot in group]
    if any(dot.limit for dot in drawn):
        figure.add_scatter(x=[None], y=[None], **thin_line(GREY, "dash"), name="limit by bandwidth and FLOP rate")
    log_x(figure, axis.replace("_", " "), {getattr(dot.place, axis) for dot in drawn})
    values = [y for dot in drawn for y in (dot.value.median, dot.limit) if y]
    figure.update_yaxes(title=unit, rangemode="tozero")
    if max(values) > WIDE * min(values):
        log_y(figure, values, number)
    return replace(plot, figure=figure, choices=[where(rest, leave_out=axis) for rest in choices])


def memory(results: list[Result]) -> Plot:
    """Each result's own cache, and what the first result's would be with other attention and patterns."""
    plot = Plot(
        "memory",
        "Memory of the cache, against context",
        f"Keys and values of one row, counted, not measured. Dotted: {results[0].label} with its attention and pattern "
        "exchanged.",
    )
    own = [(i, result, line) for i, result in enumerate(results) for line in result.memory if line.this and line.points]
    taken = [line.points for _, _, line in own]
    others = [line for line in results[0].memory if line.points and line.points not in taken]
    if not own and not others:
        return replace(plot, caption="Nothing was counted.")
    figure = empty_figure(len(own) + len(others))
    for i, result, line in own:
        name = result.label if len(results) > 1 else _this_model(line.name)
        _memory_line(figure, name, line.points, line_of(i))
    for i, line in enumerate(others, start=len(results)):
        _memory_line(figure, line.name, line.points, thin_line(colour_of(i), "dot"))
    points = [point for line in [*taken, *(other.points for other in others)] for point in line]
    log_x(figure, "context, tokens", {x for x, _ in points})
    figure.update_yaxes(title="cache")
    log_y(figure, [y for _, y in points], size)
    return replace(plot, figure=figure)


def _memory_line(figure: go.Figure, name: str, points: list[tuple[float, float]], style: dict[str, Any]) -> None:
    hover = [f"{safe(name)}<br>{x:,} tokens: {size(y)}" for x, y in points]
    x, y = zip(*points, strict=True)
    figure.add_scatter(x=x, y=y, name=safe(name), hovertext=hover, hoverinfo="text", **style)


def _this_model(name: str) -> str:
    return name if name == "this model" else f"{name}, this model"


def ways(results: list[Result]) -> Plot:
    """Bars of tokens/s, at one place at a time; first where most was measured."""
    plot = Plot("ways", "Tokens/s of every way", "The thin bars reach from the slowest round to the fastest.")
    measured = [point for result in results for point in result.points]
    names = list(dict.fromkeys(point.way for point in measured))
    places = [point.place for point in measured]
    choices = sorted(set(places), key=lambda place: (-places.count(place), _main_first(place)))
    if not choices:
        return replace(plot, caption="Nothing was measured.")
    figure = empty_figure(len(results))
    for choice, place in enumerate(choices):
        there = where(place)
        for i, result in enumerate(results):
            points = list(result.at(place).values())
            rates = [point.tokens_per_s for point in points]
            shared = {
                "y": [_broken(point.way) for point in points],
                "orientation": "h",
                "name": safe(result.label),
                "offsetgroup": str(i),
                "legendgroup": str(i),
                "meta": choice,
                "visible": choice == 0,
            }
            figure.add_bar(
                x=[rate.median for rate in rates],
                error_x=_error_bars(rates, GREY),
                marker=bar_of(i),
                hovertext=[_hover(result, f"{safe(p.way)}, {there}", p.tokens_per_s, "tokens/s") for p in points],
                hoverinfo="text",
                **shared,
            )
            figure.add_scatter(  # the numbers, clear of the thin bars
                x=[rate.max for rate in rates],
                text=[f" {number(rate.median)}" for rate in rates],
                mode="text",
                textposition="middle right",
                cliponaxis=False,
                hoverinfo="skip",
                showlegend=False,
                **shared,
            )
    height = 130 + 20 * len(results) + 28 * len(names) * len(results)
    figure.update_layout(
        height=height, showlegend=len(results) > 1, bargap=0.25, scattermode="group", scattergap=0.25, margin_r=56
    )
    figure.update_xaxes(title="tokens/s", rangemode="tozero")
    figure.update_yaxes(categoryorder="array", categoryarray=[_broken(name) for name in names], autorange="reversed")
    return replace(plot, figure=figure, choices=[where(place) for place in choices])


def _error_bars(values: list[Measured], colour: str | None = None) -> dict[str, Any]:
    return {
        "color": colour,
        "array": [value.max - value.median for value in values],
        "arrayminus": [value.median - value.min for value in values],
        "symmetric": False,
        "thickness": 1.5,
        "width": 4,
    }


def _main_first(place: Place) -> tuple[int, int, int]:
    return -place.new_tokens, place.batch, place.prompt_tokens


def _hover(result: Result, there: str, value: Measured, unit: str, limit: float | None = None) -> str:
    bound = f"<br>limit: {number(limit)} {unit}" if limit else ""
    return f"{safe(result.label)}<br>{there}<br>{number(value.median)} {unit} ({spread(value)}){bound}"


def _broken(way: str) -> str:
    return safe(way).replace(", ", ",<br>")
