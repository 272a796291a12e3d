"""The page shows what was measured, needs no network, and leaves bad files out."""

import json
import os
import re
from pathlib import Path

import pages
import pytest
from samples import CONTEXTS, PEERS, sample, write

from ablate.benchmark.generation.page import write_page
from ablate.benchmark.generation.results import read_results, write_result
from ablate.errors import AblateError, AblateWarning
from ablate.words import number, size

PLOTS = {"speedup", "memory", "latency", "throughput", "ways"}
NUMBER = r"([\d.,]*\d)"
THREE_DIGITS = 0.006  # the relative error of rounding to three digits
HOSTILE = "<script>alert(1)</script>&\"'"


class Page(pages.Page):
    def says(self, pattern: str) -> list[float]:
        """The numbers of the one list item that matches; N stands for a number in the pattern."""
        matches = [match for item in self.texts["li"] if (match := re.search(pattern.replace("N", NUMBER), item))]
        assert len(matches) == 1, self.texts["li"]
        return [value(text) for text in matches[0].groups()]

    def seen(self, plot: str) -> list[dict]:
        """The traces that a plot shows at first, without the one that only explains the dashes."""
        return [trace for trace in self.figures[plot]["data"] if trace.get("visible", True) and trace["x"] != [None]]


def value(text: str) -> float:
    return float(text.replace(",", ""))


def close(expected):
    return pytest.approx(expected, rel=THREE_DIGITS)


def page_of(folder: Path, *results: dict) -> Page:
    if len(results) == 1:
        write(folder, results[0])
    else:
        for job, result in enumerate(results):
            write(folder / f"{job}_{result['label']}", result)
    return Page(write_page(folder))


def three(**options) -> list[dict]:
    return [sample(name, heads, **options) for name, heads in (("mha", 8), ("gqa", 2), ("mqa", 1))]


def at(result: dict, way: str = "cached", batch: int = 1, new_tokens: int = 480) -> dict:
    (point,) = [p for p in result["points"] if (p["way"], p["batch"], p["new_tokens"]) == (way, batch, new_tokens)]
    return point


def test_numbers_have_three_digits_and_units():
    assert [number(x) for x in (0, 0.0042, 9.6, 12.34, 118.4, 1234.5)] == ["0", "0.0042", "9.6", "12.3", "118", "1,234"]
    assert [size(x) for x in (0, 999, 16384, 4456448, 2e9)] == ["0 B", "999 B", "16.4 kB", "4.46 MB", "2 GB"]


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("peers", [False, True])
@pytest.mark.parametrize("uncached", [False, True])
def test_the_table_holds_every_point(tmp_path, cuda, peers, uncached):
    results = three(cuda=cuda, peers=peers, uncached=uncached)
    page = page_of(tmp_path, *results)
    rows = page.table()
    points = [(result["label"], point) for result in results for point in result["points"]]
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
    result = sample("gqa", 2)
    page = page_of(tmp_path, result)
    point, fast, slow = (
        at(result),
        at(result)["tokens_per_s"]["median"],
        at(result, "uncached")["tokens_per_s"]["median"],
    )
    numbers = page.says(
        r"the KV cache, gqa generates 480 tokens N times as fast .* "
        r"\(N against N tokens/s at batch N, after a prompt of N"
    )
    assert numbers == close([fast / slow, fast, slow, 1, 32])
    peer = max(at(result, way)["tokens_per_s"]["median"] for way in PEERS)
    assert page.says(r"^Its tokens/s are N times .* \(N against N at batch 1\)") == close([fast / peer, fast, peer])
    step, limit = point["token_s"]["median"], point["limit_token_s"]
    assert page.says("at batch 1 takes N ms, N times the least") == close([step * 1e3, step / limit])
    per_token = result["budget"]["kv_bytes_per_token"] / 1e3
    numbers = page.says("One more token costs N kB of cache; N tokens take N MB, where mha would take N MB")
    assert numbers == close(
        [per_token, CONTEXTS[-1], CONTEXTS[-1] * per_token / 1e3, CONTEXTS[-1] * per_token * 4 / 1e3]
    )
    assert page.texts["h1"] == ["Generation: gqa"]
    assert page.texts["p"] == [
        "CPU, 2 threads · Linux-6.1.0-x86_64-with-glibc2.36 · float32 · eager · medians of 5 rounds"
    ]


def test_several_models_in_sentences(tmp_path):
    results = three(cuda=True)
    page = page_of(tmp_path, *results)
    each = r"N \(mha\), N \(gqa\) and N \(mqa\)"
    assert page.says(f"480 tokens are generated {each} times") == close([at(result)["speedup"] for result in results])
    assert page.says(f"tokens/s are {each} times those") == close([at(result)["times_peer"] for result in results])
    assert page.says(f"takes {each} times the least") == close(
        [1 / at(result)["fraction_of_limit"] for result in results]
    )
    costs = r"N kB \(mha\), N kB \(gqa\) and N kB \(mqa\)"
    assert page.says(f"costs {costs} of cache") == close(
        [result["budget"]["kv_bytes_per_token"] / 1e3 for result in results]
    )
    assert page.texts["h1"] == ["Generation: 3 models compared"]
    assert page.texts["p"][0].startswith("NVIDIA H100 80GB HBM3 · ")


