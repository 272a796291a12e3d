"""The measurement with a clock of our own: who runs when, and what becomes of the seconds."""

import pytest
import torch
from rich.console import Console

from ablate.benchmark.generation.measure import Place, Way, add_ratios, measure, random_prompts
from ablate.benchmark.rounds import progress, spread, take_turns

CPU = torch.device("cpu")
PLACES = [Place(1, 3, 5), Place(2, 3, 5), Place(2, 3, 1)]


def prompts(place: Place) -> list[list[int]]:
    return random_prompts(place, 31, seed=3)


def scripted(name: str, whole: list[float], calls: list | None = None) -> Way:
    """A first token after 1 s, the last after so many in the first round, the second, ..."""
    turns = iter(whole)

    def seconds(rows, new_tokens):
        if calls is not None:
            calls.append((name, len(rows), len(rows[0]), new_tokens))
        return 1.0, next(turns)

    return Way(name, seconds)


def test_contestants_take_turns_and_the_first_round_does_not_count():
    said, order = [], []
    contestants = [lambda name=name: order.append(name) or len(order) for name in "abc"]
    assert take_turns(contestants, 2, lambda *turn: said.append(turn)) == [[4, 7], [5, 8], [6, 9]]
    assert order == list("abcabcabc")
    assert said == [(number, turn) for number in range(3) for turn in range(3)]


def test_ways_take_turns_in_all_rounds_at_one_place_before_the_next():
    calls, said = [], []
    ways = [scripted(name, [5.0] * 9, calls) for name in ("cached", "uncached")]
    measure(ways, PLACES, 2, prompts, CPU, said.append)
    expected = []
    for p in PLACES:
        expected += 3 * [(way, p.batch, p.prompt_tokens, p.new_tokens) for way in ("cached", "uncached")]
    assert calls == expected
    assert said[0] == "warming up: cached, batch 1, 3 + 5 tokens"
    assert said[-1] == "round 2/2: uncached, batch 2, 3 + 1 tokens"
    assert len(said) == len(calls)


def test_figures_are_medians_with_their_spread():
    way = scripted("cached", [99.0, 5.0, 9.0, 3.0])
    (row,) = measure([way], PLACES[1:2], 3, prompts, CPU, lambda text: None)
    assert row == {
        "way": "cached",
        "batch": 2,
        "prompt_tokens": 3,
        "new_tokens": 5,
        "first_token_s": {"median": 1.0, "min": 1.0, "max": 1.0},
        "token_s": {"median": 1.0, "min": 0.5, "max": 2.0},  # four steps after the first token
        "tokens_per_s": {"median": 2.0, "min": 10 / 9, "max": 10 / 3},
        "peak_memory_bytes": None,
    }


def test_one_new_token_has_no_step_after_it():
    (row,) = measure([scripted("cached", [1.0] * 2)], PLACES[2:], 1, prompts, CPU, lambda text: None)
    assert row["token_s"] is None and row["tokens_per_s"]["median"] == 2.0


def test_ratios_are_those_of_one_place():
    whole = {"cached": 2.0, "uncached": 8.0, "theirs": 5.0, "theirs, slow": 50.0}
    ways = [scripted(name, [seconds] * 2 + [3 * seconds] * 2) for name, seconds in whole.items()]
    rows = measure(ways, PLACES[:1], 1, prompts, CPU, lambda text: None)
    rows += measure(ways, PLACES[1:2], 1, prompts, CPU, lambda text: None)
    add_ratios(rows)
    for row in rows:
        cached = row["way"] == "cached"
        assert row["speedup"] == (pytest.approx(4.0) if cached else None)
        assert row["times_peer"] == (pytest.approx(2.5) if cached else None)
    alone = [row for row in rows if row["way"] == "cached"]
    add_ratios(alone)
    assert all(row["speedup"] is None and row["times_peer"] is None for row in alone)


def test_prompts_depend_on_the_seed_and_the_place():
    rows = random_prompts(Place(2, 40, 5), 31, seed=3)
    assert [len(row) for row in rows] == [40, 40] and rows[0] != rows[1]
    assert all(isinstance(id, int) and 0 <= id < 31 for row in rows for id in row)
    assert random_prompts(Place(2, 40, 9), 31, seed=3) == rows != random_prompts(Place(2, 40, 5), 31, seed=4)


def test_spread():
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_what_runs(terminal, capsys):
    with progress(3, Console(force_terminal=terminal, width=100)) as say:
        for name in ("[one]", "two", "three"):
            say(name)
    out = capsys.readouterr().out
    assert "one" in out
    if not terminal:
        assert out == "1/3  [one]\n"  # the others within five seconds
