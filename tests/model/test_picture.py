"""Law 7 for pictures: a picture shows what is computed."""

import pytest
import torch
from zoo import given, label, singles, visible

from ablate.model.axes.attention import ATTENTIONS
from ablate.model.axes.pattern import PATTERNS
from ablate.model.masks import document_runs
from ablate.model.picture import SEEN, heads_picture, mask_picture, shaded


@pytest.mark.parametrize("node", singles("pattern"), ids=label)
def test_a_mask_is_drawn_as_a_double_loop_has_it(node):
    pattern = PATTERNS.build(node)
    documents = torch.tensor([3] * 9 + [0] + [5] * 10)
    run, index = (t[0].tolist() for t in document_runs(documents.unsqueeze(0)))
    table = visible(pattern, 20)
    whole = [[mark == SEEN for mark in line] for line in mask_picture(pattern, 20).split("\n")]
    assert whole == table
    packed = [[mark == SEEN for mark in line] for line in mask_picture(pattern, 20, documents).split("\n")]
    assert packed == [[s <= t and run[s] == run[t] and table[index[t]][index[s]] for s in range(20)] for t in range(20)]


def test_heads_are_drawn_over_the_keys_that_they_read():
    gqa = ATTENTIONS.build({"name": "gqa", "kv_heads": 3}, given(dim=24, heads=6))
    assert heads_picture(gqa).split("\n") == ["query       0 1 2 3 4 5", "key, value  0 0 1 1 2 2"]


def test_shades_run_from_the_smallest_to_the_largest():
    assert shaded(torch.tensor([[-1.0, 0.0], [1.0, 3.0]])) == " ░\n▒█"
