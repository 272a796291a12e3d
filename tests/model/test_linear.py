"""Linear maps: every product gives the same numbers; several maps of one input share one matrix."""

import copy

import pytest
import torch
import torch.nn.functional as F
from zoo import build, random_tokens

from ablate.model import linear as module
from ablate.model.kernels import linear as products
from ablate.model.kernels.linear import linear
from ablate.model.linear import JointInputs


@pytest.fixture(params=[True, False], ids=["parts", "whole"])
def by_parts(request, monkeypatch):
    monkeypatch.setattr(products, "MKL_IS_SLOW", request.param)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (3, 5), (33,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_few_rows(shape, bias, threads, by_parts, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, 16), torch.randn(24, 16)
    offset = torch.randn(24) if bias else None
    with torch.no_grad():
        found = linear(x, weight, offset)
    torch.testing.assert_close(found, F.linear(x, weight, offset), rtol=0, atol=1e-5)
    assert found.is_contiguous()


BF16, FP32 = torch.bfloat16, torch.float32
CHOSEN = {  # (dtype, rows, gradient, compiled) -> the product, on an AMD CPU without bf16 hardware
    (FP32, 4096, True, False): "onednn",
    (BF16, 4096, True, False): "torch",
    (FP32, 4096, False, False): "torch",
    (FP32, 128, False, False): "parts",
    (FP32, 1, False, True): "sums",
    (BF16, 1, False, True): "sums",
    (BF16, 2, False, False): "torch",
    (BF16, 3, False, False): "widened",
}


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_the_product_that_is_chosen_is_told(case, monkeypatch):
    monkeypatch.setattr(products, "MKL_IS_SLOW", True)
    monkeypatch.setattr(products, "HAS_BF16_PRODUCTS", False)
    assert products.choose_product(*case) == CHOSEN[case]


@pytest.mark.parametrize("name", products.PRODUCTS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_product_is_the_same_product(name, bias):
    torch.manual_seed(0)
    x, weight, offset = torch.randn(1, 16), torch.randn(24, 16), torch.randn(24) if bias else None
    with torch.no_grad():
        y = products.PRODUCTS[name](x, weight, offset)
    torch.testing.assert_close(y, F.linear(x, weight, offset), rtol=0, atol=1e-5)


@pytest.mark.parametrize("hardware", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_bf16_products(rows, hardware, monkeypatch):
    monkeypatch.setattr(products, "HAS_BF16_PRODUCTS", hardware)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 16).bfloat16(), torch.randn(24, 16).bfloat16()
    with torch.no_grad():
        found = linear(x, weight, None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), x.float() @ weight.float().t(), rtol=2**-7, atol=1e-3)


def laid(model):
    return [m for m in model.modules() if isinstance(m, JointInputs) and m.joint is not None]


def test_laying_weights_changes_nothing_but_where_they_lie():
    model, tokens = build(depth=2), random_tokens(1, 3)
    before, names = model(tokens).detach(), [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    with torch.inference_mode():
        model.lay_weights()
    assert len(laid(model)) == 4  # attention and SwiGLU of two layers
    assert [name for name, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    attention = model.blocks[0].attention
    size = attention.query.weight.nbytes
    assert attention.key.weight.data_ptr() == attention.query.weight.data_ptr() + size
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-5)
    model(tokens).sum().backward()  # they can still be trained
    assert all(p.grad is not None for p in parameters)


def test_one_product_stands_for_several(monkeypatch):
    model, calls = build(depth=1, dim=32), []
    monkeypatch.setattr(module, "linear", lambda *args: (calls.append(args[1].shape), linear(*args))[1])
    with torch.no_grad():
        model(random_tokens(1, 1))
        assert len(calls) == 8  # q, k, v, out; gate, up, out; head
        model.lay_weights()
        calls.clear()
        model(random_tokens(1, 1))
    assert len(calls) == 5


@pytest.mark.parametrize("change", ["dtype", "data", "one", "load", "copy", "step"])
def test_weights_that_change_are_seen(change):
    model, tokens = build(depth=1), random_tokens(1, 3)
    model.lay_weights()
    other = build(depth=1, seed=5)
    if change == "dtype":
        model.double()
        other.double()
        model.load_state_dict(other.state_dict())
    elif change == "data":
        for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
            parameter.data = new.data.clone()
    elif change == "one":
        model.blocks[0].attention.key.weight.data = other.blocks[0].attention.key.weight.data.clone()
        weights = {**other.state_dict(), "blocks.0.attention.key.weight": model.blocks[0].attention.key.weight.data}
        for name, parameter in model.named_parameters():
            if name != "blocks.0.attention.key.weight":
                parameter.data.copy_(weights[name])
    elif change == "load":
        model.load_state_dict(other.state_dict(), assign=True)
    elif change == "copy":
        model = copy.deepcopy(model)
        model.load_state_dict(other.state_dict())
    else:
        with torch.no_grad():
            for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
                parameter.copy_(new)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), other(tokens), rtol=0, atol=1e-5)
