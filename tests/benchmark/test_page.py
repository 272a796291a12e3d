"""The page: what it says is what was measured, it needs no network, and a bad file spoils nothing."""

import json
import os
import re
from pathlib import Path

import pages
import pytest
from samples import CONTEXTS, PEERS, sample, write

from ablate.benchmark.generation.page import write_page
from ablate.benchmark.generation.results import read_results
from ablate.errors import AblateError, AblateWarning
from ablate.words import number, size

PLOTS = {"speedup", "memory", "latency", "throughput", "ways"}
NUMBER = r"([\d.,]*\d)"
THREE_DIGITS = 0.006  # relative: what is lost in them
HOSTILE = "<script>alert(1)</script>&\"'"


class Page(pages.Page):
    def says(self, pattern: str) -> list[float]:
        """The numbers of the one list item that matches; N stands for a number in the pattern."""
        found = [match for item in self.texts["li"] if (match := re.search(pattern.replace("N", NUMBER), item))]
        assert len(found) == 1, self.texts["li"]
        return [value(text) for text in found[0].groups()]

    def seen(self, plot: str) -> list[dict]:
        """The traces of a plot that are seen first, less the one that only explains the dashes."""
        return [trace for trace in self.figures[plot]["data"] if trace.get("visible", True) and trace["x"] != [None]]


def value(text: str) -> float:
    return float(text.replace(",", ""))


def close(expected):
    return pytest.approx(expected, rel=THREE_DIGITS)


def page_of(folder: Path, *arms: dict) -> Page:
    if len(arms) == 1:
        write(folder, arms[0])
    else:
        for job, arm in enumerate(arms):
            write(folder / f"{job}_{arm['label']}", arm)
    return Page(write_page(folder))


def three(**options) -> list[dict]:
    return [sample(name, heads, **options) for name, heads in (("mha", 8), ("gqa", 2), ("mqa", 1))]


def at(arm: dict, way: str = "cached", batch: int = 1, new_tokens: int = 480) -> dict:
    (point,) = [p for p in arm["points"] if (p["way"], p["batch"], p["new_tokens"]) == (way, batch, new_tokens)]
    return point


def test_numbers_have_three_digits_and_units():
    assert [number(x) for x in (0, 0.0042, 9.6, 12.34, 118.4, 1234.5)] == ["0", "0.0042", "9.6", "12.3", "118", "1,234"]
    assert [size(x) for x in (0, 999, 16384, 4456448, 2e9)] == ["0 B", "999 B", "16.4 kB", "4.46 MB", "2 GB"]


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("peers", [False, True])
@pytest.mark.parametrize("uncached", [False, True])
def test_the_table_holds_every_point(tmp_path, cuda, peers, uncached):
    arms = three(cuda=cuda, peers=peers, uncached=uncached)
    page = page_of(tmp_path, *arms)
    rows = page.table()
    points = [(arm["label"], point) for arm in arms for point in arm["points"]]
    assert len(rows) == len(points)
    measured = {
        "first token, ms": ("first_token_s", 1e3),
        "step, ms": ("token_s", 1e3),
        "tokens/s": ("tokens_per_s", 1),
    }
    plain = {
        "× uncached": ("speedup", 1),
        "× transformers": ("times_peer", 1),
        "limit of step, ms": ("limit_token_s", 1e3),
        "of limit, %": ("fraction_of_limit", 100),
        "cache, MB": ("cache_bytes", 1e-6),
        "peak memory, MB": ("peak_memory_bytes", 1e-6),
    }
    counts = {"batch": "batch", "prompt, tokens": "prompt_tokens", "new, tokens": "new_tokens"}
    shown = {title for title, (key, _) in plain.items() if any(point[key] is not None for _, point in points)}
    assert rows[0].keys() == {"model", "way", *counts, *measured, *shown}
    for row, (label, point) in zip(rows, points, strict=True):
        assert (row["model"], row["way"]) == (label, point["way"])
        assert all(value(row[title]) == point[key] for title, key in counts.items())
        for title, (key, scale) in measured.items():
            texts = re.fullmatch(rf"{NUMBER}\|{NUMBER} – {NUMBER}", row[title]).groups()
            expected = [point[key][name] * scale for name in ("median", "min", "max")]
            assert [value(text) for text in texts] == close(expected)
        for title in shown:
            key, scale = plain[title]
            assert row[title] == "" if point[key] is None else value(row[title]) == close(point[key] * scale)


