"""Law 6 for the two kernels on packed sequences; on a CPU a loop stands in for their libraries' functions."""

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from zoo import build, documents_of, gradients, random_tokens, small, twin

from ablate.errors import AblateError
from ablate.model.axes.pattern import PATTERNS
from ablate.model.kernels import KERNELS, Scores
from ablate.model.kernels.varlen import Packed, _has_flash_attn, sequence_bounds
from ablate.model.masks import Layout, document_runs

TOLERANCE = {"rtol": 0, "atol": 1e-5}
ROW = 20
DOCUMENTS = {
    "one document": None,
    "packed": torch.cat([documents_of([5, 1, 9, 5]), documents_of([1, 1, 11, 7])]),
    "unequally packed": torch.cat([documents_of([1] * 20), documents_of([20])]),
    "padded": torch.tensor([[0] * 20, [0] * 13 + [-1] * 7]),
    "ends alike": torch.tensor([[0] * 12 + [7] * 8, [7] * 20]),  # a row begins a document whatever its id
}


# --- stand-ins for the libraries' functions, with their signatures ---------------------------------------------------


def attention(q, k, v, bounds, longest, window, softcap=0.0):
    """One sequence after another; `window` counts keys before and after the query's own, -1 is no limit."""
    before, after = window
    assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(q) == len(k)
    groups, out = q.shape[1] // k.shape[1], []
    for start, end in pairwise(bounds.tolist()):
        assert end - start <= longest
        a, b, c = (t[start:end].transpose(0, 1) for t in (q, k, v))
        scores = a @ b.repeat_interleave(groups, 0).transpose(1, 2) * q.shape[-1] ** -0.5
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(end - start).unsqueeze(1) - torch.arange(end - start)
        hidden = (distance > before if before >= 0 else False) | (-distance > after if after >= 0 else False)
        weights = scores.masked_fill(torch.as_tensor(hidden), float("-inf")).softmax(-1)
        out.append((weights @ c.repeat_interleave(groups, 0)).transpose(0, 1))
    return torch.cat(out)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert query.shape[1] == key.shape[1] and cu_seq_k is cu_seq_q and max_q == max_k
    return attention(query, key, value, cu_seq_q, max_q, window_size)


def torch_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert (enable_gqa or query.shape[1] == key.shape[1]) and cu_seq_k is cu_seq_q and max_q == max_k
    return attention(query, key, value, cu_seq_q, max_q, window_size)


def flash_attn_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    assert dropout_p == 0.0 and cu_seqlens_k is cu_seqlens_q and max_seqlen_q == max_seqlen_k
    return attention(q, k, v, cu_seqlens_q, max_seqlen_q, (window_size[0], 0 if causal else window_size[1]), softcap)


LIBRARIES = {
    "torch 2.11": ("varlen", torch_2_11),
    "torch 2.13": ("varlen", torch_2_13),
    "flash-attn": ("flash", flash_attn_2),
}


@pytest.fixture(params=LIBRARIES)
def kernel(request, monkeypatch):
    """The name of a kernel that computes here."""
    name, function = LIBRARIES[request.param]
    if name == "flash":
        interface = ModuleType("flash_attn.flash_attn_interface")
        interface.flash_attn_varlen_func = function
        monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
        monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", interface)
        monkeypatch.setattr("ablate.model.kernels.varlen.FLASH_ATTN", True)
    else:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", function)
    monkeypatch.setattr(Packed, "missing", lambda self: None)
    monkeypatch.setattr(Packed, "devices", None)
    monkeypatch.setattr(Packed, "dtypes", None)
    return name


# --- what they compute -----------------------------------------------------------------------------------


