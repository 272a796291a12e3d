"""The plots of a report: effects, curves, loss by position, learning rates."""

import math
from dataclasses import replace

from ablate.page.drawing import Plot
from ablate.study.records import FLOPS, SECONDS, TOKENS, RunRecord
from ablate.study.report.findings import Findings, reading
from ablate.study.report.forest import forest
from ablate.study.report.rates import learning_rates
from ablate.study.report.views import Curve, View, cut_off, draw, minus
from ablate.study.report.words import with_unit

AXES = {TOKENS: "tokens", FLOPS: "training FLOPs", SECONDS: "seconds of training"}
BANDS = "Means over the seeds; the bands reach from the least to the most."
POSITION = "position in the document, tokens"


def all_plots(findings: Findings) -> list[Plot]:
    plots = [forest(findings), curves(findings), positions(findings)]
    return [*plots, learning_rates(findings)] if findings.verdict.get("tuning") else plots


def curves(findings: Findings) -> Plot:
    """The metric and the training loss over what they cost, and the metric's difference from the baseline."""
    metric = findings.study.metric
    plot = Plot("curves", "Over the training", "")
    names = list(dict.fromkeys([metric, "train/loss"]))
    views = [_against(findings, name, axis) for name in names for axis in AXES]
    views.insert(len(AXES), _from_baseline(findings))
    views = [view for view in views if not view.empty]
    if not views:
        return replace(
            plot, caption=f"No run logged {metric} twice; a smaller trainer.val_check_interval draws this plot."
        )
    caption = BANDS
    if any(view.broken and any(view.broken.values()) for view in views):
        caption += " Dotted: runs that diverged, one by one."
    if any(map(cut_off, views)):
        caption += " What lies outside, such as the start, is seen with the button Autoscale."
    figure = draw(views, findings.arms)
    figure.update_xaxes(tickformat="~s", rangemode="tozero")
    return replace(plot, caption=caption, figure=figure, choices=[view.label for view in views])


def _against(findings: Findings, metric: str, axis: str) -> View:
    return View(
        f"{metric} against {AXES[axis]}",
        AXES[axis],
        with_unit(metric),
        {arm: list(_curves(findings.finished(arm), metric, axis).values()) for arm in findings.arms},
        {arm: list(_curves(_diverged(findings, arm), metric, axis).values()) for arm in findings.arms},
        settled=True,
    )


def _from_baseline(findings: Findings) -> View:
    metric, baseline = findings.study.metric, findings.study.baseline
    by_seed = {arm: _curves(findings.finished(arm), metric, TOKENS) for arm in findings.arms}
    return View(
        f"{metric}, difference from {baseline}",
        AXES[TOKENS],
        f"{metric} minus that of {baseline}",
        {arm: minus(by_seed[arm], by_seed.get(baseline, {})) for arm in findings.rivals},
        settled=True,
        difference=True,
    )


def _diverged(findings: Findings, arm: str) -> list[RunRecord]:
    return [run for run in findings.runs(arm) if run.diverged]


def _curves(runs: list[RunRecord], metric: str, axis: str) -> dict[int, Curve]:
    """Seed -> cost -> value. A step costs what it costs these runs on average; none where it is unknown."""
    costs = [cost for run in runs if (cost := run.cost_of_step(axis))]
    if not costs:
        return {}
    cost = sum(costs) / len(costs)
    found = {run.seed: {step * cost: y for step, y in run.curve(metric) if math.isfinite(y)} for run in runs}
    return {seed: curve for seed, curve in found.items() if curve}


def positions(findings: Findings) -> Plot:
    """Validation loss by position, also beyond the context, and its difference from the baseline's."""
    plot = Plot("positions", "Loss by position in the document", "")
    by_seed = {arm: {run.seed: _by_position(run) for run in findings.finished(arm)} for arm in findings.arms}
    baseline = findings.study.baseline
    difference = {arm: minus(by_seed[arm], by_seed.get(baseline, {})) for arm in findings.rivals}
    views = [
        View("loss", POSITION, "validation loss, nats a token", {a: list(c.values()) for a, c in by_seed.items()}),
        View(f"difference from {baseline}", POSITION, f"loss minus that of {baseline}", difference),
    ]
    views = [view for view in views if not view.empty]
    if not views:
        return replace(plot, caption="No run measured its loss by position.")
    contexts = sorted({c for arm in findings.arms for run in findings.finished(arm) if (c := _context(run))})
    figure = draw(views, findings.arms)
    for context in contexts:
        label = {"text": f"context: {context:,}", "textposition": "end", "textangle": 0, "yanchor": "bottom"}
        figure.add_vline(context, line={"dash": "dash", "width": 1.5, "color": "#808080"}, label=label)
    figure.update_xaxes(rangemode="tozero")
    caption = f"{BANDS} Dashed: the end of the trained context."
    missing = [arm for arm in findings.arms if not any(by_seed[arm].values())]
    if missing:
        caption += f" Not measured of {', '.join(missing)}."
    return replace(plot, caption=caption, figure=figure, choices=[view.label for view in views])


def _context(run: RunRecord) -> float | None:
    return reading(run.summary, "by_position.context")


def _by_position(run: RunRecord) -> Curve:
    """The middle of each stretch of positions -> its loss."""
    edges, losses = (reading(run.summary, f"by_position.{key}") or [] for key in ("edges", "loss"))
    stretches = zip(edges, edges[1:], losses, strict=False)
    return {(low + high) / 2: loss for low, high, loss in stretches if loss is not None and math.isfinite(loss)}