def test_one_model_in_sentences(tmp_path):
    arm = sample("gqa", 2)
    page = page_of(tmp_path, arm)
    point, fast, slow = at(arm), at(arm)["tokens_per_s"]["median"], at(arm, "uncached")["tokens_per_s"]["median"]
    said = page.says(
        r"the KV cache, gqa generates 480 tokens N times as fast .* \(N against N tokens/s at batch N, after N"
    )
    assert said == close([fast / slow, fast, slow, 1, 32])
    peer = max(at(arm, way)["tokens_per_s"]["median"] for way in PEERS)
    assert page.says(r"^Its tokens/s are N times .* \(N against N at batch 1\)") == close([fast / peer, fast, peer])
    step, limit = point["token_s"]["median"], point["limit_token_s"]
    assert page.says("at batch 1 takes N ms, N times the least") == close([step * 1e3, step / limit])
    per_token = arm["budget"]["kv_bytes_per_token"] / 1e3
    said = page.says("One more token costs N kB of cache; N tokens take N MB, where mha would take N MB")
    assert said == close([per_token, CONTEXTS[-1], CONTEXTS[-1] * per_token / 1e3, CONTEXTS[-1] * per_token * 4 / 1e3])
    assert page.texts["h1"] == ["Generation: gqa"]
    assert page.texts["p"] == [
        "CPU, 2 threads · Linux-6.1.0-x86_64-with-glibc2.36 · float32 · eager · medians of 5 rounds"
    ]


def test_several_models_in_sentences(tmp_path):
    arms = three(cuda=True)
    page = page_of(tmp_path, *arms)
    each = r"N \(mha\), N \(gqa\) and N \(mqa\)"
    assert page.says(f"480 tokens are generated {each} times") == close([at(arm)["speedup"] for arm in arms])
    assert page.says(f"tokens/s are {each} times those") == close([at(arm)["times_peer"] for arm in arms])
    assert page.says(f"takes {each} times the least") == close([1 / at(arm)["fraction_of_limit"] for arm in arms])
    costs = r"N kB \(mha\), N kB \(gqa\) and N kB \(mqa\)"
    assert page.says(f"costs {costs} of cache") == close([arm["budget"]["kv_bytes_per_token"] / 1e3 for arm in arms])
    assert page.texts["h1"] == ["Generation: 3 models compared"]
    assert page.texts["p"][0].startswith("NVIDIA H100 80GB HBM3 · ")


def test_of_many_models_the_two_ends_are_named(tmp_path):
    arms = [sample(f"heads={heads}", heads) for heads in (4, 8, 2, 1, 16)]
    said = page_of(tmp_path, *arms).says(r"costs from N kB \(heads=1\) to N kB \(heads=16\) of cache")
    assert said == close([4.096, 65.536])


def test_the_fastest_is_named_only_where_rounds_do_not_overlap(tmp_path):
    slow, fast = sample("slow"), sample("fast")
    unclear = page_of(tmp_path / "unclear", slow, fast)
    assert unclear.says("no model is clearly the fastest: from N .* to N .* overlap")
    for point in fast["points"]:
        point["tokens_per_s"] = {name: 2 * rate for name, rate in point["tokens_per_s"].items()}
    rate = at(slow)["tokens_per_s"]["median"]
    said = page_of(tmp_path / "clear", slow, fast).says("fast is the fastest: N tokens/s, N times the N of slow")
    assert said == close([2 * rate, 2, rate])


def test_a_cache_that_forgets_is_said_to(tmp_path):
    assert page_of(tmp_path / "local", sample("mqa", 1, window=64)).says(
        "costs N kB of cache while nothing is forgotten;"
    )
    assert not any("forgotten" in item for item in page_of(tmp_path / "full", sample("mqa", 1)).texts["li"])


def test_nothing_is_said_of_what_was_not_measured(tmp_path):
    said = " ".join(page_of(tmp_path, sample(peers=False, uncached=False)).texts["li"])
    assert "transformers" not in said and "as fast as without" not in said
    assert "Nothing was measured without the cache; uncached=true does." in said