def check(kernel, pattern, kv_heads, documents, length, softcap=None):
    """Output and gradients of queries, keys and values are the reference's."""
    scores = Scores(pattern, 4, kv_heads, 8, softcap)
    index = torch.arange(length).unsqueeze(0)
    layout = Layout(index, index, square=True)
    if documents is not None:
        run, index = document_runs(documents)
        layout = Layout(index, index, run, run)
    parts = [torch.randn(2, length, heads, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    direction, results = torch.randn(2, length, 4, 8), []
    for each in (KERNELS["reference"], KERNELS[kernel]):
        out = each(*parts, each.make_mask(scores, layout, torch.float32), scores)
        results.append([out, *torch.autograd.grad((out * direction).sum(), parts)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)


BANDS = [{"name": "full"}, *({"name": "local", "window": w} for w in (1, 2, 5, 19, 20, 21, 500))]


@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("node", [*BANDS, {"name": "strided", "stride": 3, "part": "local"}], ids=str)
def test_output_and_gradients_are_the_references(kernel, node, kv_heads, documents):
    check(kernel, PATTERNS.build(node), kv_heads, documents, ROW)


@pytest.mark.parametrize("window", [127, 128, 129, 300])
def test_windows_about_a_block(kernel, window):
    documents = torch.cat([documents_of([200, 129, 1]), documents_of([330])])
    check(kernel, PATTERNS.build({"name": "local", "window": window}), 2, documents, 330)


@pytest.mark.parametrize("length", [1, 2])
def test_short_rows(kernel, length):
    check(kernel, PATTERNS.build({"name": "full"}), 2, None, length)
    check(kernel, PATTERNS.build({"name": "local", "window": 1}), 2, documents_of([1] * length, 2), length)


def test_flash_has_a_soft_cap(kernel):
    if KERNELS[kernel].softcap:
        check(kernel, PATTERNS.build({"name": "local", "window": 5}), 2, DOCUMENTS["packed"], ROW, softcap=0.5)


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("most", [None, 20, 32])
def test_a_model_computes_by_them(kernel, attention, most):
    pattern = {"cycle": ["full", small("pattern", "local")]}
    reference = build(kernel="reference", pattern=pattern, attention=attention)
    other, tokens, documents = twin(reference, kernel=kernel), random_tokens(2, ROW), DOCUMENTS["unequally packed"]
    expected = reference.hidden(tokens, documents=documents)
    torch.testing.assert_close(other.hidden(tokens, documents=documents, max_documents=most), expected, **TOLERANCE)
    expected = gradients(reference, tokens, documents=documents)
    for name, gradient in gradients(other, tokens, documents=documents).items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_torchs_own_function_takes_the_call(kv_heads, window):
    """Forward and backward, on tensors that have shapes alone."""
    pattern = {"name": "full"} if window is None else {"name": "local", "window": window}
    scores, varlen = Scores(PATTERNS.build(pattern), 4, kv_heads, 16), KERNELS["varlen"]
    with FakeTensorMode():
        bounds = torch.zeros(9, dtype=torch.int32)
        parts = [torch.zeros(2, 30, n, 16, dtype=torch.bfloat16, requires_grad=True) for n in (4, kv_heads, kv_heads)]
        out = varlen(*parts, bounds, scores)
        gradients_of = torch.autograd.grad(out.sum(), parts)
    assert [t.shape for t in (out, *gradients_of)] == [t.shape for t in (parts[0], *parts)]


# --- where documents begin ---------------------------------------------------------------------------------


def test_bounds_are_where_runs_and_rows_begin():
    documents = torch.tensor([[1, 1, 2, 2, 2], [2, 2, 2, 2, 2], [1, 2, 1, 3, 3]])
    begins = [0, 2, 5, 10, 11, 12, 13, 15]
    for most, bounds in ((None, begins), (4, begins + [15] * 5), (3, begins + [15] * 2)):
        found = sequence_bounds(documents, most)
        assert found.dtype == torch.int32 and found.tolist() == bounds


def test_more_documents_than_promised_are_an_error():
    documents = documents_of([3, 1, 1], 2)
    assert sequence_bounds(documents, 3).tolist() == [0, 3, 4, 5, 8, 9, 10]
    with pytest.raises(AblateError, match="max_documents"):
        sequence_bounds(documents, 2)


def test_more_documents_than_promised_are_an_error_in_compiled_code():
    """By an assertion on the device, which needs no answer from it."""
    bounds = torch.compile(sequence_bounds, backend="aot_eager", fullgraph=True)
    documents = documents_of([3, 1, 1], 2)
    assert bounds(documents, 3).tolist() == [0, 3, 4, 5, 8, 9, 10]
    with pytest.raises(RuntimeError, match="max_documents"):
        bounds(documents, 2)


def test_compiled_code_counts_the_documents_where_nobody_told_how_many():
    """Around a graph break."""
    documents = documents_of([3, 1, 1], 2)
    assert torch.equal(
        torch.compile(sequence_bounds, backend="eager")(documents, None), sequence_bounds(documents, None)
    )


# --- what is installed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("files", "found"), [(["cute.py"], False), (["__init__.py", "flash_attn_interface.py"], True)])
def test_flash_attn_is_found_by_its_module_and_not_imported(tmp_path, monkeypatch, files, found):
    """Version 4 of the package is a folder of the same name, with other functions."""
    (tmp_path / "flash_attn").mkdir()
    for file in files:
        (tmp_path / "flash_attn" / file).write_text("raise ImportError('it is not to be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert _has_flash_attn() == found


def test_flash_attn_is_not_found_where_it_is_not(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert not _has_flash_attn()
