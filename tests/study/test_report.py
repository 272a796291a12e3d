"""The report's three files show the numbers of the runs and of the verdict, whatever is missing."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pages
import pytest

from ablate.study.judge.verdict import as_json, judge
from ablate.study.report.write import write_report
from ablate.words import MINUS
from study.report_samples import CONTEXT, EDGES, LOSSES, SEEDS, record, records_of, study, tuning

HOSTILE = "<img src=x onerror=alert(1)>|`x`"
ARMS = list(LOSSES)


def judged(asked, records, *, verdict="worse", notes=("A note upon the whole.",), tuning=None):
    """The verdict on the records. Effects are computed; words, p-values and intervals are made up."""
    found = judge(asked, records, tuning)
    return replace(found, arms={name: made_up(arm, verdict) for name, arm in found.arms.items()}, notes=list(notes))


def made_up(arm, verdict):
    effect, interval = arm.statistics.effect, arm.statistics.interval
    figures = {"p": 0.00123, "p_sign_flip": 0.03125, "p_equivalent": 0.87, "sd": 0.0058, "mde": 0.0083}
    return replace(
        arm,
        verdict=verdict,
        sentence=f"{verdict}, as the sentence of {arm.runs.name} says",
        statistics=replace(arm.statistics, **figures, interval=interval and (effect - 0.0061, effect + 0.0061)),
        p_holm=0.00246,
        claim=arm.claim and replace(arm.claim, outcome="confirmed"),
    )


def report(folder: Path, asked=None, records=None, *, plotly=False, **changes):
    """The page, the Markdown and the JSON of a report; of the sample study if none is given.

    plotly: whether the page holds the library, which takes long to parse.
    """
    asked = asked or study()
    records = records_of(folder / "runs", asked) if records is None else records
    with pytest.MonkeyPatch.context() as patch:
        if not plotly:
            patch.setattr("ablate.page.write.get_plotlyjs", lambda: "")
        path = write_report(judged(asked, records, **changes), folder / "report")
    assert path == folder / "report" / "index.html"
    text = (folder / "report" / "verdict.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return pages.Page(path), (folder / "report" / "verdict.md").read_text(encoding="utf-8"), data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The records, and the report of the sample study with its learning rates."""
    folder = tmp_path_factory.mktemp("whole")
    records = records_of(folder / "runs", study())
    return records, report(folder, study(), records, tuning=tuning())


def mean(records, arm, of):
    values = [of(r) for r in records if r.arm == arm and r.finished]
    return sum(values) / len(values)


def arms_row(page, arm):
    """The row of an arm in the table of arms. The baseline's name has `baseline` below it."""
    (row,) = [row for row in page.table(0) if row["arm"].split("|")[0] == arm]
    return row


def traces(page, plot, choice=0):
    """{name: trace} of the traces of one choice that are in the legend."""
    found = [t for t in page.figures[plot]["data"] if t.get("meta", choice) == choice]
    return {t["name"]: t for t in found if t.get("name") and t.get("showlegend", True)}


def test_the_json_is_the_verdict(whole):
    records, (_, _, data) = whole
    assert data == as_json(judged(study(), records, tuning=tuning()))


def test_each_arm_has_its_sentence_and_its_claim(whole):
    _, (page, markdown, _) = whole
    said = [text for text in page.texts["li"] if "as the sentence of" in text]
    assert said == [f": worse, as the sentence of {arm} says." for arm in ("learned", "none")]
    assert page.texts["strong"][:2] == ["learned", "none"]
    claims = [text.strip() for text in page.texts["div"] if text.startswith("Claimed")]
    expected = [
        "Claimed not worse than the baseline (Su et al. 2021): confirmed.",
        "Claimed worse than the baseline: confirmed.",
    ]
    assert claims == expected
    for arm, claim in zip(("learned", "none"), expected, strict=True):
        assert f"**{arm}**: worse, as the sentence of {arm} says. {claim}" in markdown


