"""FlexAttention: any pattern, with a block mask that is made once per batch."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ablate.model.kernels.kernel import Kernel, Place, Scores, register
from ablate.model.masks import Layout, Pattern, dense_mask, sees

BLOCK = 128  # queries, and keys, in a block; a multiple of the kernel's own tiles
_CHUNK = 2**26  # pairs of a query and a key that are tested together


@register("flex")
class Flex(Kernel):
    """torch.nn.attention.flex_attention (Dong et al. 2024). On a CPU it has no gradient, and is not fused."""

    cache = False
    devices = ("cpu", "cuda")
    gradient_devices = ("cuda",)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    head_dims = range(16, 129, 8)

    def _refusal_at(self, place: Place, scores: Scores) -> str | None:
        if place.device == "cuda" and place.dtype == torch.float32 and scores.head_dim > 64:
            return f"takes heads up to 64 wide in float32, not {scores.head_dim}"  # wider ones overflow shared memory
        return super()._refusal_at(place, scores)

    def make_mask(self, scores: Scores, layout: Layout, dtype: torch.dtype) -> tuple[BlockMask, Tensor | None]:
        """The block mask, and the positions `[B or 1, T]` if the scores have a bias."""
        return block_mask(scores.pattern, layout), None if scores.bias is None else _stored(layout.query_position)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[BlockMask, Tensor | None], scores: Scores
    ) -> Tensor:
        blocks, positions = mask
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        on_cpu = q.device.type == "cpu"
        if on_cpu:  # compiled for a CPU, the kernel misreads views
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = (flex_attention if on_cpu or torch.compiler.is_compiling() else _fused())(
            q,
            k,
            v,
            score_mod=score_mod(scores, positions),
            block_mask=blocks,
            enable_gqa=q.shape[1] != k.shape[1],
            kernel_options={"BACKEND": "TRITON"},  # else rows shorter than a block get the kernel for decoding
        )
        return out.transpose(1, 2)


@cache
def _fused() -> Callable:
    """Compiles for each shape and pattern: a study has more of them than torch.compile's own limit of 8."""
    return torch._dynamo.config.patch(recompile_limit=1024)(torch.compile(flex_attention, dynamic=False))


@torch.library.custom_op("ablate::stored", mutates_args=())
def _stored(x: Tensor) -> Tensor:
    """A copy. A mask must read a tensor in memory: the compiler would inline its formula into the kernel, and fail."""
    return x.clone()


@_stored.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def score_mod(scores: Scores, positions: Tensor | None) -> Callable | None:
    """A function that applies the soft-cap and then the position's bias to a scaled score; None if there is neither."""
    softcap, bias = scores.softcap, scores.bias
    if softcap is None and bias is None:
        return None

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if bias is not None:
            row = batch if positions.shape[0] > 1 else 0
            score = score + bias(head, positions[row, query], positions[row, key])
        return score

    return change


def block_mask(pattern: Pattern, layout: Layout, block: int = BLOCK) -> BlockMask:
    """Which blocks of queries and keys hold no allowed pair, some, or only allowed pairs; and the mask in a block."""
    length = layout.query.shape[-1]
    classify = _counted_blocks if pattern.band() is None else _band_blocks
    some, all_ = classify(pattern, layout, block)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~all_),
        *_ordered(all_),
        BLOCK_SIZE=block,
        mask_mod=_mask_mod(pattern, layout),
        seq_lengths=(length, length),
        compute_q_blocks=torch.is_grad_enabled(),
    )


def _mask_mod(pattern: Pattern, layout: Layout) -> Callable:
    def one_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(pattern, query, key)

    if layout.query_document is None:
        return one_document
    place = torch.arange(layout.query.shape[1], device=layout.query.device)
    begin = _stored((place - layout.query).int())  # where in its row the document of each token begins

    def packed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first = begin[batch, query]  # keys of earlier documents get a negative index, so they are not seen
        return sees(pattern, query - first, key - first)

    return packed


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, n, n]` bool -> for each row of blocks the number of True ones, `[B, 1, n]`, and the indices of all blocks,
    True ones first, `[B, 1, n, n]`: int32."""
    blocks = blocks.unsqueeze(1).int()
    return blocks.sum(-1, dtype=torch.int32), blocks.argsort(dim=-1, descending=True, stable=True).int()


def _band_blocks(pattern: Pattern, layout: Layout, block: int) -> tuple[Tensor, Tensor]:
    """Whether some pair in each block is allowed, and whether all are: `[B or 1, n, n]` each.

    A document is a run of tokens, and a band depends on distances only. So for a block of keys before a block of
    queries, the last key and the first query tell whether some pair is allowed; the first key and the last query
    whether all are.

        keys   |. . . .|. . . k|q . . .|    nearest pair: k, q
               |k . . .|. . . .|. . . q|    furthest pair: k, q
    """
    length, band = layout.query.shape[-1], pattern.band()
    start = torch.arange(0, length, block, device=layout.query.device)
    end = (start + block).clamp(max=length) - 1
    document = torch.zeros_like(layout.query) if layout.query_document is None else layout.query_document
    first, last = document[:, start], document[:, end]

    def within(query: Tensor, key: Tensor) -> Tensor:
        distance = query.unsqueeze(1) - key
        return (distance > 0) & (distance < band)

    some = within(start, end) & (first.unsqueeze(2) == last.unsqueeze(1))
    some = some | torch.eye(len(start), dtype=torch.bool, device=start.device)
    whole = (end - start == block - 1).unsqueeze(1)
    all_ = within(end, start) & within(start, end) & whole & (last.unsqueeze(2) == first.unsqueeze(1))
    return some, all_


def _counted_blocks(pattern: Pattern, layout: Layout, block: int) -> tuple[Tensor, Tensor]:
    """The same for any pattern: its predicate on every pair, a few rows of blocks at a time."""
    rows, length = layout.query.shape
    blocks = math.ceil(length / block)
    step = max(1, _CHUNK // (rows * length * block)) * block
    counts = []
    for queries in (slice(start, start + step) for start in range(0, length, step)):
        document = None if layout.query_document is None else layout.query_document[:, queries]
        mask = dense_mask(pattern, replace(layout, query=layout.query[:, queries], query_document=document))[:, 0]
        mask = torch.nn.functional.pad(mask, (0, blocks * block - length, 0, -mask.shape[1] % block))
        counts.append(mask.unflatten(2, (blocks, block)).unflatten(1, (-1, block)).sum((2, 4), dtype=torch.int32))
    count = torch.cat(counts, dim=1)
    return count > 0, count == block * block
