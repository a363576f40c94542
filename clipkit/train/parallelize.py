# SPDX-License-Identifier: Apache-2.0
"""DDP and FSDP2 around a module, and what differs between them: when gradients are synchronised, and their norm."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clipkit.errors import value_error
from clipkit.optim.groups import SCALE_NAMES
from clipkit.train.runtime import Runtime


def wrap(
    module: nn.Module, blocks: Iterable[nn.Module], *, mode: str, runtime: Runtime, low_dtype: torch.dtype | None
) -> nn.Module:
    """Make `module`'s gradients the mean over ranks.

    Args:
        module: on its device already.
        blocks: the submodules that FSDP2 shards one by one; the rest is sharded with the root.
        mode: "ddp" or "fsdp2".
        runtime: without a process group the module comes back as it is.
        low_dtype: what FSDP2 computes in (gradients are reduced in fp32); DDP leaves that to autocast.

    Raises:
        ValueError: fsdp2 without a process group.
    """
    if not runtime.is_distributed:
        if mode == "fsdp2":
            raise value_error(
                "train.parallel",
                got="fsdp2 in a single process",
                want="a process group",
                fix="start with torchrun --nproc-per-node=1 or use ddp",
            )
        return module
    if mode == "fsdp2":
        return _shard(module, blocks, runtime, low_dtype)
    device_ids = [runtime.device] if runtime.device.type == "cuda" else None
    # buffers are made equal once a step by `average_statistics`, as under FSDP2; not by rank 0 before each forward pass
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False)


def _shard(
    module: nn.Module, blocks: Iterable[nn.Module], runtime: Runtime, low_dtype: torch.dtype | None
) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
    policy, root_policy = MixedPrecisionPolicy(), MixedPrecisionPolicy()
    if low_dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=low_dtype, reduce_dtype=torch.float32)
        root_policy = MixedPrecisionPolicy(
            param_dtype=low_dtype, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # FSDP2 refuses 0-D parameters. These stay replicated: a loss gives every rank their whole gradient already.
    scalars = {p for name, p in module.named_parameters() if p.ndim == 0 and name.rpartition(".")[2] in SCALE_NAMES}
    fully_shard(module, mesh=mesh, mp_policy=root_policy, ignored_params=scalars)
    return module


def unwrap(module: nn.Module) -> nn.Module:
    """The module that `wrap` was given."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextlib.contextmanager
def gradient_sync(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Forward and backward of one micro-batch; only the last one of a step communicates gradients."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def replica(module: nn.Module) -> nn.Module:
    """A module to evaluate with: `module` itself, or, where it is sharded, a whole copy on every rank (collective).

    A copy, because ranks evaluate unequal numbers of batches and a sharded forward would wait for all of them.
    """
    state = module.state_dict()
    if not any(isinstance(value, DTensor) for value in state.values()):
        return module
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    config = module.config
    plain: nn.Module = type(module)(copy.deepcopy(config))
    plain.load_state_dict(whole)
    return plain.to(next(iter(whole.values())).device)


@torch.no_grad()
def average_statistics(statistics: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Make BatchNorm's running statistics their mean over ranks, in place, the same bits everywhere. Collective.

    Each rank's are a moving average of what its own batches gave, and that is linear: the mean over ranks is the moving
    average of the batches of all ranks. Done at every step, although training never reads them, so that they do not
    depend on when a checkpoint was written.
    """
    if group is None or not statistics:
        return
    flat = torch.cat([values.flatten() for values in statistics])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    parts = flat.split([values.numel() for values in statistics])
    torch._foreach_copy_(
        list(statistics), [part.view_as(values) for part, values in zip(parts, statistics, strict=True)]
    )


def gradients(parameters: Iterable[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients that exist, as plain tensors: (this rank's shards of sharded ones, replicated ones)."""
    sharded, replicated = [], []
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            sharded.append(gradient.to_local())
        elif gradient is not None:
            replicated.append(gradient)
    return sharded, replicated


@torch.no_grad()
def clip_gradients(
    parameters: Sequence[nn.Parameter], max_norm: float | None, group: dist.ProcessGroup | None
) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm`; returns the norm before that, 0-D.

    Counts each shard once and each replicated parameter once, so DDP, FSDP2 and one process agree.
    """
    sharded, replicated = gradients(parameters)
    squares = torch.zeros((), device=parameters[0].device)
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        # also from a rank that holds no part of any of them: the others wait for it
        squares = squares + torch.nn.utils.get_total_norm(sharded).square()
        dist.all_reduce(squares, group=group)
    if replicated:
        squares = squares + torch.nn.utils.get_total_norm(replicated).square()
    norm = squares.sqrt()
    if max_norm is not None:
        torch._foreach_mul_(sharded + replicated, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