def test_of_many_models_the_two_ends_are_named(tmp_path):
    results = [sample(f"heads={heads}", heads) for heads in (4, 8, 2, 1, 16)]
    numbers = page_of(tmp_path, *results).says(r"costs from N kB \(heads=1\) to N kB \(heads=16\) of cache")
    assert numbers == close([4.096, 65.536])


def test_the_fastest_is_named_only_where_rounds_do_not_overlap(tmp_path):
    slow, fast = sample("slow"), sample("fast")
    unclear = page_of(tmp_path / "unclear", slow, fast)
    assert unclear.says("no model is clearly the fastest: from N .* to N .* overlap")
    for point in fast["points"]:
        point["tokens_per_s"] = {name: 2 * rate for name, rate in point["tokens_per_s"].items()}
    rate = at(slow)["tokens_per_s"]["median"]
    numbers = page_of(tmp_path / "clear", slow, fast).says("fast is the fastest: N tokens/s, N times the N of slow")
    assert numbers == close([2 * rate, 2, rate])


def test_a_cache_that_forgets_is_said_to(tmp_path):
    assert page_of(tmp_path / "local", sample("mqa", 1, window=64)).says(
        "costs N kB of cache while nothing is forgotten;"
    )
    assert not any("forgotten" in item for item in page_of(tmp_path / "full", sample("mqa", 1)).texts["li"])


def test_nothing_is_said_of_what_was_not_measured(tmp_path):
    text = " ".join(page_of(tmp_path, sample(peers=False, uncached=False)).texts["li"])
    assert "transformers" not in text and "as fast as without" not in text
    assert "Nothing was measured without the cache; uncached=true does." in text


def test_below_the_limit_is_explained(tmp_path):
    result = sample()
    for point in result["points"]:
        if point["fraction_of_limit"]:
            point["fraction_of_limit"] = 1.25
    assert page_of(tmp_path, result).says("N times the least .*; below 1, it reads from faster memory") == [0.8]


@pytest.mark.parametrize(
    ("plot", "key", "scale", "limit"),
    [
        ("latency", "token_s", 1e3, lambda point: point["limit_token_s"] * 1e3),
        ("throughput", "tokens_per_s", 1, lambda point: point["batch"] / point["limit_token_s"]),
    ],
)
def test_lines_over_batches_are_the_measured_figures(tmp_path, plot, key, scale, limit):
    results = three()
    page = page_of(tmp_path, *results)
    assert page.figures.keys() == PLOTS
    traces = page.seen(plot)
    lines = [trace for trace in traces if trace["mode"] == "lines+markers"]
    assert [line["name"] for line in lines] == ["mha", "gqa", "mqa"]
    for result, line in zip(results, lines, strict=True):
        assert line["x"] == [1, 4, 16]
        values = [at(result, batch=batch)[key] for batch in line["x"]]
        assert line["y"] == pytest.approx([v["median"] * scale for v in values])
        assert line["error_y"]["array"] == pytest.approx([(v["max"] - v["median"]) * scale for v in values])
        assert line["error_y"]["arrayminus"] == pytest.approx([(v["median"] - v["min"]) * scale for v in values])
    dashed = [trace["y"] for trace in traces if trace["mode"] == "lines"]
    assert dashed == [pytest.approx([limit(at(result, batch=batch)) for batch in (1, 4, 16)]) for result in results]


def test_the_speedup_has_the_spread_of_both_ways(tmp_path):
    result = sample()
    (line,) = page_of(tmp_path, result).seen("speedup")
    assert line["x"] == [32, 128, 480]
    for new, gain, up, down in zip(
        line["x"], line["y"], *(line["error_y"][k] for k in ("array", "arrayminus")), strict=True
    ):
        fast, slow = at(result, new_tokens=new)["tokens_per_s"], at(result, "uncached", new_tokens=new)["tokens_per_s"]
        assert gain == pytest.approx(fast["median"] / slow["median"])
        assert gain + up == pytest.approx(fast["max"] / slow["min"])
        assert gain - down == pytest.approx(fast["min"] / slow["max"])


def test_memory_marks_the_model_and_shows_the_alternatives(tmp_path):
    result = sample("gqa", 2)
    lines = {line["name"]: line for line in page_of(tmp_path, result).seen("memory")}
    own = "gqa (2 kv heads)"
    assert lines.keys() == {f"{own}, this model"} | {line["name"] for line in result["cache_memory"]} - {own}
    assert [name for name, line in lines.items() if "markers" in line["mode"]] == [f"{own}, this model"]
    for line in result["cache_memory"]:
        drawn = lines[f"{own}, this model" if line["this"] else line["name"]]
        assert [list(point) for point in zip(drawn["x"], drawn["y"], strict=True)] == line["points"]