def test_question_conditions_and_notes_come_first(whole):
    _, (page, markdown, _) = whole
    assert page.texts["h1"] == [study().question]
    line = (
        "study position · val/loss, nats per token · 6 seeds · equal parameters · equal tokens · stdlib · "
        "CPU, 2 threads"
    )
    assert page.texts["p"][0] == line
    assert "A note upon the whole." in page.texts["li"]
    assert markdown.startswith(f"# {study().question}\n\n{line}\n")
    assert "- A note upon the whole." in markdown


def test_the_table_has_the_means_and_what_they_range_over(whole):
    records, (page, markdown, _) = whole
    assert [row["arm"] for row in page.table(0)] == ["rope|baseline", "learned", "none"]
    for arm in ARMS:
        row, losses = arms_row(page, arm), [r.metric("val/loss") for r in records if r.arm == arm]
        loss = f"{mean(records, arm, lambda r: r.metric('val/loss')):.4f}"
        assert row["val/loss, nats per token"] == f"{loss}|{min(losses):.4f} – {max(losses):.4f}"
        assert f"{loss} ({min(losses):.4f} – {max(losses):.4f})" in markdown
        bpb = mean(records, arm, lambda r: r.metric("val/bpb"))
        assert row["val/bpb, bits per byte"].startswith(f"{bpb:.4f}|")
        rate = mean(records, arm, lambda r: r.summary["speed"]["train_tokens_per_s"])
        assert row["training tokens/s"].startswith(f"{rate:,.0f}|")
        known = {
            "parameters": "1.48M" if arm != "learned" else "1.49M",
            "non-embedding": "1.22M",
            "forward FLOPs a token": "3.1M",
            "cache bytes a token": "1.02 kB",
            "peak memory": "827 MB",
            "MFU": "22.0%",
            "generated tokens/s, cached": "499",
            "runs": "6",
            "diverged": "0",
        }
        assert {title: row[title] for title in known} == known
        assert row["wall time a run"].split("|")[0].endswith(" min")


def test_the_tests_are_those_of_the_verdict(whole):
    _, (page, markdown, data) = whole
    for row in page.table(1):
        effect = data["arms"][row["arm"]]["effect"]
        assert row["effect"] == f"{effect:+.3f}"
        assert row["95% interval"] == f"{effect - 0.0061:+.3f} to {effect + 0.0061:+.3f}"
        assert (row["p"], row["p, Holm"], row["p, sign flip"], row["p, equivalent"]) == (
            "0.0012",
            "0.0025",
            "0.031",
            "0.87",
        )
        assert (row["pairs"], row["MDE"]) == ("6", "0.008")
        assert f"{row['effect']} | {row['95% interval']} |" in markdown


def test_the_forest_draws_effects_intervals_and_every_pair(whole):
    _, (page, _, data) = whole
    figure = page.figures["forest"]
    pairs, effects = figure["data"][::2], figure["data"][1::2]
    for arm, dots, effect in zip(("learned", "none"), pairs, effects, strict=True):
        said = data["arms"][arm]
        assert dots["x"] == said["differences"]
        assert dots["hovertext"][3].startswith(f"{arm}, seed 3: ")
        assert effect["x"] == [said["effect"]]
        assert effect["error_x"]["array"] == pytest.approx([0.0061])
        assert effect["error_x"]["arrayminus"] == pytest.approx([0.0061])
    margin, zero = figure["layout"]["shapes"]
    assert (margin["x0"], margin["x1"]) == (-0.01, 0.01)
    assert (zero["x0"], zero["x1"]) == (0, 0)
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < -0.01 and high > max(data["arms"]["none"]["differences"])


