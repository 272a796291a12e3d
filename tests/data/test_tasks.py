"""The diagnostic tasks: rows match the definitions, and depend only on (seed, row)."""

import re
from collections import Counter

import numpy as np
import pytest
import torch

from ablate.data import CORPORA, StepOrder, Task
from ablate.errors import AblateError

IGNORE = -100
OPTIONS = {
    "copy": {"symbols": 7, "distance": 5},
    "recall": {"symbols": 20, "pairs": 4},
    "induction": {"symbols": 12, "shortest": 3, "longest": 9},
    "leak": {"symbols": 9},
}
TASKS = [name for name in CORPORA.names() if issubclass(CORPORA.component(name), Task)]


def opened(name, seed=0, context=24, val_rows=50, **options):
    task = CORPORA.build({"name": name, **OPTIONS[name], **options.pop("task", {})})
    settings = {"vocab_size": task.symbols + 1, "context": context, "batch_size": 8, "workers": 0, "max_rows": None}
    extra = {"document_mask": True, "restart_positions": True} if name == "leak" else {}
    settings |= extra | {"val_rows": val_rows} | options
    return task.open(type(task).Settings(**settings), seed, cache_dir=None)


def rows(name, count=200, **options):
    """Tokens and targets, as lists of rows."""
    batch = opened(name, **options).train[range(count)]
    return list(zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True))


# --- rows match the definitions ----------------------------------------------------------------------


def copy_answers(tokens, distance):
    return [tokens[t - distance] if t - distance >= 1 else IGNORE for t in range(len(tokens))]


def last_pairing(tokens, t):
    """The token after the first earlier occurrence of token t."""
    return next((tokens[s + 1] for s in range(1, t) if tokens[s] == tokens[t]), IGNORE)


def test_copy_asks_for_the_symbol_at_the_distance():
    for distance in (1, 5, 22):
        for tokens, targets in rows("copy", task={"distance": distance}):
            assert targets == copy_answers(tokens, distance)
            assert sum(target != IGNORE for target in targets) == 23 - distance


def test_recall_pairs_keys_with_values_and_asks_for_each_once():
    for tokens, targets in rows("recall"):
        keys, values, rest = tokens[1:9:2], tokens[2:9:2], tokens[9:]
        assert len(set(keys)) == len(set(values)) == 4
        assert all(key < 10 for key in keys) and all(10 <= value < 20 for value in values)
        queries = [t for t in range(9, 24) if tokens[t] < 10]
        assert sorted(tokens[t] for t in queries) == sorted(keys)
        assert all((t - 9) % 2 == 0 for t in queries)
        assert all(10 <= token < 20 for token in rest if token not in keys)
        pairs = dict(zip(keys, values, strict=True))
        assert targets == [pairs[tokens[t]] if t in queries else IGNORE for t in range(24)]


def test_recall_puts_queries_near_by_the_power_law():
    """With one pair, the probability of gap g is proportional to g^-0.99."""
    seen = Counter(targets.index(max(targets)) for _, targets in rows("recall", 20000, context=22, task={"pairs": 1}))
    weights = np.arange(1, 11) ** -0.99
    expected = 20000 * weights / weights.sum()
    assert sorted(seen) == [3 + 2 * gap for gap in range(10)]
    assert all(abs(seen[3 + 2 * gap] - n) < 5 * n**0.5 for gap, n in enumerate(expected))


def test_recall_may_fill_its_context():
    for tokens, targets in rows("recall", context=16):
        assert [t for t in range(16) if targets[t] != IGNORE] == [9, 11, 13, 15]
        assert sorted(tokens[9::2]) == sorted(tokens[1:9:2])


def test_induction_repeats_a_segment_and_scores_from_its_second_time_on():
    lengths = Counter()
    for tokens, targets in rows("induction", 2000):
        length = next(n for n in range(1, 23) if tokens[1 + n] == tokens[1])
        lengths[length] += 1
        assert len(set(tokens[1 : 1 + length])) == length
        assert all(tokens[t] == tokens[t - length] for t in range(1 + length, 24))
        assert targets[: 1 + length] == [IGNORE] * (1 + length)
        after = [*tokens[2:], tokens[24 - length]]  # the row and the token that would follow it
        assert targets[1 + length :] == after[length:]
    assert sorted(lengths) == list(range(3, 10))
    assert all(abs(n - 2000 / 7) < 5 * (2000 / 7) ** 0.5 for n in lengths.values())


