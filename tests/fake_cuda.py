"""CUDA tensors without a GPU: they have a shape, a type and a device, but no values (torch's FakeTensorMode).

Code that asks for a value (`.item()`, `.tolist()`, `if tensor:`) would make the host wait for a GPU; on fake tensors it
raises DataDependentOutputException. An operation on tensors of two devices raises as well. What happens inside an
operator of our own (torch.library.custom_op) is not seen, so these are noted; nor are backward passes and timings.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = SimpleNamespace(major=8, minor=0, total_memory=80 * 2**30)
CUDA, META = 1, 14  # numbers of c10::DeviceType


aten = torch.ops.aten
COPIES = (aten.to, aten._to_copy)


class Watch(TorchDispatchMode):
    """Fails at the first operation that reads or makes a tensor of the CPU, apart from `torch.tensor([...], device=)`.

    sent: the shapes of these: what the host sends to the device.
    unseen: the operators of our own that were called.
    """

    supports_higher_order_operators = True  # such as flex_attention

    def __init__(self):
        super().__init__()
        self.sent: list[list[int]] = []
        self.unseen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        kind = getattr(function, "overloadpacket", None)
        if kind in (aten.lift_fresh, torch.ops.prim.device):  # how `torch.tensor([...])` begins
            return result
        if kind in COPIES and args[0].device.type == "cpu" and result.device.type == "cuda":
            self.sent.append(list(result.shape))
            return result
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.device.type != "cuda":
                raise AssertionError(f"{function} on a tensor of {tensor.device}, {list(tensor.shape)}")
        if str(function).startswith("ablate."):
            self.unseen.add(str(function))
        return result


@contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Makes all tensors fake, and CUDA a device, until the block ends."""
    with (
        _device_guard(),
        patch("torch.cuda.get_device_properties", lambda *device: GPU),
        patch.object(FakeTensorMode, "avoid_device_init", True),  # the same where there is a GPU: it is not touched
        patch.object(FakeTensor, "data_ptr", lambda tensor: id(tensor)),
        FakeTensorMode(),
        Watch() as watch,
    ):
        yield watch
    torch._dynamo.reset()  # what the compiler found out about fake tensors


@contextmanager
def _device_guard() -> Iterator[None]:
    """Gives CUDA the device guard of meta, which does nothing, in a torch that was built without CUDA.

    A guard makes a device the current one. Indexing asks for one even where the tensor is fake. FakeTensorMode solves
    this itself where torch was built with CUDA.
    """
    try:
        (library,) = (Path(torch.__file__).parent / "lib").glob("libc10.*")
        table = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
        guards = (ctypes.c_void_p * (META + 1)).in_dll(ctypes.CDLL(str(library)), table)
    except ValueError:
        pytest.skip("this build of torch does not show its device guards")
    before = guards[CUDA]
    guards[CUDA] = before or guards[META]
    try:
        yield
    finally:
        guards[CUDA] = before


def on_cuda(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Puts the parameters and buffers of a model that was built on the meta device on fake CUDA.

    Not `model.to("cuda")`: torch cannot exchange the memory of a parameter while tensors are fake.
    """
    moved = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in moved:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    new = torch.empty(tensor.shape, dtype=kind, device="cuda")
                    moved[tensor] = nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new
                tensors[name] = moved[tensor]
    return model
