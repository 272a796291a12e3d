"""Loss by position: how much more context helps, also beyond the context that the model was trained with."""

from typing import Any

import torch

from ablate.data import RowSource
from ablate.data.rows import PackedRows
from ablate.model.decoder import Decoder
from ablate.model.loss import token_losses

REACH = 4  # contexts to read of each document, at most
BINS = 16  # in each context
DOCUMENTS = 32  # to read, at most


@torch.inference_mode()
def loss_by_position(model: Decoder, validation: RowSource) -> dict[str, Any] | None:
    """Mean loss of validation tokens, in nats, between positions `edges[i]` and `edges[i + 1]` of their document.

    Reads documents that are at least as long as the context, each by itself, from its beginning up to four contexts or
    the last learned position. The list ends before the first bin that no document fills.

    Returns None for a task, and for a corpus of short documents.
    """
    if not isinstance(validation, PackedRows):
        return None
    context, device = model.config.context, model.embedding.weight.device
    reach = min(REACH * context, model.limit or REACH * context)
    width = max(1, context // BINS)
    starts = torch.as_tensor(validation.starts)
    lengths = starts.diff(append=torch.tensor([len(validation.stream) - 1]))
    chosen = (lengths >= context).nonzero().flatten()[:DOCUMENTS]
    sums = torch.zeros(reach, dtype=torch.float64)
    counts = torch.zeros(reach, dtype=torch.int64)
    for start, length in zip(starts[chosen].tolist(), lengths[chosen].clamp(max=reach).tolist(), strict=True):
        ids = torch.as_tensor(validation.stream[start : start + length + 1].astype("int64"), device=device)
        hidden = model.hidden(ids[None, :-1])
        nats = token_losses(hidden, model.head.weight, ids[None, 1:], model.config.logit_softcap)
        sums[:length] += nats.flatten().double().cpu()
        counts[:length] += 1
    bins = [(s.sum() / n.sum()).item() for s, n in zip(sums.split(width), counts.split(width), strict=True) if n.all()]
    if not bins:
        return None
    edges = [min(i * width, reach) for i in range(len(bins) + 1)]
    return {"context": context, "edges": edges, "loss": bins, "documents": len(chosen)}
