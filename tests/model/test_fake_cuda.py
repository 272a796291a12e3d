"""Forward passes on a GPU that is not there: all tensors on it, and the host never waits for it.

Tensors are fake (tests/fake_cuda.py), so any machine can test every component. test_gpu.py tests the rest: numbers,
backward passes, and the kernels themselves. Here flex runs as torch's formula, not as its Triton kernel, and flash
needs a separate package.
"""

import pytest
import torch
from fake_cuda import fake_cuda, on_cuda
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from zoo import SCALARS, config, label, singles, small

from ablate.model.config import AXES
from ablate.model.context import Record
from ablate.model.decoder import Decoder
from ablate.model.kernels import KERNELS, Place
from ablate.model.loss import next_token_loss

BATCH, LENGTH, SLOTS = 2, 12, 16
BF16, FP32 = torch.bfloat16, torch.float32
WIDE = small("attention", "gqa", head_dim=16)  # as every kernel takes it
COMPONENTS = [
    *((axis, node) for axis in AXES for node in singles(axis)),
    ("ffn", small("ffn", "moe", shared_experts=1, bias_update=0.01, capacity_factor=1.0)),
    ("attention", small("attention", "gqa", bias=True)),
    ("position", small("position", "rope", fraction=0.5)),
]


def built(**changes) -> Decoder:
    """One layer without values. What its cache keeps is counted: the host does that once, before any pass."""
    with torch.device("meta"):
        model = Decoder(config(depth=1, **changes))
    model.cache_shapes(SLOTS)
    return model


def ids(rows: int = BATCH, length: int = LENGTH) -> torch.Tensor:
    return torch.zeros(rows, length, dtype=torch.int64, device="cuda")


def pass_with_a_loss(model: Decoder) -> torch.Tensor:
    """As in training: documents, auxiliary losses, statistics."""
    record = Record()
    hidden = model.hidden(ids(), documents=ids(), record=record, max_documents=3)
    return next_token_loss(hidden, model.head.weight, ids()) + sum(record.losses.values())


@torch.no_grad()
def passes_with_a_cache(model: Decoder) -> list[torch.Tensor]:
    """A prompt, a token, a chunk, and a token in a span."""
    cache = model.new_cache(BATCH, SLOTS)
    found = [model(ids(length=length), cache=cache) for length in (6, 1, 3)]
    cache.span = SLOTS
    return [*found, model(ids(length=1), cache=cache)]


@pytest.mark.parametrize("axis, node", COMPONENTS, ids=lambda part: part if isinstance(part, str) else label(part))
def test_components(axis, node):
    model = built(kernel="sdpa", **{axis: node})
    with fake_cuda() as watch:
        on_cuda(model, BF16)
        assert model(ids()).shape == (BATCH, LENGTH, SCALARS["vocab_size"])
        assert pass_with_a_loss(model).requires_grad
        passes_with_a_cache(model)
    assert watch.sent == [] and watch.unseen == set()


@pytest.mark.parametrize(
    "scalars", [{"tie_embeddings": False, "bias": True}, {"scale_embeddings": True, "logit_softcap": 5.0}], ids=str
)
def test_scalars(scalars):
    model = built(kernel="sdpa", **scalars)
    with fake_cuda() as watch:
        on_cuda(model, BF16)
        model(ids())
        passes_with_a_cache(model)
    assert watch.sent == []


@pytest.mark.parametrize(
    "pattern, dtype",
    [*((node, BF16) for node in singles("pattern")), (small("pattern", "full"), FP32)],
    ids=lambda part: label(part) if isinstance(part, dict) else str(part),
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels(kernel, pattern, dtype):
    gradient = kernel != "flex"  # which takes its gradient's graph from a backward pass
    probe = built(attention=WIDE, pattern=pattern)
    with fake_cuda():
        reasons = [KERNELS[kernel].refusal(layer.scores, Place("cuda", dtype, gradient)) for layer in probe.layers]
    if any(reasons):
        pytest.skip(f"{kernel}: {reasons}")
    model = built(kernel=kernel, attention=WIDE, pattern=pattern)
    with fake_cuda() as watch:
        on_cuda(model, dtype)
        with torch.set_grad_enabled(gradient):
            model(ids())
            model.hidden(ids(), documents=ids(), max_documents=3)
        passes_with_a_cache(model)
    assert watch.sent == []
    assert watch.unseen <= {"ablate.stored.default"}  # a copy


@pytest.mark.parametrize("softcap, position", [(2.0, "rope"), (None, "alibi")])
def test_soft_caps_and_biases_by_the_kernel_that_auto_chooses(softcap, position):
    model = built(attention=small("attention", "gqa", head_dim=16, softcap=softcap), position=position)
    with fake_cuda() as watch:
        on_cuda(model, BF16)
        with torch.no_grad():
            model.hidden(ids(), documents=ids(), max_documents=3)
        passes_with_a_cache(model)
    assert watch.sent == []


def test_a_mixture_in_fp32_calls_an_operator_that_hides_what_it_does():
    """It asks for the size of each expert's group, unless its step is captured: test_gpu.py."""
    model = built(kernel="sdpa", ffn="moe")
    with fake_cuda() as watch:
        on_cuda(model, FP32)(ids())
    assert watch.sent == [] and watch.unseen == {"ablate.grouped.default"}


def test_documents_of_an_unknown_number_wait_for_the_gpu_with_varlen():
    model = built(kernel="varlen", attention=WIDE)
    with fake_cuda():
        on_cuda(model, BF16)
        with pytest.raises(DataDependentOutputException):
            model(ids(), documents=ids())


class Planted(nn.Module):
    def __init__(self, mistake):
        super().__init__()
        self.mistake, self.table = mistake, torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mistake(self, x)


@pytest.mark.parametrize(
    "mistake, error",
    [
        (lambda self, x: x * x.sum().item(), DataDependentOutputException),
        (lambda self, x: x if x.any() else -x, DataDependentOutputException),
        (lambda self, x: x[x > 0], Exception),
        (lambda self, x: x + torch.arange(3), AssertionError),
        (lambda self, x: x + torch.zeros(()), AssertionError),
        (lambda self, x: x.cpu(), AssertionError),
        (lambda self, x: x + self.table, Exception),
    ],
    ids=["item", "if", "boolean index", "arange", "scalar", "cpu", "no buffer"],
)
def test_a_planted_mistake_is_seen(mistake, error):
    model = Planted(mistake)
    with fake_cuda(), pytest.raises(error):
        model(torch.ones(3, device="cuda"))


def test_what_the_host_sends_is_counted():
    with fake_cuda() as watch:
        torch.ones(3, device="cuda") + torch.tensor([1.0, 2.0, 3.0], device="cuda")
    assert watch.sent == [[3]]


def test_afterwards_there_is_no_cuda():
    with fake_cuda():
        pass
    assert type(torch.zeros(3)) is torch.Tensor
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.zeros(3, device="cuda")
