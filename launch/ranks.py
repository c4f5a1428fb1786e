"""Find out from the environment which rank this process is, and refuse ranks that can't be."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ark_dist.core.errors import ConfigError
from ark_dist.core.settings import LaunchVariables, read_launch_variables

LOGGER = logging.getLogger("ark_dist")
# Launchers whose process that starts ranks stays alive as long as they do, in one thread.
LASTING_PARENTS = ("mpich", "pmix", "openmpi", "ark-dist")
WAY_OUT = "start ranks with mpirun, srun or `ark-dist run`"


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is.

    Attributes:
        rank: its number, from 0.
        world_size: how many processes run together.
        local_rank: its number among those of its host; `rank` where the launcher does not say.
        local_size: how many run on its host; `world_size` where the launcher does not say.
        launcher: who started it: a name of LAUNCHERS in core/settings.py, or "none".
        source: the variable that the rank comes from, or "".
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    launcher: str
    source: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What one process says it is, for `check_claims`."""

    ranks: Ranks
    host: str
    pid: int


ALONE = Ranks(0, 1, 0, 1, "none", "")


def find_ranks(environ: Mapping[str, str] | None = None) -> Ranks:
    """Read which rank this process is; alone, it is rank 0 of 1.

    The first launcher that says both rank and number of ranks is believed, in the order of
    LAUNCHERS; where others disagree, rank 0 logs one warning.

    Raises:
        ConfigError: the numbers can't be, or one of the two is missing.
    """
    said = read_launch_variables(environ)
    usable = [v for v in said if v.is_job]
    whole = [v for v in usable if v.rank is not None and v.size is not None]
    if not whole:
        for variables in usable:
            _check_incomplete(variables)
        return ALONE
    ranks = _ranks(whole[0])
    others = [text for v in said if (text := _disagreement(ranks, v))]
    if others and ranks.rank == 0:
        LOGGER.warning(
            "this process is rank %d of %d by %s; %s: not used, as the first launcher of "
            "docs/launching.md counts",
            *(ranks.rank, ranks.world_size, ranks.source, ", ".join(others)),
        )
    return ranks


def check_world(ranks: Ranks, rank: int, size: int) -> None:
    """Compare with what MPI says, once it is up.

    Raises:
        ConfigError: MPI knows other numbers: it was not started by the launcher that set them.
    """
    if (ranks.rank, ranks.world_size) != (rank, size):
        raise ConfigError(
            f"this process is rank {ranks.rank} of {ranks.world_size} by "
            f"{ranks.source or 'default'}, but MPI started it as rank {rank} of {size}; {WAY_OUT}, "
            "and with the mpirun of the MPI library that mpi4py uses"
        )


def check_claims(claims: Sequence[Claim]) -> None:
    """Check that processes which met are ranks 0 to N - 1, each once.

    Raises:
        ConfigError: two are the same rank, one is missing, or they disagree on how many they are.
    """
    seen: dict[int, Claim] = {}
    for claim in claims:
        rank, size = claim.ranks.rank, claim.ranks.world_size
        if size != len(claims):
            raise ConfigError(
                f"{_who(claim)} was told that there are {size} ranks, but {len(claims)} met; "
                f"{WAY_OUT}"
            )
        if rank in seen:
            raise ConfigError(
                f"{_who(seen[rank])} and {_who(claim)} are both rank {rank}, by "
                f"{claim.ranks.source}; each process needs a rank of its own: {WAY_OUT}"
            )
        seen[rank] = claim


def _who(claim: Claim) -> str:
    return f"process {claim.pid} on {claim.host} (rank {claim.ranks.rank})"


def _check_incomplete(variables: LaunchVariables) -> None:
    """Raise unless what is there means one process."""
    if variables.rank is None and _number(variables.size_name, variables.size, 1) > 1:
        raise ConfigError(
            f"{variables.size_name} is {variables.size}, but {variables.rank_name} is missing, so "
            f"this process does not know its rank; {WAY_OUT}, or unset {variables.size_name}"
        )
    if variables.size is None:
        raise ConfigError(
            f"{variables.rank_name} is {variables.rank}, but {variables.size_name} is missing, so "
            f"this process does not know how many ranks there are; {WAY_OUT}, or unset "
            f"{variables.rank_name}"
        )


def _ranks(variables: LaunchVariables) -> Ranks:
    world_size = _number(variables.size_name, variables.size, 1)
    rank = _number(variables.rank_name, variables.rank, 0)
    if rank >= world_size:
        raise ConfigError(
            f"{variables.rank_name} is {rank}, but {variables.size_name} is {world_size}: ranks "
            f"are 0 to {world_size - 1}; {WAY_OUT}"
        )
    local_rank, local_size = rank, world_size
    if variables.local_rank is not None:
        local_rank = _number("the rank within the host", variables.local_rank, 0)
    if variables.local_size is not None:
        local_size = _number("the number of ranks of the host", variables.local_size, 1)
    return Ranks(
        rank,
        world_size,
        local_rank,
        max(local_size, local_rank + 1),
        variables.launcher,
        variables.rank_name,
    )


def _disagreement(ranks: Ranks, variables: LaunchVariables) -> str:
    """What other variables say, if it is not the same."""
    is_same_rank = variables.rank is None or variables.rank == str(ranks.rank)
    is_same_size = variables.size is None or variables.size == str(ranks.world_size)
    if is_same_rank and is_same_size:
        return ""
    return " and ".join(
        f"{name}={value}"
        for name, value in (
            (variables.rank_name, variables.rank),
            (variables.size_name, variables.size),
        )
        if value is not None
    )


def _number(name: str, text: str | None, least: int) -> int:
    if text is None or not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ConfigError(f"{name} is {text!r}; it must be a whole number, {least} or more")
    return int(text)
