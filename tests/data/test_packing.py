from collections import Counter
from itertools import groupby

import numpy as np
import pytest
import torch

from ablate.data import PACKERS, PackedRows, Packing, pieces_of

CASES = [
    ([5], 8),
    ([8], 8),
    ([17], 8),
    ([1, 1, 1], 1),
    ([3, 8, 16, 2, 2, 2, 9, 1], 8),
    (np.random.default_rng(0).integers(1, 60, 200), 16),
    (np.random.default_rng(1).integers(1, 12, 300), 64),
]


def pack(name, lengths, context):
    return PACKERS.build({"name": name})(np.asarray(lengths), context)


def laid_out(rows):
    """The (document, pair) at each place of each row, by a slow double loop."""
    return [
        [
            (int(rows.document[s]), int(rows.offset[s]) + i)
            for s in range(rows.row_start[r], rows.row_start[r + 1])
            for i in range(rows.length[s])
        ]
        for r in range(len(rows))
    ]


def stream_of(lengths):
    return [(d, i) for d, length in enumerate(lengths) for i in range(length)]


@pytest.mark.parametrize(("lengths", "context"), CASES)
@pytest.mark.parametrize("name", ["best_fit", "padded"])
def test_every_pair_appears_once(name, lengths, context):
    rows = pack(name, lengths, context)
    layout = laid_out(rows)
    assert sorted(place for row in layout for place in row) == stream_of(lengths)
    assert all(0 < len(row) <= context for row in layout)
    assert rows.dropped == 0


@pytest.mark.parametrize(("lengths", "context"), CASES)
@pytest.mark.parametrize("name", ["best_fit", "padded", "concat"])
def test_reported_numbers(name, lengths, context):
    rows = pack(name, lengths, context)
    layout = laid_out(rows)
    used = sum(map(len, layout))
    pieces = [int(d) for d in rows.document]
    assert rows.pairs == used
    assert rows.utilisation == pytest.approx(used / (len(layout) * context))
    assert rows.dropped == sum(lengths) - used
    assert rows.documents_cut == sum(pieces.count(d) > 1 for d in set(pieces))


@pytest.mark.parametrize(("lengths", "context"), CASES)
def test_concat_is_the_stream(lengths, context):
    stream = stream_of(lengths)
    whole = max(len(stream) // context, 1) * context
    assert laid_out(pack("concat", lengths, context)) == [
        stream[i : i + context] for i in range(0, min(whole, len(stream)), context)
    ]


@pytest.mark.parametrize(("lengths", "context"), CASES)
def test_padded_holds_one_piece_a_row(lengths, context):
    rows = pack("padded", lengths, context)
    assert (np.diff(rows.row_start) == 1).all()
    assert len(rows) == sum(-(-int(length) // context) for length in lengths)


@pytest.mark.parametrize(("lengths", "context"), CASES)
def test_best_fit_is_best_fit_decreasing(lengths, context):
    bins = []
    for length in sorted((int(n) % context for n in lengths if n % context), reverse=True):
        fitting = [b for b in bins if context - sum(b) >= length]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    whole = sum(int(n) // context for n in lengths)
    rows = pack("best_fit", lengths, context)
    assert len(rows) == whole + len(bins)
    assert rows.documents_cut == sum(n > context for n in lengths)


def test_best_fit_takes_the_fullest_row_with_room():
    rows = pack("best_fit", [5, 7, 3], 10)
    assert sorted(sorted({d for d, _ in row}) for row in laid_out(rows)) == [[0], [1, 2]]


def test_save_and_load(tmp_path):
    rows = pack("best_fit", [3, 20, 4], 8)
    rows.save(tmp_path / "rows.npz")
    again = Packing.load(tmp_path / "rows.npz")
    assert laid_out(again) == laid_out(rows)
    assert (again.context, again.dropped) == (8, 0)


def slow_batch(stream, starts, rows, ids, restart):
    batch = {
        "tokens": np.zeros((len(ids), rows.context), int),
        "targets": np.full((len(ids), rows.context), -100),
        "positions": np.zeros((len(ids), rows.context), int),
        "documents": np.full((len(ids), rows.context), -1),
    }
    for b, r in enumerate(ids):
        t = 0
        for ordinal, s in enumerate(range(rows.row_start[r], rows.row_start[r + 1]) if r >= 0 else ()):
            for i in range(rows.length[s]):
                at = starts[rows.document[s]] + rows.offset[s] + i
                batch["tokens"][b, t], batch["targets"][b, t] = stream[at], stream[at + 1]
                batch["positions"][b, t] = i if restart else t
                batch["documents"][b, t] = ordinal
                t += 1
    return batch


@pytest.mark.parametrize("name", ["best_fit", "padded", "concat"])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("restart", [True, False])
def test_batches_equal_a_slow_loop(name, mask, restart):
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 40, 50)
    starts = np.cumsum(lengths) - lengths
    stream = rng.integers(1, 60000, lengths.sum() + 1).astype(np.uint16)
    plan = pack(name, lengths, 16)
    rows = PackedRows(stream, starts, lengths * 3, plan, document_mask=mask, restart_positions=restart)
    assert len(rows) == len(plan)
    assert rows.bytes == lengths.sum() * 3
    assert rows.targets == plan.pairs
    ids = [*rng.permutation(len(rows))[:7].tolist(), -1, len(rows) - 1, -1]
    batch = rows[ids]
    expected = slow_batch(stream.astype(int), starts, plan, ids, restart)
    runs = max(1 + int((np.diff(row) != 0).sum()) for row in expected["documents"])
    if mask:
        bound = batch.pop("max_documents")
        assert type(bound) is int and runs <= bound < 2 * runs and bound & (bound - 1) == 0
    else:
        del expected["documents"]
    assert set(batch) == set(expected)
    for key, tensor in batch.items():
        assert tensor.dtype == (torch.int32 if key == "documents" else torch.int64)
        assert torch.equal(tensor.long(), torch.from_numpy(expected[key])), key


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("name", ["best_fit", "padded", "concat"])
def test_pieces_are_the_runs_of_one_document_in_the_rows(name, limit):
    lengths = np.random.default_rng(3).integers(1, 40, 50)
    starts = np.cumsum(lengths) - lengths
    rows = PackedRows(np.zeros(lengths.sum() + 1, dtype=np.uint16), starts, lengths, pack(name, lengths, 16))
    documents = rows[range(len(rows))]["documents"][:limit]
    runs = Counter(len(list(run)) for row in documents.tolist() for _, run in groupby(row))
    assert rows.pieces(limit) == runs
    assert pieces_of(documents.numpy()) == runs


def test_without_the_document_mask_a_row_is_one_piece():
    rows = PackedRows(
        np.zeros(33, dtype=np.uint16),
        np.array([0, 7]),
        np.array([7, 25]),
        pack("concat", [7, 25], 8),
        document_mask=False,
    )
    assert rows.pieces() == {8: 4}


def test_a_batch_of_empty_rows():
    rows = PackedRows(np.arange(6, dtype=np.uint16), np.array([0]), np.array([4]), pack("padded", [5], 8))
    batch = rows[[-1, -1]]
    assert (batch["targets"] == -100).all() and (batch["documents"] == -1).all() and batch["tokens"].shape == (2, 8)
    assert batch["max_documents"] == 1


def test_large_vocabularies():
    stream = np.array([0, 70_000, 100_000, 0], dtype=np.uint32)
    rows = PackedRows(stream, np.array([0]), np.array([4]), pack("concat", [3], 4))
    assert rows[[0]]["targets"].tolist() == [[70_000, 100_000, 0, -100]]
