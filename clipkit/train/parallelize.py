# SPDX-License-Identifier: Apache-2.0
"""DDP, FSDP2 and HSDP around a module, and what differs between them: when gradients are synchronised, their norm."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clipkit.errors import value_error
from clipkit.optim.groups import SCALE_NAMES
from clipkit.optim.shards import shard_dims
from clipkit.train.runtime import Runtime

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def wrap(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    *,
    mode: str,
    runtime: Runtime,
    low_dtype: torch.dtype | None,
    shards: int | None = None,
) -> nn.Module:
    """Make `module`'s gradients the mean over ranks.

    Args:
        module: on its device already.
        blocks: the submodules that FSDP2 shards one by one; the rest is sharded with the root.
        mode: "ddp", "zero1" (the same for the module), "fsdp2" or "hsdp".
        runtime: without a process group the module comes back as it is.
        low_dtype: what FSDP2 and HSDP compute in (gradients are reduced in fp32); DDP leaves that to autocast.
        shards: of hsdp, how many ranks hold one copy together: ranks 0 to shards - 1 the first, and so on.

    Raises:
        ValueError: fsdp2 or hsdp without a process group; shards that do not divide the number of ranks.
    """
    sharded = mode in ("fsdp2", "hsdp")
    if not runtime.is_distributed:
        if sharded:
            raise value_error(
                "train.parallel",
                got=f"{mode} in a single process",
                want="a process group",
                fix="start with torchrun --nproc-per-node=1 or use ddp",
            )
        return module
    if sharded:
        return _shard(module, blocks, _mesh(runtime, shards if mode == "hsdp" else None), low_dtype)
    device_ids = [runtime.device] if runtime.device.type == "cuda" else None
    # buffers are made equal once a step by `average_statistics`, as under FSDP2; not by rank 0 before each forward pass
    return DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False)


def _mesh(runtime: Runtime, shards: int | None) -> DeviceMesh:
    """All ranks in a row, over which one copy is cut; or copies x shards, neighbours holding one copy together."""
    from torch.distributed.device_mesh import init_device_mesh

    device, ranks = runtime.device.type, runtime.world_size
    if shards is None:
        return init_device_mesh(device, (ranks,))
    if ranks % shards:
        raise value_error(
            "train.shards",
            got=f"{shards} with {ranks} processes",
            want="a divisor of the number of processes",
            fix="the number of GPUs of a node is usual",
        )
    return init_device_mesh(device, (ranks // shards, shards), mesh_dim_names=("replicate", "shard"))


def _shard(
    module: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, low_dtype: torch.dtype | None
) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

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
def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm`; returns the norm before that, 0-D.

    Counts each shard once and each replicated parameter once, so DDP, FSDP2, HSDP and one process agree. Collective
    over the ranks that hold one copy.
    """
    sharded, replicated = gradients(parameters)
    squares = torch.zeros((), device=parameters[0].device)
    spread = {dims for parameter in parameters for dims in shard_dims(parameter)}
    assert len(spread) <= 1, "wrap cuts everything along one dimension of one mesh"
    for mesh, dim in spread:
        # also from a rank that holds no part of any of them: the others wait for it
        squares = squares + torch.nn.utils.get_total_norm(sharded).square()
        dist.all_reduce(squares, group=mesh.get_group(dim))
    if replicated:
        squares = squares + torch.nn.utils.get_total_norm(replicated).square()
    norm = squares.sqrt()
    if max_norm is not None:
        torch._foreach_mul_(sharded + replicated, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