def test_memory_of_several_draws_no_line_twice(tmp_path):
    names = [line["name"] for line in page_of(tmp_path, *three()).seen("memory")]
    local = [f"{name}, local (window 128)" for name in ("mha", "gqa (2 kv heads)", "mqa")]
    assert names == ["mha", "gqa", "mqa", *local]


def test_bars_are_all_ways_at_the_longest_text_and_smallest_batch(tmp_path):
    results = three()
    bars = [trace for trace in page_of(tmp_path, *results).seen("ways") if trace["type"] == "bar"]
    for result, bar in zip(results, bars, strict=True):
        ways = [way.replace("<br>", " ") for way in bar["y"]]
        assert ways == ["cached", "uncached", *PEERS]
        assert bar["x"] == [at(result, way)["tokens_per_s"]["median"] for way in ways]
        assert bar["error_x"]["array"] == pytest.approx([0.09 * rate for rate in bar["x"]])


def test_where_a_way_stops_early_the_page_begins_where_all_were_measured(tmp_path):
    result = sample(batches=(2, 4))
    result["points"] = [p for p in result["points"] if (p["way"], p["new_tokens"]) != ("uncached", 480)]
    for point in result["points"]:
        if point["new_tokens"] == 480:
            point["speedup"] = None
    page = page_of(tmp_path, result)
    assert page.says(r"generates N tokens .* at batch N, after") == [128, 2]
    assert page.texts["option"][-6:-4] == [f"batch {b}, prompt of 32 tokens, 128 tokens new" for b in (2, 4)]
    (bar,) = (trace for trace in page.seen("ways") if trace["type"] == "bar")
    assert bar["x"][0] == at(result, batch=2, new_tokens=128)["tokens_per_s"]["median"]


def test_other_workloads_are_a_choice_away(tmp_path):
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
    result = sample(HOSTILE)
    result["gpu"] = result["precision"] = result["command"] = result["machine"]["platform"] = HOSTILE
    result["model"]["attention"] = result["versions"]["torch"] = result["git"]["revision"] = HOSTILE
    for item in (*result["points"], *result["cache_memory"]):
        item.update({key: HOSTILE for key in ("way", "name") if item.get(key) in ("mha", "transformers, no cache")})
    page = page_of(tmp_path, result)
    assert len(page.texts["script"]) == 2
    assert page.texts["h1"] == [f"Generation: {HOSTILE}"]
    assert HOSTILE in {row["way"] for row in page.table()}
    assert json.loads(page.texts["pre"][0]) == result["model"]
    drawn = json.dumps(page.figures)  # plotly takes some tags in its texts for markup
    assert "<script" not in drawn and "&lt;script&gt;" in drawn


def test_provenance(tmp_path):
    results = three()
    page = page_of(tmp_path, *results)
    facts = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))  # of the last
    assert facts["command"] == results[-1]["command"]
    assert facts["versions"] == "python 3.12.4, torch 2.13.0"
    assert facts["git"] == f"{results[-1]['git']['revision']}, with changes"
    assert (facts["measured bandwidth"], facts["measured FLOP rate"]) == ("26.1 GB/s", "150 GFLOP/s")
    assert [json.loads(text) for text in page.texts["pre"]] == [result["model"] for result in results]
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
    assert [result.label for result in read_results(tmp_path)] == ["alone", "1_a: a", "2_a: a", "b"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda result: "{",
        lambda result: "[]",
        lambda result: "\udcff",
        lambda result: json.dumps({"task": "training", "results": []}),
        lambda result: json.dumps(result | {"format": 2}),
        lambda result: json.dumps(result | {"rounds": None}),
        lambda result: json.dumps(result | {"points": [{"way": "cached"}]}),
        lambda result: json.dumps(result | {"limits": {}}),
        lambda result: json.dumps(result | {"points": result["points"] * 2}),
        lambda result: json.dumps(result | {"points": result["points"][:1]}),  # its speedup has no uncached point
        lambda result: json.dumps(result | {"points": [result["points"][0] | {"batch": 0}]}),
        lambda result: json.dumps(result).replace('"speedup": ', '"speedup": NaN, "was": '),
        lambda result: json.dumps(result | {"cache_memory": [{"name": "mha", "this": True, "points": [[64, 0]]}]}),
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


def test_a_file_without_a_format_and_with_keys_of_a_later_version_is_read(tmp_path):
    result = sample("mha")
    del result["format"]
    result["carbon"] = result["limits"]["latency_s"] = result["points"][0]["joules"] = 1.0
    write(tmp_path, result)
    (read,) = read_results(tmp_path)
    assert read.label == "mha" and len(read.points) == len(result["points"])


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path / "made_up", sample("gqa", 2, window=64, cuda=True))
    results = read_results(tmp_path)
    write_result(tmp_path / "again", results[0])
    assert read_results(tmp_path / "again") == results


def test_no_result_at_all(tmp_path):
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