def test_leak_asks_for_the_second_of_two_equal_documents():
    batch = opened("leak").train[range(50)]
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        assert tokens[:12] == tokens[12:] and tokens[0] == 9
        assert targets == [IGNORE] * 12 + tokens[13:] + [IGNORE]
    assert batch["documents"].tolist() == [[0] * 12 + [1] * 12] * 50
    assert batch["positions"].tolist() == [[*range(12), *range(12)]] * 50
    assert opened("leak").train.pieces() == {12: 2}


def test_the_switches_of_leak_hold_in_training_and_in_validation():
    leak = opened("leak", document_mask=False, restart_positions=False)
    for split in (leak.train, leak.val):
        batch = split[range(3)]
        assert "documents" not in batch
        assert batch["positions"].tolist() == [list(range(24))] * 3
        assert split.pieces() == {24: 1}


SOLVERS = {
    "copy": lambda tokens, t: tokens[t - 5],
    "recall": last_pairing,
    "induction": last_pairing,
    "leak": lambda tokens, t: tokens[t - 12 + 1],
}


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_follows_from_the_row(name):
    for tokens, targets in rows(name):
        asked = [t for t, target in enumerate(targets) if target != IGNORE]
        assert asked
        assert [SOLVERS[name](tokens, t) for t in asked] == [targets[t] for t in asked]


@pytest.mark.parametrize("name", TASKS)
def test_all_answers_are_equally_likely(name):
    corpus = opened(name)
    targets = corpus.train[range(4000)]["targets"]
    counts = torch.bincount(targets[targets != IGNORE])
    counts = counts[counts > 0].double()
    chance = corpus.report()["chance"]
    assert len(counts) == round(1 / chance)
    assert ((counts / counts.sum() - chance).abs() < 0.06 * chance).all()


@pytest.mark.parametrize("name", TASKS)
def test_tokens_fill_the_vocabulary_and_end_of_text_opens_each_document(name):
    corpus = opened(name)
    tokens = corpus.train[range(500)]["tokens"]
    assert tokens.dtype == torch.int64 and tokens.shape == (500, 24)
    assert sorted(tokens.unique().tolist()) == list(range(len(corpus.tokenizer)))
    opening = (tokens == corpus.tokenizer.eot).nonzero()[:, 1].unique().tolist()
    assert opening == ([0, 12] if name == "leak" else [0])


# --- where rows come from ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_row_is_a_function_of_seed_and_number_alone(name):
    corpus = opened(name, seed=3)
    together = corpus.train[range(20)]
    for ids in ([4], [19, 0, 7], range(5, 11)):
        for key, value in opened(name, seed=3).train[ids].items():
            assert torch.equal(value, together[key][list(ids)])
    far = 10**15
    assert not torch.equal(corpus.train[[far]]["tokens"], corpus.train[[far + 1]]["tokens"])


@pytest.mark.parametrize("name", TASKS)
def test_rows_and_seeds_differ(name):
    drawn = torch.cat([opened(name, seed=seed).train[range(100)]["tokens"] for seed in (0, 1, 2**63 - 1)])
    assert len(drawn.unique(dim=0)) > 295  # a short segment may be drawn twice


def test_no_random_number_serves_two_rows():
    drawn = opened("copy", val_rows=100)
    numbers = np.concatenate([rows._chance(np.arange(100)).ravel() for rows in (drawn.train, drawn.val)])
    assert len(np.unique(numbers)) == 200 * 23


@pytest.mark.parametrize("name", TASKS)
def test_validation_is_fixed_whatever_the_seed_and_apart_from_training(name):
    first, second = opened(name, seed=0), opened(name, seed=1)
    a, b = (corpus.val[range(50)] for corpus in (first, second))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(torch.cat([a["tokens"], first.train[range(50)]["tokens"]]).unique(dim=0)) > 95
    assert first.val.size == 50
    assert first.val.targets == (a["targets"] != IGNORE).sum()