@pytest.mark.parametrize(("metric", "left"), [("val/loss", "better"), ("val/accuracy", "worse")])
def test_the_better_side_is_that_of_the_metric(tmp_path, metric, left):
    asked = study(("rope", "none"), metric=metric)
    records = records_of(tmp_path / "runs", asked)
    for one in records:
        one.summary["metrics"]["val/accuracy"] = 0.5 + one.seed / 100 - 0.1 * (one.arm == "none")
    page, *_ = report(tmp_path, asked, records)
    labels = {note["text"]: note["x"] for note in page.figures["forest"]["layout"]["annotations"]}
    assert labels[f"← {left}"] == 0
    assert labels[f"{'worse' if left == 'better' else 'better'} →"] == 1


def test_curves_are_means_over_seeds_against_what_they_cost(whole):
    records, (page, _, _) = whole
    choices = [text for text in page.texts["option"] if "/loss" in text]
    axes = ["tokens", "training FLOPs", "seconds of training"]
    assert choices == [
        *(f"val/loss against {axis}" for axis in axes),
        "val/loss, difference from rope",
        *(f"train/loss against {axis}" for axis in axes),
    ]
    for choice, cost in ((0, 4096), (1, 4096 * 9.3e6)):
        for arm, line in traces(page, "curves", choice).items():
            assert line["x"] == pytest.approx([step * cost for step in range(40, 401, 40)])
            assert line["y"][-1] == pytest.approx(mean(records, arm, lambda r: r.curve("val/loss")[-1][1]))
    first = next(r for r in records if r.arm == "none")
    seconds = traces(page, "curves", 2)["none"]["x"][-1]
    assert seconds == pytest.approx(400 * 4096 / first.summary["speed"]["train_tokens_per_s"], rel=0.05)
    assert [layout["xaxis.title.text"] for layout in page.figures["curves"]["layout"]["meta"][:3]] == axes


def test_the_band_reaches_from_the_least_to_the_most(whole):
    records, (page, _, _) = whole
    ends = [r.curve("val/loss")[-1][1] for r in records if r.arm == "rope"]
    band = next(t for t in page.figures["curves"]["data"] if t.get("fill") == "toself")
    half = len(band["y"]) // 2
    assert (band["y"][half - 1], band["y"][half]) == (max(ends), min(ends))


def test_the_difference_is_of_one_seed_and_one_point(whole):
    _, (page, _, data) = whole
    lines = traces(page, "curves", 3)
    assert lines.keys() == {"learned", "none"}
    final = {arm: data["arms"][arm]["effect"] for arm in lines}
    assert {arm: line["y"][-1] for arm, line in lines.items()} == pytest.approx(final, abs=1e-3)


def test_loss_by_position_goes_beyond_the_context(whole):
    records, (page, _, _) = whole
    lines = traces(page, "positions")
    assert lines.keys() == set(ARMS)
    for arm, line in lines.items():
        assert line["x"] == [(low + high) / 2 for low, high in pairwise(EDGES)]
        assert line["y"][-1] == pytest.approx(mean(records, arm, lambda r: r.summary["by_position"]["loss"][-1]))
    (context,) = page.figures["positions"]["layout"]["shapes"]
    assert context["x0"] == context["x1"] == CONTEXT


def test_learning_rates_say_what_was_chosen(whole):
    _, (page, _, _) = whole
    lines = traces(page, "rates")
    assert lines["rope"]["x"] == [0.0003, 0.001, 0.003, 0.01]
    assert lines["rope"]["y"][2] == pytest.approx(LOSSES["rope"] + 0.002)
    rings = [t["x"] for t in page.figures["rates"]["data"] if t["marker"].get("symbol") == "circle-open"]
    assert rings == [[0.003], [0.01], [0.003]]
    (caption,) = [text for text in page.texts["figcaption"] if "tuning seeds" in text]
    assert "none: diverged, 1 of 2 at 0.01." in caption


def test_where_no_tuning_run_finished_it_is_said(tmp_path):
    tried = tuning()
    for found in tried["arms"].values():
        for point in found["points"]:
            point[2] = None
    page, *_ = report(tmp_path, tuning=tried)
    assert "rates" not in page.figures
    assert any(text.startswith("Learning rates: No tuning run finished.") for text in page.texts["li"])


