import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are fastest, and the same from run to run, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
