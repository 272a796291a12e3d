"""Law 5: cached = uncached, on logits. Law 7 for the size of the cache."""

import pytest
import torch
from zoo import (
    SCALARS,
    build,
    cycles,
    kernels_here,
    label,
    labels,
    models,
    nodes,
    random_tokens,
    singles,
    small,
    visible,
)

from ablate.errors import AblateError
from ablate.model.axes.pattern import PATTERNS
from ablate.model.axes.position import POSITIONS

CONTEXT = SCALARS["context"]
TOLERANCE = {"rtol": 0, "atol": 1e-5}

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def in_chunks(model, tokens, chunks, cache=None) -> torch.Tensor:
    cache = cache or model.new_cache(len(tokens), tokens.shape[1])
    return torch.cat([model(part, cache=cache) for part in tokens.split(chunks, dim=1)], dim=1)


def in_ragged_chunks(model, rows, counts, max_length=CONTEXT) -> list[torch.Tensor]:
    """Feeds `counts[step][row]` tokens of each row at each step, right-padded; returns each row's logits."""
    cache = model.new_cache(len(rows), max_length)
    starts, logits = [0] * len(rows), [[] for _ in rows]
    for step in counts:
        width = max(step)
        tokens = torch.full((len(rows), width), 13)
        documents = torch.full((len(rows), width), -1)
        for r, n in enumerate(step):
            tokens[r, :n] = rows[r][starts[r] : starts[r] + n]
            documents[r, :n] = 0
        out = model(tokens, documents=documents if documents.min() < 0 else None, cache=cache)
        for r, n in enumerate(step):
            logits[r].append(out[r, :n])
            starts[r] += n
    assert cache.length.tolist() == starts
    return [torch.cat(parts) for parts in logits]


def check_rows(model, rows, counts) -> None:
    for row, cached in zip(rows, in_ragged_chunks(model, rows, counts), strict=True):
        torch.testing.assert_close(cached, model(row[: len(cached)].unsqueeze(0))[0], **TOLERANCE)


@pytest.mark.parametrize("row", models(), ids=labels)
def test_token_by_token_up_to_the_context_limit(row):
    model, tokens = build(**row), random_tokens(2, CONTEXT)
    torch.testing.assert_close(in_chunks(model, tokens, 1), model(tokens), **TOLERANCE)


@pytest.mark.parametrize("chunks", [[7, 1, 1, 3, 12, 1, 2, 5], [1, 31], [4, 5, 6, 1, 16], [16, 16], [32]], ids=str)
@pytest.mark.parametrize("row", models(), ids=labels)
def test_in_chunks_of_mixed_size(row, chunks):
    model, tokens = build(**row), random_tokens(2, CONTEXT)
    torch.testing.assert_close(in_chunks(model, tokens, chunks), model(tokens), **TOLERANCE)


@pytest.mark.parametrize("row", models(), ids=labels)
def test_a_ragged_batch_goes_on_token_by_token(row):
    """Prefill of 7, 1, 12 and 4 tokens, right-padded; then each row has the logits that it has alone."""
    check_rows(build(**row), random_tokens(4, CONTEXT), [[7, 1, 12, 4], *[[1] * 4] * 20])


@pytest.mark.parametrize("row", models(), ids=labels)
def test_a_ragged_prefill_in_chunks_with_rows_that_pause(row):
    counts = [[3, 5, 1], [0, 4, 2], [6, 6, 1], [1, 0, 1], [0, 1, 0], [2, 7, 7], [1, 1, 1], [1, 1, 1]]
    check_rows(build(**row), random_tokens(3, CONTEXT), counts)


@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_a_row_may_start_late(pattern):
    check_rows(build(pattern=pattern), random_tokens(2, CONTEXT), [[6, 0], [1, 0], [3, 9], [1, 1], [1, 1]])


@pytest.mark.parametrize("kernel", kernels_here(gradient=False))
@pytest.mark.parametrize("attention", singles("attention"), ids=label)
@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_every_kernel_reads_the_cache(pattern, attention, kernel):
    model, tokens = build(pattern=pattern, attention=attention, kernel=kernel), random_tokens(2, 24)
    whole = model(tokens)
    for chunks in (1, [3, 1, 1, 9, 1, 1, 8]):
        torch.testing.assert_close(in_chunks(model, tokens, chunks), whole, **TOLERANCE)
    check_rows(model, random_tokens(2, 24), [[3, 8], [4, 2], *[[1, 1]] * 6])


@pytest.mark.parametrize("window", [1, 2, 7, 31, 32, 40])
def test_windows_of_any_length(window):
    pattern = small("pattern", "local", window=window)
    model, tokens = build(pattern=pattern), random_tokens(2, CONTEXT)
    for chunks in (1, [5, 1, 1, 20, 1, 1, 3]):
        torch.testing.assert_close(in_chunks(model, tokens, chunks), model(tokens), **TOLERANCE)
    check_rows(model, random_tokens(2, CONTEXT), [[3, 9], [4, 2], *[[1, 1]] * 12])