def test_what_the_arms_change_and_their_layers(whole):
    _, (page, _, _) = whole
    titles, *rows = page.tables[2]
    assert titles == ["option", "rope|baseline", "learned", "none"]
    assert {row[0]: row[1:] for row in rows} == {
        "model.position.name": ["rope", "learned", "none"],
        "model.ffn.hidden": ["null", "88", "null"],
    }
    assert page.texts["summary"][:3] == [f"Layers of {arm}" for arm in ARMS]
    assert page.table(4)[0]["layer"] == "0-3"
    assert (page.table(4)[0]["norm"], page.table(4)[0]["position"]) == ("rmsnorm eps=1e-06", "learned")


def test_provenance(whole):
    _, (page, markdown, _) = whole
    facts = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert facts["commands"] == "train.py -m experiment=position"
    assert facts["seeds"] == "0, 1, 2, 3, 4, 5"
    assert facts["matched"].endswith("within 1%, by the FFN's width; furthest from the baseline: learned, +0.20%")
    assert facts["held"] == "tokens, equal in all runs; 1.64M tokens a run"
    assert facts["learning rates"] == "tuned over 0.0003, 0.001, 0.003, 0.01; rope: 0.003; learned: 0.01; none: 0.003"
    assert facts["corpus"] == "stdlib c06177d9e15f8f05"
    assert facts["versions"] == "python 3.12.4, torch 2.13.0+cpu"
    assert "../runs/none-5" in page.source and "../runs/none-5" in markdown
    assert all(f"- {name}: {fact}" in markdown for name, fact in facts.items() if name not in ("runs", "verdict"))


def test_many_commands_are_not_all_told(tmp_path):
    records = records_of(tmp_path / "runs", study())
    for one in records:
        one.summary["command"] = f"train.py seed={one.seed}"
    page, *_ = report(tmp_path, records=records)
    assert "train.py seed=2; and 3 more, in the runs' summary.json" in page.texts["dd"][0]


def test_unequal_budgets_are_not_called_equal(tmp_path):
    records = records_of(tmp_path / "runs", study())
    for one in records:
        one.summary["steps"] *= 2 if one.arm == "none" else 1
    page, *_ = report(tmp_path, records=records)
    assert "unequal tokens" in page.texts["p"][0]
    assert "nothing; 1.64M to 3.28M tokens a run" in page.texts["dd"]


def test_a_run_that_diverged_is_counted_and_drawn_and_not_averaged(tmp_path):
    records = records_of(tmp_path / "runs", study())
    records[-1] = record(tmp_path / "runs", "none", 5, status="diverged")
    page, markdown, data = report(tmp_path, records=records)
    row = arms_row(page, "none")
    assert (row["runs"], row["diverged"]) == ("6", "1")
    assert row["val/loss, nats per token"].startswith(f"{mean(records, 'none', lambda r: r.metric('val/loss')):.4f}|")
    lost = traces(page, "curves")["none, diverged"]
    assert lost["x"][-1] == 160 * 4096  # the last that was finite
    assert any("Dotted: runs that diverged" in text for text in page.texts["figcaption"])
    assert re.search(r"\| diverged +\| +0 \| +0 \| +1 \|", markdown)
    assert data["arms"]["none"]["pairs"] == 5


def test_arms_that_all_diverged(tmp_path):
    asked = study(("rope", "none"))
    records = [r for r in records_of(tmp_path / "runs", asked) if r.arm == "rope"]
    records += [record(tmp_path / "runs", "none", seed, status="diverged") for seed in SEEDS]
    page, markdown, data = report(tmp_path, asked, records, verdict="cannot tell")
    assert "forest" not in page.figures
    assert any("Not shown, because no pair of runs gives an effect: none." in text for text in page.texts["li"])
    row = arms_row(page, "none")
    assert (row["diverged"], row["val/loss, nats per token"], row["parameters"]) == ("6", "", "1.48M")
    assert data["arms"]["none"]["effect"] is None
    assert "**none**: cannot tell" in markdown