def test_below_the_limit_is_explained(tmp_path):
    arm = sample()
    for point in arm["points"]:
        if point["fraction_of_limit"]:
            point["fraction_of_limit"] = 1.25
    assert page_of(tmp_path, arm).says("N times the least .*; below 1, it reads from what is faster") == [0.8]


@pytest.mark.parametrize(
    ("plot", "key", "scale", "limit"),
    [
        ("latency", "token_s", 1e3, lambda point: point["limit_token_s"] * 1e3),
        ("throughput", "tokens_per_s", 1, lambda point: point["batch"] / point["limit_token_s"]),
    ],
)
def test_lines_over_batches_are_the_measured_figures(tmp_path, plot, key, scale, limit):
    arms = three()
    page = page_of(tmp_path, *arms)
    assert page.figures.keys() == PLOTS
    traces = page.seen(plot)
    lines = [trace for trace in traces if trace["mode"] == "lines+markers"]
    assert [line["name"] for line in lines] == ["mha", "gqa", "mqa"]
    for arm, line in zip(arms, lines, strict=True):
        assert line["x"] == [1, 4, 16]
        values = [at(arm, batch=batch)[key] for batch in line["x"]]
        assert line["y"] == pytest.approx([v["median"] * scale for v in values])
        assert line["error_y"]["array"] == pytest.approx([(v["max"] - v["median"]) * scale for v in values])
        assert line["error_y"]["arrayminus"] == pytest.approx([(v["median"] - v["min"]) * scale for v in values])
    dashed = [trace["y"] for trace in traces if trace["mode"] == "lines"]
    assert dashed == [pytest.approx([limit(at(arm, batch=batch)) for batch in (1, 4, 16)]) for arm in arms]


def test_the_speedup_has_the_spread_of_both_ways(tmp_path):
    arm = sample()
    (line,) = page_of(tmp_path, arm).seen("speedup")
    assert line["x"] == [32, 128, 480]
    for new, gain, up, down in zip(
        line["x"], line["y"], *(line["error_y"][k] for k in ("array", "arrayminus")), strict=True
    ):
        fast, slow = at(arm, new_tokens=new)["tokens_per_s"], at(arm, "uncached", new_tokens=new)["tokens_per_s"]
        assert gain == pytest.approx(fast["median"] / slow["median"])
        assert gain + up == pytest.approx(fast["max"] / slow["min"])
        assert gain - down == pytest.approx(fast["min"] / slow["max"])


def test_memory_marks_the_model_and_shows_the_alternatives(tmp_path):
    arm = sample("gqa", 2)
    lines = {line["name"]: line for line in page_of(tmp_path, arm).seen("memory")}
    own = "gqa (2 kv heads)"
    assert lines.keys() == {f"{own}, this model"} | {line["name"] for line in arm["cache_memory"]} - {own}
    assert [name for name, line in lines.items() if "markers" in line["mode"]] == [f"{own}, this model"]
    for line in arm["cache_memory"]:
        drawn = lines[f"{own}, this model" if line["this"] else line["name"]]
        assert [list(point) for point in zip(drawn["x"], drawn["y"], strict=True)] == line["points"]


def test_memory_of_several_draws_no_line_twice(tmp_path):
    names = [line["name"] for line in page_of(tmp_path, *three()).seen("memory")]
    local = [f"{name}, local (window 128)" for name in ("mha", "gqa (2 kv heads)", "mqa")]
    assert names == ["mha", "gqa", "mqa", *local]


def test_bars_are_all_ways_at_the_longest_text_and_smallest_batch(tmp_path):
    arms = three()
    bars = [trace for trace in page_of(tmp_path, *arms).seen("ways") if trace["type"] == "bar"]
    for arm, bar in zip(arms, bars, strict=True):
        ways = [way.replace("<br>", " ") for way in bar["y"]]
        assert ways == ["cached", "uncached", *PEERS]
        assert bar["x"] == [at(arm, way)["tokens_per_s"]["median"] for way in ways]
        assert bar["error_x"]["array"] == pytest.approx([0.09 * rate for rate in bar["x"]])


