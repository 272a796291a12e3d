"""The measurement with scripted times: the order of the turns, and the figures computed from the seconds."""

from dataclasses import asdict

import pytest
import torch
from rich.console import Console

from ablate.benchmark.generation.measure import Way, Workload, measure, random_prompts, with_ratios
from ablate.benchmark.rounds import Measured, over_rounds, progress, take_turns

CPU = torch.device("cpu")
WORKLOADS = [Workload(1, 3, 5), Workload(2, 3, 5), Workload(2, 3, 1)]


def prompts(workload: Workload) -> list[list[int]]:
    return random_prompts(workload, 31, seed=3)


def scripted(name: str, whole: list[float], calls: list | None = None) -> Way:
    """A way whose first token takes 1 s, and whose last comes after `whole[i]` seconds in turn i."""
    turns = iter(whole)

    def seconds(rows, new_tokens):
        if calls is not None:
            calls.append((name, len(rows), len(rows[0]), new_tokens))
        return 1.0, next(turns)

    return Way(name, seconds)


def test_contestants_take_turns_and_the_first_round_does_not_count():
    announced, order = [], []
    contestants = [lambda name=name: order.append(name) or len(order) for name in "abc"]
    assert take_turns(contestants, 2, lambda *turn: announced.append(turn)) == [[4, 7], [5, 8], [6, 9]]
    assert order == list("abcabcabc")
    assert announced == [(number, turn) for number in range(3) for turn in range(3)]


def test_ways_take_turns_in_all_rounds_at_one_workload_before_the_next():
    calls, announced = [], []
    ways = [scripted(name, [5.0] * 9, calls) for name in ("cached", "uncached")]
    measure(ways, WORKLOADS, 2, prompts, CPU, announced.append)
    expected = []
    for p in WORKLOADS:
        expected += 3 * [(way, p.batch, p.prompt_tokens, p.new_tokens) for way in ("cached", "uncached")]
    assert calls == expected
    assert announced[0] == "warming up: cached, batch 1, 3 + 5 tokens"
    assert announced[-1] == "round 2/2: uncached, batch 2, 3 + 1 tokens"
    assert len(announced) == len(calls)


def test_figures_are_medians_with_their_spread():
    way = scripted("cached", [99.0, 5.0, 9.0, 3.0])
    (point,) = measure([way], WORKLOADS[1:2], 3, prompts, CPU, lambda text: None)
    assert asdict(point) == {
        "way": "cached",
        "batch": 2,
        "prompt_tokens": 3,
        "new_tokens": 5,
        "first_token_s": {"median": 1.0, "min": 1.0, "max": 1.0},
        "token_s": {"median": 1.0, "min": 0.5, "max": 2.0},  # four steps after the first token
        "tokens_per_s": {"median": 2.0, "min": 10 / 9, "max": 10 / 3},
        "peak_memory_bytes": None,
        "cache_bytes": None,
        "limit_token_s": None,
        "fraction_of_limit": None,
        "speedup": None,
        "times_peer": None,
    }


def test_one_new_token_has_no_step_after_it():
    (point,) = measure([scripted("cached", [1.0] * 2)], WORKLOADS[2:], 1, prompts, CPU, lambda text: None)
    assert point.token_s is None and point.tokens_per_s.median == 2.0


def test_ratios_are_those_of_one_workload():
    whole = {"cached": 2.0, "uncached": 8.0, "theirs": 5.0, "theirs, slow": 50.0}
    ways = [scripted(name, [seconds] * 2 + [3 * seconds] * 2) for name, seconds in whole.items()]
    points = measure(ways, WORKLOADS[:1], 1, prompts, CPU, lambda text: None)
    points += measure(ways, WORKLOADS[1:2], 1, prompts, CPU, lambda text: None)
    points = with_ratios(points)
    assert [point.way for point in points] == 2 * list(whole)
    for point in points:
        cached = point.way == "cached"
        assert point.speedup == (pytest.approx(4.0) if cached else None)
        assert point.times_peer == (pytest.approx(2.5) if cached else None)
    alone = with_ratios([point for point in points if point.way == "cached"])
    assert all(point.speedup is None and point.times_peer is None for point in alone)


def test_prompts_depend_on_the_seed_and_the_workload():
    rows = random_prompts(Workload(2, 40, 5), 31, seed=3)
    assert [len(row) for row in rows] == [40, 40] and rows[0] != rows[1]
    assert all(isinstance(id, int) and 0 <= id < 31 for row in rows for id in row)
    assert random_prompts(Workload(2, 40, 9), 31, seed=3) == rows != random_prompts(Workload(2, 40, 5), 31, seed=4)


def test_over_rounds():
    assert over_rounds([3.0, 1.0, 2.0, 10.0]) == Measured(median=2.5, min=1.0, max=10.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_what_runs(terminal, capsys):
    with progress(3, Console(force_terminal=terminal, width=100)) as say:
        for name in ("[one]", "two", "three"):
            say(name)
    out = capsys.readouterr().out
    assert "one" in out
    if not terminal:
        assert out == "1/3  [one]\n"  # the others come within five seconds
