"""FSDP: each rank holds a share of every weight, of its gradient and of its moments (Zhao et al. 2023).

A block's weights are gathered only while the block computes. Checkpoints and the run folder hold whole tensors, like
those of a single process.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ablate.model.decoder import Decoder


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over `count` ranks, with checkpoints that any number of processes can resume.

    Optimiser states are saved and loaded by the optimiser's own numbers, which go group by group. Lightning numbers
    states in the order of the model's parameters, which would give a weight the moments of another one.
    """

    lightning_restore_optimizer = True

    def __init__(self, count: int):
        super().__init__(data_parallel_size=count, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.whole(self.model.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self.whole(optimizer.state_dict())

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` with every sharded tensor gathered on the CPU of rank 0; on other ranks these are None.

        All ranks must call this.
        """

        def gather(value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            tensor = value.full_tensor()
            return tensor.cpu() if self.is_global_zero else None

        return tree_map(gather, dict(state))

    def whole_decoder(self, decoder: Decoder) -> Decoder | None:
        """An unsharded copy of `decoder` on rank 0, None on the others; all ranks must call this."""
        state = self.whole(decoder.state_dict())
        if not self.is_global_zero:
            return None
        copy = self.precision_plugin.convert_module(Decoder(decoder.config))
        copy.load_state_dict(state)
        return copy

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # Mapped, so that the ranks of a machine share the memory. Lightning does not pass weights_only=True on to here.
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own = self.model.state_dict()
        state = {name: _share(tensor, own.get(name)) for name, tensor in checkpoint["state_dict"].items()}
        self.model.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {name: _share(value, parameters[number]) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def shard(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Shards the parameters, which must be equal on all ranks, over the one-dimensional `mesh`."""
    if isinstance(decoder, FSDPModule):
        return
    for block in decoder.blocks:
        fully_shard(block, mesh=mesh)
    # Embedding, last norm and head stay gathered until the backward pass ends: the loss reads the head.
    fully_shard(decoder, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(decoder, "hidden")


def _share(value: Any, like: Tensor | None) -> Any:
    """This rank's share of `value` if `like` is sharded and of the same shape, else `value`. Does not communicate."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
