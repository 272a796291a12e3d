"""What no weights can learn in the diagnostic tasks: bounds that hold without training."""

import pytest
import torch
from zoo import build, random_tokens, small

from ablate.data import Copy, Leak, Recall
from ablate.data.task import TaskSettings
from ablate.data.tasks import LeakSettings
from ablate.model.loss import IGNORE

SYMBOLS = 60  # and the end of text: the vocabulary of the zoo
CONTEXT = 32
SHARED = {"vocab_size": SYMBOLS + 1, "batch_size": 8, "workers": 0, "max_rows": None, "val_rows": 8}


def rows(task, count=3, context=CONTEXT):
    return task.open(TaskSettings(context=context, **SHARED), seed=0, cache_dir=None).train[range(count)]


def substituted(row: torch.Tensor, *places: int) -> torch.Tensor:
    """The row with each symbol in turn at `places`: `[symbols, T]`."""
    every = row.expand(SYMBOLS, -1).clone()
    every[:, places] = torch.arange(SYMBOLS).unsqueeze(1)
    return every


def right(logits: torch.Tensor) -> int:
    """How many of the rows of `substituted` are answered with the symbol that was put in."""
    return int((logits.argmax(-1) == torch.arange(SYMBOLS)).sum())


# --- copy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["rope", "learned", "alibi"])
@pytest.mark.parametrize(("depth", "window"), [(1, 1), (1, 6), (2, 2), (2, 4), (3, 4)])
def test_local_attention_cannot_copy_from_beyond_its_reach(depth, window, position):
    reach = depth * (window - 1)
    model = build(depth=depth, pattern=small("pattern", "local", window=window), position=position)
    batch = rows(Copy(symbols=SYMBOLS, distance=reach + 1))
    for row, targets in zip(batch["tokens"], batch["targets"], strict=True):
        for t in (reach + 2, CONTEXT - 1):
            assert targets[t] == row[t - reach - 1]
            logits = model(substituted(row, t - reach - 1))[:, t]
            assert (logits == logits[0]).all()
            assert right(logits) <= 1  # of 60: no better than chance
            nearer = model(substituted(row, t - reach))[:, t]
            assert reach == 0 or not (nearer == nearer[0]).any(-1)[1:].all()


@pytest.mark.parametrize("cycle", [["full", "local"], ["local", "full"]])
def test_one_full_layer_reaches_everywhere(cycle):
    model = build(pattern={"cycle": [small("pattern", name) for name in cycle]})
    row = rows(Copy(symbols=SYMBOLS, distance=30))["tokens"][0]
    logits = model(substituted(row, 1))[:, 31]
    assert len(logits.unique(dim=0)) == SYMBOLS


def shifted(row: torch.Tensor) -> torch.Tensor:
    """The row with what lies between its first and its last token turned round by every number of places."""
    inner = row[1:-1]
    turned = torch.stack([inner.roll(n) for n in range(len(inner))])
    ends = row[[0, -1]].expand(len(inner), -1)
    return torch.cat([ends[:, :1], turned, ends[:, 1:]], dim=1)


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
def test_one_layer_without_positions_cannot_copy_at_an_offset(attention):
    """Its last answer is the same for every order of what came before, so that it is right for at most as many
    orders as the commonest symbol has places."""
    model = build(depth=1, position="none", attention=attention)
    for row in rows(Copy(symbols=SYMBOLS, distance=7))["tokens"]:
        every = shifted(row)
        answers = model(every)[:, -1]
        torch.testing.assert_close(answers, answers[:1].expand_as(answers), rtol=0, atol=1e-5)
        targets = every[:, -1 - 7]
        assert (answers.argmax(-1) == targets).sum() <= row[1:-1].bincount().max()


def test_one_layer_with_positions_is_not_bound_by_that():
    row = rows(Copy(symbols=SYMBOLS, distance=7))["tokens"][0]
    answers = build(depth=1, position="rope")(shifted(row))[:, -1]
    assert (answers - answers[0]).abs().amax(-1)[1:].min() > 1e-3


def test_the_bound_without_positions_is_small_where_symbols_are_many():
    """E[count of the commonest symbol] / T, 0.030 for 1024 symbols and T = 64."""
    settings = TaskSettings(context=65, **{**SHARED, "vocab_size": 1025})
    tokens = Copy(symbols=1024, distance=8).open(settings, seed=0, cache_dir=None).train[range(4000)]["tokens"][:, 1:]
    commonest = torch.stack([row.bincount().max() for row in tokens]).double().mean()
    assert commonest.item() / 64 == pytest.approx(0.030, abs=0.001)


# --- recall ------------------------------------------------------------------------------------------


def test_local_attention_cannot_recall_a_value_from_beyond_its_reach():
    model = build(depth=2, pattern=small("pattern", "local", window=4))
    batch, checked = rows(Recall(symbols=SYMBOLS, pairs=4), count=20), 0
    for row, targets in zip(batch["tokens"], batch["targets"], strict=True):
        for t in (targets != IGNORE).nonzero().flatten().tolist():
            value = row.tolist().index(targets[t])
            if t - value > 6:
                logits = model(substituted(row, value))[:, t]
                assert (logits == logits[0]).all() and right(logits) <= 1
                checked += 1
    assert checked > 20


# --- leak --------------------------------------------------------------------------------------------


def leak(document_mask: bool, restart_positions: bool = True):
    settings = LeakSettings(context=CONTEXT, document_mask=document_mask, restart_positions=restart_positions, **SHARED)
    return Leak(symbols=SYMBOLS).open(settings, seed=0, cache_dir=None).train[range(2)]


def answers(model, batch, tokens):
    documents = batch.get("documents")
    documents = None if documents is None else documents[:1].expand(len(tokens), -1)
    return model(tokens, batch["positions"][:1].expand(len(tokens), -1), documents)


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_the_document_mask_keeps_the_first_copy_from_the_second(position, mask, restart):
    model, batch = build(position=position), leak(mask, restart)
    tokens = batch["tokens"]
    edited = tokens.clone()
    edited[:, 1:16] = random_tokens(2, 15, seed=5) % SYMBOLS
    before, after = (answers(model, batch, t)[:, 16:] for t in (tokens, edited))
    assert torch.equal(before, after) == mask


@pytest.mark.parametrize("mask", [True, False])
def test_the_document_mask_leaves_chance(mask):
    """With the symbol that is due in both copies replaced by every other: one of 60 is answered rightly."""
    model, batch = build(), leak(mask)
    for row, targets in zip(batch["tokens"], batch["targets"], strict=True):
        for t in (16, 20, 30):
            assert targets[t] == row[t + 1] == row[t + 1 - 16]
            logits = answers(model, batch, substituted(row, t + 1 - 16, t + 1))[:, t]
            assert (logits == logits[0]).all() == mask
            assert right(logits) <= 1 or not mask