@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_a_cache_longer_than_the_text_changes_nothing(pattern):
    model, tokens = build(pattern=pattern), random_tokens(2, 14)
    longer = in_chunks(model, tokens, [5, 1, 1, 6, 1], model.new_cache(2, CONTEXT))
    torch.testing.assert_close(longer, model(tokens), **TOLERANCE)


@pytest.mark.parametrize("kernel", kernels_here(gradient=False))
@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_padding_has_no_nans(pattern, kernel):
    """Its logits mean nothing, but a sampler that draws for every row must not fail on them."""
    model, tokens = build(pattern=pattern, kernel=kernel), random_tokens(2, 24)
    cache = model.new_cache(2, 24)
    for counts in ([3, 0], [1, 0], [9, 0], [1, 0], [1, 0], [2, 2], [0, 1], [1, 1]):
        width = max(counts)
        documents = torch.where(torch.arange(width) < torch.tensor(counts).unsqueeze(1), 0, -1)
        logits = model(tokens[:, :width], documents=documents if documents.min() < 0 else None, cache=cache)
        assert logits.isfinite().all(), counts


@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_no_slot_is_written_twice_in_a_pass(pattern, monkeypatch):
    """Which of two writes to one place stays is undefined on an accelerator. The last place is the spare."""
    write, passes = torch.Tensor.index_copy_, []

    def spy(buffer, dim, index, source):
        passes.append(index[index != len(buffer) - 1].tolist())
        return write(buffer, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_copy_", spy)
    in_chunks(build(pattern=pattern), random_tokens(2, CONTEXT), [3, 20, 1, 8])
    assert passes and all(len(set(slots)) == len(slots) for slots in passes)


@pytest.mark.parametrize("name", POSITIONS.names())
def test_given_positions_are_read_with_a_cache_too(name):
    model, tokens = build(position=name), random_tokens(1, 8)
    positions = torch.arange(0, 24, 3).unsqueeze(0)
    cache = model.new_cache(1, 8)
    parts = zip(tokens.split(3, dim=1), positions.split(3, dim=1), strict=True)
    cached = torch.cat([model(t, positions=p, cache=cache) for t, p in parts], dim=1)
    torch.testing.assert_close(cached, model(tokens, positions=positions), **TOLERANCE)


def test_all_zero_documents_are_no_padding():
    model, tokens = build(), random_tokens(2, 9)
    cache = model.new_cache(2, 9)
    torch.testing.assert_close(model(tokens, documents=torch.zeros_like(tokens), cache=cache), model(tokens))
    assert cache.length.tolist() == [9, 9]


@pytest.mark.parametrize("attention", nodes("attention"), ids=label)
@pytest.mark.parametrize("pattern", nodes("pattern"), ids=label)
def test_cache_bytes_are_counted(pattern, attention):
    """2 * sum over layers of batch * kv_heads * head_dim * tokens kept * itemsize."""
    model = build(pattern=pattern, attention=attention, depth=3)
    for batch, max_length in ((1, 1), (3, 4), (2, 5), (1, 32)):
        expected = 0
        for block, layer in zip(model.blocks, model.layers, strict=True):
            keys = block.attention.key.weight.shape[0]  # kv_heads * head_dim
            expected += 2 * batch * keys * layer.pattern.slots(max_length).used(max_length) * 4
        assert model.new_cache(batch, max_length).nbytes == expected
    assert model.to(torch.bfloat16).new_cache(1, 32).nbytes == expected / 2


PARTS = [small("pattern", "strided", part=part) for part in ("local", "stride")]
PARTS += [small("pattern", "fixed", part=part) for part in ("block", "summary")]
PARTS += [small("pattern", "fixed", block=block, summary=summary) for block, summary in ((1, 1), (5, 2), (3, 3))]
PARTS += [small("pattern", "fixed", part="summary", block=3, summary=3)]


@pytest.mark.parametrize("node", [*singles("pattern"), *PARTS], ids=label)
def test_a_layer_keeps_no_more_than_later_queries_see(node):
    """Counted by a double loop over a text that goes on. In a summary layer one slot is for the query's own key."""
    pattern, table = PATTERNS.build(node), visible(PATTERNS.build(node), 48)
    own = 1 if node.get("part") == "summary" else 0
    for length in range(1, 24):
        most = max(len(needed(table, now)) for now in range(length))
        assert pattern.slots(length).used(length) <= most + own, length


@pytest.mark.parametrize("node", [*singles("pattern"), *PARTS], ids=label)
def test_slots_hold_what_they_say(node):
    """Written token by token, as a cache does; whatever a query may see is in its slot when it comes."""
    pattern, length = PATTERNS.build(node), 24
    slots, table = pattern.slots(length), visible(pattern, length)
    size, written = slots.used(length), {}
    for token in range(length):
        written[int(slots.slot(torch.tensor(token)))] = token
        held = slots.held(torch.tensor([token + 1]), size)[0].tolist()
        assert {slot: token for slot, token in enumerate(held) if token >= 0} == written
        assert set(written) == set(range(slots.used(token + 1)))
        assert needed(table, token) <= set(written.values())


def needed(table: list[list[bool]], now: int) -> set[int]:
    """The keys up to `now` that the query at `now`, or a later one, sees."""
    return {key for key in range(now + 1) if any(row[key] for row in table[now:])}


def test_a_local_layer_keeps_its_window():
    model = build(pattern={"cycle": [small("pattern", "full"), small("pattern", "local", window=5)]}, attention="mqa")
    assert model.new_cache(2, 32).nbytes == 2 * 2 * 8 * (32 + 5) * 4
    assert model.new_cache(2, 3).nbytes == 2 * 2 * 8 * (3 + 3) * 4


# --- what a cache refuses ----------------------------------------------------------------------------


def test_an_overfull_cache_is_refused_and_stays_usable():
    model, tokens = build(), random_tokens(1, 10)
    cache = model.new_cache(1, 10)
    model(tokens[:, :8], cache=cache)
    with pytest.raises(AblateError, match=r"10 tokens a row.*new_cache"):
        model(tokens[:, :3], cache=cache)
    torch.testing.assert_close(model(tokens[:, 8:], cache=cache), model(tokens)[:, 8:], **TOLERANCE)
    with pytest.raises(AblateError):
        model(tokens[:, :1], cache=cache)


def test_another_batch_is_refused():
    model = build()
    with pytest.raises(AblateError, match="3 rows of tokens for a cache of 2 rows"):
        model(random_tokens(3, 4), cache=model.new_cache(2, 8))


@pytest.mark.parametrize("documents", [[[0, 0, 1, 1]], [[0, 1, 0, -1]], [[2, 2, 2, 0]]], ids=str)
def test_several_documents_in_a_cache_are_refused(documents):
    model = build()
    with pytest.raises(AblateError, match="one document a row"):
        model(random_tokens(1, 4), documents=torch.tensor(documents), cache=model.new_cache(1, 8))


@pytest.mark.parametrize("documents", [[[-1, 0, 0, 0]], [[0, -1, 0, 0]]], ids=str)
def test_padding_comes_last(documents):
    model = build()
    cache = model.new_cache(1, 8)
    with pytest.raises(AblateError):
        model(random_tokens(1, 4), documents=torch.tensor(documents), cache=cache)
    tokens = random_tokens(1, 4)
    torch.testing.assert_close(model(tokens, cache=cache), model(tokens), **TOLERANCE)  # the cache is still empty


@pytest.mark.parametrize("other", [{"depth": 3}, {"attention": "mqa"}, {"pattern": "local"}], ids=str)
def test_a_cache_of_another_model_is_refused(other):
    with pytest.raises(AblateError, match="the cache is another model's"):
        build()(random_tokens(1, 4), cache=build(**other).new_cache(1, 8))


def test_a_cache_from_before_the_model_changed_its_dtype_is_refused():
    model = build()
    cache = model.new_cache(1, 8)
    with pytest.raises(AblateError, match="dtype"):
        model.double()(random_tokens(1, 4), cache=cache)


@pytest.mark.parametrize("batch, max_length", [(0, 4), (2, 0), (-1, 4), ("a", 4), (2, None), (2, 1.5), (True, 4)])
def test_an_empty_cache_is_refused(batch, max_length):
    with pytest.raises(AblateError, match="at least 1"):
        build().new_cache(batch, max_length)


@pytest.mark.parametrize("name", POSITIONS.names())
def test_positions_with_a_limit_refuse_what_lies_beyond_it(name):
    model = build(position=name)
    cache = model.new_cache(1, CONTEXT + 8)
    tokens = random_tokens(1, CONTEXT + 1)
    model(tokens[:, :CONTEXT], cache=cache)
    if model.limit is None:
        torch.testing.assert_close(model(tokens[:, CONTEXT:], cache=cache), model(tokens)[:, CONTEXT:], **TOLERANCE)
        return
    with pytest.raises(AblateError, match="context"):
        model(tokens[:, CONTEXT:], cache=cache)
    with pytest.raises(AblateError, match="context"):
        model(tokens)


def test_cycles_of_positions_share_the_cache():
    for position in cycles("position"):
        model, tokens = build(position=position), random_tokens(1, 16)
        torch.testing.assert_close(in_chunks(model, tokens, 1), model(tokens), **TOLERANCE)