@pytest.mark.parametrize("name", TASKS)
def test_an_id_of_minus_one_is_a_row_without_targets(name):
    batch = opened(name).val[[3, -1]]
    assert (batch["targets"][0] != IGNORE).any() and (batch["targets"][1] == IGNORE).all()
    assert all(value.shape == (2, 24) for value in batch.values())


def test_endless_rows_are_read_in_their_own_order():
    order = StepOrder(rows=None, batch_size=3, seed=5, start=2)
    assert order.at(2).tolist() == [6, 7, 8] == next(iter(order))
    ranks = [StepOrder(rows=None, batch_size=3, seed=5, rank=r, world=2).at(1) for r in (0, 1)]
    assert np.array_equal(np.concatenate(ranks), StepOrder(rows=None, batch_size=6, seed=5).at(1))


@pytest.mark.parametrize("name", TASKS)
def test_the_fingerprint_is_that_of_what_is_drawn(name):
    seen = {opened(name, seed=seed).fingerprint for seed in (0, 1)}
    assert len(seen) == 1 and re.fullmatch("[0-9a-f]{64}", *seen)
    changes = [{"context": 26}, {"val_rows": 51}]
    changes += [{"task": {option: value + 1}} for option, value in OPTIONS[name].items()]
    seen |= {opened(name, **change).fingerprint for change in changes}
    assert len(seen) == 1 + len(changes)


def test_tasks_and_masks_do_not_share_fingerprints_by_accident():
    assert len({opened(name).fingerprint for name in TASKS}) == len(TASKS)
    assert opened("leak").fingerprint == opened("leak", document_mask=False).fingerprint  # arms of one study


# --- text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["3 0 6", " 3  0\n6 "])
def test_the_tokenizer_reads_numbers(text):
    assert opened("copy").tokenizer.encode(text) == [3, 0, 6]


def test_decoded_ids_continue_a_prompt():
    tokenizer = opened("copy").tokenizer
    assert "3 0" + tokenizer.decode([6, 1]) == "3 0 6 1"
    assert (len(tokenizer), tokenizer.eot) == (8, 7)
    assert type(tokenizer).from_json(tokenizer.to_json()).encode("5 2") == [5, 2]


@pytest.mark.parametrize("text", ["def", "7", "1 x"])
def test_text_that_is_not_a_symbol_is_refused(text):
    with pytest.raises(AblateError, match="not in the vocabulary"):
        opened("copy").tokenizer.encode(text)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("copy", {"task": {"symbols": 1}}, "data.symbols=1: expected a whole number, at least 2"),
        ("copy", {"task": {"distance": 0}}, "data.distance=0: expected a whole number, at least 1"),
        ("copy", {"task": {"distance": 23}}, "data.distance=23: a context of 24 .* 22 at most"),
        ("recall", {"task": {"pairs": 0}}, "data.pairs=0: expected 1 to 10"),
        ("recall", {"task": {"pairs": 11}}, "data.pairs=11: expected 1 to 10, .* data.symbols=20"),
        ("recall", {"task": {"pairs": 7}}, "data.pairs=7: .* take 28 tokens, .* 24"),
        ("induction", {"task": {"shortest": 10}}, "data.shortest=10: expected 1 to data.longest=9"),
        ("induction", {"task": {"longest": 13}}, "data.longest=13: .* data.symbols=12"),
        ("induction", {"context": 10}, "data.longest=9: .* at most 8, .* a context of 10 tokens"),
        ("leak", {"context": 25}, "data.context=25: .* even"),
        ("leak", {"context": 2}, "data.context=2: .* 4 or more"),
        ("copy", {"val_rows": 0}, "data.val_rows=0"),
        ("copy", {"vocab_size": 7}, "data.vocab_size=7: 7 symbols .* 8; leave data.vocab_size out"),
    ],
)
def test_an_impossible_task_is_refused_in_one_line(name, options, message):
    with pytest.raises(AblateError, match=message) as caught:
        opened(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["packing", "tokenizer", "path"])
def test_options_of_text_are_unknown(option):
    with pytest.raises(AblateError, match=f"data.{option}: 'copy' has no option"):
        CORPORA.build({"name": "copy", option: "x"})