def test_an_arm_without_an_effect_stands_beside_one_with(tmp_path):
    records = [r for r in records_of(tmp_path / "runs", study()) if r.arm != "none"]
    records += [record(tmp_path / "runs", "none", seed, status="diverged") for seed in SEEDS]
    page, *_ = report(tmp_path, records=records)
    assert len(page.figures["forest"]["data"]) == 2
    assert any("Not shown, because no pair of runs gives an effect: none." in text for text in page.texts["figcaption"])


def test_one_pair_has_a_dot_and_no_interval(tmp_path):
    page, _, data = report(tmp_path, study(seeds=[0]))
    effect = page.figures["forest"]["data"][1]
    assert data["arms"]["learned"]["interval"] is None
    assert effect["marker"]["symbol"] == "square-open" and not effect.get("error_x")
    assert not [t for t in page.figures["curves"]["data"] if t.get("fill")]
    assert page.table(1)[0]["95% interval"] == ""


def test_one_arm_alone(tmp_path):
    page, markdown, data = report(tmp_path, study(("rope",)))
    assert data["arms"] == {}
    assert "There is no arm besides the baseline: nothing is compared." in page.texts["li"]
    assert "There is no arm besides the baseline: nothing is compared." in markdown
    assert page.figures.keys() == {"curves", "positions"}
    assert [row["arm"] for row in page.table(0)] == ["rope|baseline"]


def test_what_is_missing_is_said(tmp_path):
    records = records_of(tmp_path / "runs", study())
    for one in records:
        for key in ("by_position", "speed", "memory", "versions", "machine", "git", "command", "wall_s"):
            del one.summary[key]
        (one.path / "metrics.csv").unlink()
    page, *_ = report(tmp_path, records=records)
    assert page.figures.keys() == {"forest"}
    assert any("No run logged val/loss twice" in text for text in page.texts["li"])
    assert any("No run measured its loss by position" in text for text in page.texts["li"])
    assert not {"MFU", "peak memory", "generated tokens/s, cached"} & page.table(0)[0].keys()
    assert "versions" not in page.texts["dt"]


def test_one_arm_without_its_loss_by_position_is_named(tmp_path):
    records = records_of(tmp_path / "runs", study())
    for one in records:
        if one.arm == "none":
            del one.summary["by_position"]
    page, *_ = report(tmp_path, records=records)
    assert traces(page, "positions").keys() == {"rope", "learned"}
    assert any(text.endswith("Not measured: none.") for text in page.texts["figcaption"])


def test_a_run_of_its_own_plugin_is_reported_without_layers(tmp_path):
    records = records_of(tmp_path / "runs", study())
    for one in records:
        if one.arm == "none":
            one.config["model"]["norm"] = {"name": "of_my_own"}
    page, *_ = report(tmp_path, records=records)
    assert any("cannot be built here" in text and "of_my_own" in text for text in page.texts["p"])


def test_runs_of_one_seed_count_once(tmp_path):
    records = records_of(tmp_path / "runs", study())
    again = replace(records[0], path=tmp_path / "runs" / "again")
    page, *_ = report(tmp_path, records=[*records, again])
    assert arms_row(page, "rope")["runs"] == "6"


@pytest.mark.parametrize(
    ("baseline", "values", "effect"), [([0.0, 0.0], [1e200, -1e200], 0), ([-1.7e308], [1.7e308], None)]
)
def test_numbers_that_json_lacks_become_null(tmp_path, baseline, values, effect):
    asked = study(("rope", "none"), seeds=list(range(len(values))))
    records = records_of(tmp_path / "runs", asked)
    for one in records:
        one.summary["metrics"]["val/loss"] = {"rope": baseline, "none": values}[one.arm][one.seed]
    write_report(judge(asked, records), tmp_path / "report")
    data = json.loads((tmp_path / "report" / "verdict.json").read_text(), parse_constant=pytest.fail)
    none = data["arms"]["none"]
    assert (none["effect"], none["interval"], none["mde"]) == (effect, None, None)
    assert not re.search("nan|inf", (tmp_path / "report" / "verdict.md").read_text().lower())


