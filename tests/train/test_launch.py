# SPDX-License-Identifier: Apache-2.0
"""Who a process is follows from its environment, or is refused."""

from __future__ import annotations

import socket
import subprocess

import pytest

from clipkit.train.runtime import Launch, rendezvous, resolve_launch
from tests.train import tiny

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
}
SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}


def without(env, name):
    return {key: value for key, value in env.items() if key != name}


def test_no_launcher_is_a_single_process():
    assert resolve_launch({}) == Launch("single process")


def test_torchrun():
    assert resolve_launch(TORCHRUN) == Launch("torchrun", 3, 8, 1)


def test_slurm_step():
    assert resolve_launch(SLURM) == Launch("slurm", 1, 2, 0)


def test_slurm_allocation_without_a_step_is_a_single_process():
    assert resolve_launch({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == Launch("single process")


def test_torchrun_inside_a_slurm_step_wins():
    assert resolve_launch({**SLURM, **TORCHRUN}).source == "torchrun"


def test_ranks_set_by_hand_must_agree_with_slurm():
    by_hand = without(TORCHRUN, "TORCHELASTIC_RUN_ID")
    with pytest.raises(ValueError, match=r"3/8, while Slurm's .* say 1/2"):
        resolve_launch({**SLURM, **by_hand})
    agreeing = {**by_hand, "RANK": "1", "WORLD_SIZE": "2"}
    assert resolve_launch({**SLURM, **agreeing}).rank == 1


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_an_environment_is_refused(name):
    with pytest.raises(ValueError, match=f"no {name}"):
        resolve_launch(without(TORCHRUN, name))


def test_impossible_rank_is_refused():
    with pytest.raises(ValueError, match="RANK: got 8"):
        resolve_launch({**TORCHRUN, "RANK": "8"})


def test_mpirun_is_refused_instead_of_training_the_same_run_n_times():
    with pytest.raises(ValueError, match="torchrun"):
        resolve_launch({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"})


def test_slurm_tasks_meet_on_the_first_node_at_a_port_of_the_job():
    launch = resolve_launch(SLURM)
    assert rendezvous(launch, {**SLURM, "SLURM_STEP_NODELIST": "node7"}) == "tcp://node7:15007"
    assert rendezvous(launch, {**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1234"}) == "tcp://head:1234"
    assert rendezvous(resolve_launch(TORCHRUN), TORCHRUN) == "env://"


def test_slurm_tasks_join_without_torchrun(data, tmp_path):
    """Two processes with the variables that srun sets, and nothing else."""
    settings = tiny.settings(data, tmp_path / "run", train__parallel="ddp")
    settings["train"] = {"global_batch": 12, "steps": 3}
    config = tiny.write_config(tmp_path / "config.yaml", settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**tiny.environment(), **SLURM, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            tiny.command(config), env={**env, "SLURM_PROCID": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    messages = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], messages
    assert "rank 0 of 2 (slurm)" in messages[0]