def test_where_a_way_stops_early_the_page_begins_where_all_were_measured(tmp_path):
    arm = sample(batches=(2, 4))
    arm["points"] = [p for p in arm["points"] if (p["way"], p["new_tokens"]) != ("uncached", 480)]
    for point in arm["points"]:
        if point["new_tokens"] == 480:
            point["speedup"] = None
    page = page_of(tmp_path, arm)
    assert page.says(r"generates N tokens .* at batch N, after") == [128, 2]
    assert page.texts["option"][-6:-4] == [f"batch {b}, prompt of 32 tokens, 128 tokens new" for b in (2, 4)]
    (bar,) = (trace for trace in page.seen("ways") if trace["type"] == "bar")
    assert bar["x"][0] == at(arm, batch=2, new_tokens=128)["tokens_per_s"]["median"]


def test_other_places_are_a_choice_away(tmp_path):
    page = page_of(tmp_path, sample(prompts=(32, 64)))
    options = [text for text in page.texts["option"] if "new" not in text]
    assert options == [f"batch {b}, prompt of {p} tokens" for b in (1, 4, 16) for p in (32, 64)]
    assert [trace["meta"] for trace in page.figures["speedup"]["data"]] == list(range(6))
    assert [trace["visible"] for trace in page.figures["speedup"]["data"]] == [True] + 5 * [False]
    values = [attributes["value"] for tag, attributes in page.tags if tag == "option"]
    assert values[:6] == list("012345")


def test_a_plot_of_one_point_gives_way_to_the_option_that_draws_it(tmp_path):
    page = page_of(tmp_path, sample(batches=(1,), new_tokens=(128,)))
    assert page.figures.keys() == {"memory", "ways"}
    assert sum("batch=[1,4,16] draws this plot" in item for item in page.texts["li"]) == 2
    assert sum("new_tokens=[32,128,512] draws this plot" in item for item in page.texts["li"]) == 1
    assert "select" not in page.texts


def test_one_new_token_has_no_decoding_step(tmp_path):
    page = page_of(tmp_path, sample(new_tokens=(1,)))
    assert any("No decoding step was timed" in item for item in page.texts["li"])
    assert not any("A decoding step" in item for item in page.texts["li"])


def test_nothing_comes_from_the_network(tmp_path):
    page = page_of(tmp_path, *three())
    assert not [attributes for _, attributes in page.tags if attributes.keys() & {"src", "href", "srcset", "action"}]
    assert "url(" not in page.texts["style"][0] and "@import" not in page.texts["style"][0]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "http" not in policy
    markup = page.source.replace(page.texts["script"][0], "")  # plotly's own strings
    assert not re.search(r"https?:|//cdn", markup)
    assert len(page.texts["script"]) == 2 and "plotly.js v" in page.texts["script"][0]


def test_what_comes_from_the_files_is_text(tmp_path):
    arm = sample(HOSTILE)
    arm["gpu"] = arm["precision"] = arm["command"] = arm["machine"]["platform"] = HOSTILE
    arm["model"]["attention"] = arm["versions"]["torch"] = arm["git"]["revision"] = HOSTILE
    for item in (*arm["points"], *arm["cache_memory"]):
        item.update({key: HOSTILE for key in ("way", "name") if item.get(key) in ("mha", "transformers, no cache")})
    page = page_of(tmp_path, arm)
    assert len(page.texts["script"]) == 2
    assert page.texts["h1"] == [f"Generation: {HOSTILE}"]
    assert HOSTILE in {row["way"] for row in page.table()}
    assert json.loads(page.texts["pre"][0]) == arm["model"]
    drawn = json.dumps(page.figures)  # plotly takes some tags in its texts for markup
    assert "<script" not in drawn and "&lt;script&gt;" in drawn


def test_provenance(tmp_path):
    arms = three()
    page = page_of(tmp_path, *arms)
    facts = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))  # of the last
    assert facts["command"] == arms[-1]["command"]
    assert facts["versions"] == "python 3.12.4, torch 2.13.0"
    assert facts["git"] == f"{arms[-1]['git']['revision']}, with changes"
    assert (facts["measured bandwidth"], facts["measured FLOP rate"]) == ("26.1 GB/s", "150 GFLOP/s")
    assert [json.loads(text) for text in page.texts["pre"]] == [arm["model"] for arm in arms]
    assert page.texts["summary"] == ["mha", "gqa", "mqa"]


