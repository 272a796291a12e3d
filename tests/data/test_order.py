from itertools import chain, islice

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from ablate.data import StepOrder


def take(order, n):
    return list(islice(order, n))


def test_each_epoch_is_a_permutation_of_its_own():
    order = np.concatenate(take(StepOrder(rows=10, batch_size=4, seed=1), 10))
    epochs = order.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_it_starts_at_any_step_of_the_same_order():
    whole = take(StepOrder(rows=7, batch_size=3, seed=5), 20)
    for start in (0, 1, 6, 13):
        assert take(StepOrder(rows=7, batch_size=3, seed=5, start=start), 20 - start) == whole[start:]
    order = StepOrder(rows=7, batch_size=3, seed=5)
    assert [order.at(n).tolist() for n in reversed(range(20))] == whole[::-1]


def test_it_can_be_iterated_again():
    order = StepOrder(rows=7, batch_size=3, seed=5, start=2)
    assert take(order, 5) == take(order, 5)


def test_seeds_differ():
    assert take(StepOrder(100, 10, seed=0), 1) != take(StepOrder(100, 10, seed=1), 1)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_together_what_one_process_sees(world):
    alone = take(StepOrder(rows=11, batch_size=4 * world, seed=3), 12)
    ranks = [take(StepOrder(rows=11, batch_size=4, seed=3, rank=r, world=world), 12) for r in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


def test_a_batch_may_be_larger_than_the_corpus():
    ids = StepOrder(rows=3, batch_size=10, seed=0).at(4)
    assert len(ids) == 10 and set(ids) == {0, 1, 2}


def test_it_needs_rows():
    with pytest.raises(ValueError, match="at least one row"):
        StepOrder(0, 1, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_its_lists(workers):
    class Echo(Dataset):
        def __getitem__(self, ids):
            return ids

    loader = DataLoader(Echo(), batch_size=None, sampler=StepOrder(9, 4, seed=2), num_workers=workers)
    assert [list(map(int, ids)) for ids in take(loader, 6)] == take(StepOrder(9, 4, seed=2), 6)
