"""Loss by position: what more context is worth, and what becomes of a model beyond the context it was trained with."""

from typing import Any

import torch

from ablate.data import RowSource
from ablate.data.rows import PackedRows
from ablate.model.decoder import Decoder
from ablate.model.loss import token_losses

REACH = 4  # contexts
BINS = 16  # in each
DOCUMENTS = 32  # at most


@torch.inference_mode()
def loss_by_position(model: Decoder, validation: RowSource) -> dict[str, Any] | None:
    """Mean loss in nats of validation tokens between positions `edges[i]` and `edges[i + 1]` of their document.

    Each document longer than the context is read from its beginning, alone, up to four contexts; a model of
    learned positions up to as many as it has learned. A bin that no document reaches ends the list.
    None: nothing to read it from, as in a task, or in a corpus of short documents.
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
