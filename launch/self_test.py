"""Run a tiny program on every rank and check what it computes: the doctor's self-test."""

import sys
from collections.abc import Sequence

import numpy as np

from ark_dist.launch.hooks import install_hooks
from ark_dist.launch.ranks import check_world, find_ranks

COUNT = 1000


def run_self_test(arguments: Sequence[str]) -> None:
    """Add up arrays of all ranks with MPI, and say with which library.

    Raises:
        ArithmeticError: the sum is wrong.
    """
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    ranks = find_ranks()
    install_hooks(ranks, world.Abort)
    check_world(ranks, world.rank, world.size)
    mine = np.full(COUNT, ranks.rank + 1, np.float32)
    total = np.zeros_like(mine)
    world.Allreduce(mine, total)
    expected = ranks.world_size * (ranks.world_size + 1) / 2
    if not np.array_equal(total, np.full_like(total, expected)):
        raise ArithmeticError(f"all-reduce gave {total[0]} to {total[-1]}, not {expected}")
    if ranks.rank == 0:
        sys.stdout.write(MPI.Get_library_version().splitlines()[0].rstrip("\0") + "\n")