def test_what_differs_between_the_arms_is_all_named(tmp_path):
    page = page_of(tmp_path, sample("slow"), sample("fast", cuda=True))
    assert page.texts["p"][0].startswith("CPU, 2 threads / NVIDIA H100 80GB HBM3 · Linux")
    assert "float32 / bfloat16" in page.texts["p"][0]


def test_results_come_in_the_order_of_the_jobs_under_names_of_their_own(tmp_path):
    write(tmp_path, sample("alone"))
    for folder, label in (("10_b", "b"), ("2_a", "a"), ("1_a", "a")):
        write(tmp_path / folder, sample(label))
    write(tmp_path / "1_a" / "deeper", sample("too deep"))
    assert [arm.label for arm in read_results(tmp_path)] == ["alone", "1_a: a", "2_a: a", "b"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda arm: "{",
        lambda arm: "[]",
        lambda arm: "\udcff",
        lambda arm: json.dumps({"task": "training", "results": []}),
        lambda arm: json.dumps(arm | {"rounds": None}),
        lambda arm: json.dumps(arm | {"points": [{"way": "cached"}]}),
        lambda arm: json.dumps(arm | {"limits": {}}),
        lambda arm: json.dumps(arm | {"points": arm["points"] * 2}),
        lambda arm: json.dumps(arm | {"points": arm["points"][:1]}),  # its speedup is over nothing
        lambda arm: json.dumps(arm | {"points": [arm["points"][0] | {"batch": 0}]}),
        lambda arm: json.dumps(arm).replace('"speedup": ', '"speedup": NaN, "was": '),
        lambda arm: json.dumps(arm | {"cache_memory": [{"name": "mha", "this": True, "points": [[64, 0]]}]}),
    ],
)
def test_a_damaged_file_is_left_out_with_a_warning(tmp_path, damage):
    write(tmp_path / "0_mha", sample("mha"))
    write(tmp_path / "1_gqa", sample("gqa", 2))
    bad = tmp_path / "0_mha" / "generation.json"
    bad.write_bytes(damage(json.loads(bad.read_text())).encode(errors="surrogateescape"))
    with pytest.warns(AblateWarning, match="left out") as told:
        page = Page(write_page(tmp_path))
    (warning,) = told
    assert str(warning.message).startswith(f"{bad}: ") and "\n" not in str(warning.message)
    assert page.texts["h1"] == ["Generation: gqa"]


def test_no_arm_at_all(tmp_path):
    with pytest.raises(AblateError, match=r"no generation\.json"):
        write_page(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_kill_leaves_the_old_page(tmp_path, monkeypatch):
    before = page_of(tmp_path, sample("mha")).source
    write(tmp_path, sample("gqa", 2))

    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        write_page(tmp_path)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == before
    assert Page(write_page(tmp_path)).texts["h1"] == ["Generation: gqa"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generation.json", "index.html"]


MARKS = {"speedup": 9, "memory": 21, "latency": 9, "throughput": 9, "ways": 15}  # points of three lines, and bars
LINES = {"speedup": 3, "memory": 6, "latency": 6, "throughput": 6, "ways": 0}  # with their limits


@pytest.mark.slow
@pytest.mark.skipif(pages.CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(
    ("dark", "ink"), [(False, "rgb(28, 30, 33)"), (True, "rgb(230, 232, 235)")], ids=["light", "dark"]
)
def test_a_browser_draws_every_plot_and_every_choice(tmp_path, dark, ink):
    seen = pages.seen_by_a_browser(page_of(tmp_path, *three()), tmp_path, dark=dark)
    assert seen["errors"] == []
    assert not seen["wide"]
    assert seen["plots"].keys() == PLOTS
    for name, plot in seen["plots"].items():
        last = {"speedup": [2], "memory": [], "latency": [2], "throughput": [2], "ways": [8]}[name]
        drawn = {"drawings": 3, "marks": MARKS[name], "lines": LINES[name]}
        assert plot == drawn | {"choices": last, "ink": ink}