def test_a_value_has_the_same_digits_and_sign_wherever_it_stands(tmp_path):
    asked = study(("none", "rope", "learned"))  # both lower than the baseline
    records = records_of(tmp_path / "runs", asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablate.page.write.get_plotlyjs", lambda: "")
        page = pages.Page(write_report(judge(asked, records), tmp_path / "report"))
    markdown = re.sub(" +", " ", (tmp_path / "report" / "verdict.md").read_text())
    rows, drawn = page.table(1), page.figures["forest"]["data"][1::2]
    for row, sentence, trace in zip(rows, page.texts["li"], drawn, strict=False):
        effect, interval = row["effect"], row["95% interval"]
        assert effect.startswith(MINUS)
        low, high = sorted(end.lstrip(MINUS) for end in interval.split(" to "))
        for text in (sentence, markdown):
            assert f"better by {effect[1:]} nats per token (95% interval {low} to {high}; 6 pairs)" in text
        assert f"| {effect} | {interval} |" in markdown
        assert f"{effect} ({interval})" in trace["hovertext"]
        assert {len(dot.split(".")[-1]) for dot in page.figures["forest"]["data"][0]["hovertext"]} == {3}


def test_names_are_text(tmp_path):
    asked = study(("rope", HOSTILE), question=HOSTILE, name=HOSTILE)
    page, markdown, data = report(tmp_path, asked, notes=[HOSTILE])
    assert page.texts["h1"] == [HOSTILE]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert len(page.texts["script"]) == 2
    drawn = json.dumps(page.figures)
    assert "<img" not in drawn and "&lt;img" in drawn
    assert HOSTILE in data["arms"]
    assert [row["arm"] for row in page.table(0)] == ["rope|baseline", HOSTILE]
    assert "<img" not in markdown.replace(r"\<img", "")
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")}
    assert cells == {4, 11}  # of a table of two arms, and of the tests: no name made a cell


def test_nothing_comes_from_the_network(tmp_path):
    page, *_ = report(tmp_path, plotly=True)
    assert "plotly.js v" in page.texts["script"][0]
    assert not [attributes for _, attributes in page.tags if attributes.keys() & {"src", "href", "srcset", "action"}]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "http" not in policy


def test_the_markdown_lines_up(whole):
    _, (_, markdown, _) = whole
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(line) for line in table.splitlines()}) == 1


def test_written_again_it_is_the_same(tmp_path):
    records = records_of(tmp_path / "runs", study())
    first = [report(tmp_path, records=records)[0].source for _ in range(2)]
    assert first[0] == first[1]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["index.html", "verdict.json", "verdict.md"]


@pytest.mark.slow
@pytest.mark.skipif(pages.CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(
    ("dark", "ink"), [(False, "rgb(28, 30, 33)"), (True, "rgb(230, 232, 235)")], ids=["light", "dark"]
)
def test_a_browser_draws_every_plot(tmp_path, dark, ink):
    page, *_ = report(tmp_path, plotly=True, tuning=tuning())
    seen = pages.seen_by_a_browser(page, tmp_path, dark=dark)
    assert seen["errors"] == []
    assert not seen["wide"]
    marks = {"forest": 12 + 2, "curves": 0, "positions": 2 * 8, "rates": 22 + 12 + 3}
    lines = {"forest": 0, "curves": 2 * 3, "positions": 2 * 2, "rates": 3}  # with the outlines of the bands
    chosen = {"forest": [], "curves": [6], "positions": [1], "rates": []}
    assert seen["plots"].keys() == marks.keys()
    for name, plot in seen["plots"].items():
        drawn = {"drawings": 3, "marks": marks[name], "lines": lines[name]}
        assert plot == drawn | {"choices": chosen[name], "ink": ink}
