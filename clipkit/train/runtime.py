# SPDX-License-Identifier: Apache-2.0
"""Facts about this process that are no configuration: rank, world, device, and the process groups."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from clipkit.errors import value_error

log = logging.getLogger(__name__)

_INIT_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Launch:
    """Who started this process, and which of how many it is."""

    source: str
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


@dataclass(frozen=True)
class Runtime:
    """This process among the others.

    `group` carries features, gradients and losses (None: one process); `control` is a gloo group for a few bytes per
    step from the host, so that agreeing on a signal never waits for a GPU; `saving` is a gloo group of its own for
    asynchronous checkpoints, whose collectives run on another thread.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    source: str = "single process"
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and talks."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are other processes, or a process group around this one alone."""
        return self.group is not None

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def total(self, values: list[int]) -> list[int]:
        """Element-wise sum over ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def most(self, values: list[int]) -> list[int]:
        """Element-wise maximum over ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def share(self, value: object) -> object:
        """Rank 0's value, on every rank. Plain Python values only."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control, device=torch.device("cpu"))
        return box[0]

    def _reduce(self, values: list[int], operation: dist.ReduceOp.RedOpType) -> list[int]:
        if self.control is None:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=operation, group=self.control)
        return [int(value) for value in tensor]


def resolve_launch(env: Mapping[str, str]) -> Launch:
    """Rank and world size from the environment: torchrun's family first, then Slurm's, else one process.

    A torchrun started inside a Slurm step wins, since Slurm then describes the launcher, not this process.

    Raises:
        ValueError: an incomplete or impossible family, RANK/WORLD_SIZE set by hand against Slurm's, or a start
            under mpirun, which would train the same run several times over.
    """
    slurm = _slurm(env)
    if "RANK" in env or "WORLD_SIZE" in env:
        launch = _torchrun(env)
        by_hand = "TORCHELASTIC_RUN_ID" not in env
        if by_hand and slurm and (slurm.rank, slurm.world_size) != (launch.rank, launch.world_size):
            raise value_error(
                "RANK/WORLD_SIZE",
                got=f"{launch.rank}/{launch.world_size}, while Slurm's SLURM_PROCID/"
                f"SLURM_STEP_NUM_TASKS say {slurm.rank}/{slurm.world_size}",
                want="one answer",
                fix="unset RANK and WORLD_SIZE under srun, or start torchrun inside the srun step",
            )
        return launch
    if slurm:
        return slurm
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1 or int(env.get("PMI_SIZE", "1")) > 1:
        raise value_error("launcher", got="mpirun", want="torchrun or srun", fix="start the command with torchrun")
    return Launch("single process")


def _torchrun(env: Mapping[str, str]) -> Launch:
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing:
        raise value_error(
            "environment",
            got=f"no {', '.join(missing)}",
            want="torchrun's variables, all or none",
            fix="start with torchrun, or unset RANK and WORLD_SIZE",
        )
    launch = Launch("torchrun", int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")))
    return _checked(launch, "RANK", "WORLD_SIZE")


def _slurm(env: Mapping[str, str]) -> Launch | None:
    # SLURM_STEP_NUM_TASKS exists inside an srun step only; an interactive allocation or a batch script has
    # SLURM_NTASKS as well, and there this process is the only one.
    if "SLURM_PROCID" not in env or "SLURM_STEP_NUM_TASKS" not in env:
        return None
    launch = Launch(
        "slurm", int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID", "0"))
    )
    return _checked(launch, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


def _checked(launch: Launch, rank_name: str, world_name: str) -> Launch:
    if not 0 <= launch.rank < launch.world_size:
        raise value_error(
            rank_name,
            got=launch.rank,
            want=f"0 <= {rank_name} < {world_name}={launch.world_size}",
            fix="correct the launcher's environment",
        )
    return launch


def rendezvous(launch: Launch, env: Mapping[str, str]) -> str:
    """torch's init_method. Slurm names the nodes but no port: derive one from the job id, equal on every task."""
    if launch.source == "torchrun":
        return "env://"
    host = env.get("MASTER_ADDR")
    if host is None:
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
        host = nodes if "[" not in nodes and "," not in nodes else _first_host(nodes)
    port = env.get("MASTER_PORT") or str(15000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)
    return f"tcp://{host}:{port}"


def _first_host(nodes: str) -> str:
    answer = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return answer.stdout.split()[0]


def _device(launch: Launch) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if launch.local_rank >= torch.cuda.device_count():
        raise value_error(
            "processes per node",
            got=f"local rank {launch.local_rank}",
            want=f"at most {torch.cuda.device_count()}, the number of visible GPUs",
            fix="lower --nproc-per-node, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU",
        )
    return torch.device("cuda", launch.local_rank)


@contextlib.contextmanager
def runtime(env: Mapping[str, str] | None = None) -> Iterator[Runtime]:
    """Join the other processes, if any, and leave them cleanly whatever happens inside.

    An already initialised default process group is used as it is and left alone (Ray, notebooks, tests).
    """
    env = os.environ if env is None else env
    launch = resolve_launch(env)
    device = _device(launch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    owned = not dist.is_initialized()
    if owned and launch.source == "single process":
        yield Runtime(device=device)
        return
    if owned:
        dist.init_process_group(
            # gloo beside NCCL: what ranks agree on before a loss (row counts, settings) then never waits for the device
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=rendezvous(launch, env),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=_INIT_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    try:
        yield Runtime(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_rank=launch.local_rank,
            device=device,
            source=launch.source,
            group=dist.group.WORLD,
            control=dist.new_group(backend="gloo"),
            saving=dist.new_group(backend="gloo"),
        )
    finally:
        if owned:
            dist.destroy_process_group()
