"""SLURM's variables as those of torchrun, which accelerate reads; it does not know SLURM's.

Only what `srun` starts as several tasks is mapped, which the variables of the step say and those of the job do not: a
batch script that calls the command without srun, and a shell of salloc, may have SLURM_NTASKS=8 and one process.
"""

import os
import re
from collections.abc import Mapping

from prevox.errors import ConfigError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
PORTS = (20000, 10000)  # first, number: below the range from which systems draw their own


def enter_cluster() -> None:
    """Add torchrun's variables to the environment of this process, where SLURM is what started it."""
    os.environ.update(torchrun_variables(os.environ))


def torchrun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, from SLURM's variables.

    Args:
        environment: Of a process. MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS that are set already are kept.

    Returns:
        The variables to add; none if torchrun's are there, or if the process is not one of several tasks of a step.

    Raises:
        ConfigError: If a variable that srun sets is missing or cannot be read.
    """
    if any(name in environment for name in TORCHRUN) or environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    world, rank = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_PROCID")
    found = {
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(_number(environment, "SLURM_LOCALID")),
        "LOCAL_WORLD_SIZE": str(_tasks_here(environment, world)),
    }
    if "MASTER_ADDR" not in environment:
        found["MASTER_ADDR"] = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if "MASTER_PORT" not in environment:
        found["MASTER_PORT"] = str(_port(environment))
    if "OMP_NUM_THREADS" not in environment and "SLURM_CPUS_PER_TASK" in environment:
        found["OMP_NUM_THREADS"] = environment["SLURM_CPUS_PER_TASK"]  # accelerate would divide the whole node's cores
    return found


def first_host(nodes: str) -> str:
    """The first host of SLURM's compressed list: node001 of `node[001-003,007],gpu5`.

    Raises:
        ConfigError: If there is none.
    """
    entry = re.match(r"(?:[^,\[\]\s]|\[[^\[\]]+\])+", nodes)
    if entry is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST is '{nodes}'; expected hosts. Set MASTER_ADDR to the first task's host."
        )
    return re.sub(r"\[([^\]]+)\]", lambda bracket: re.split("[,-]", bracket[1])[0], entry[0])


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "nothing")
    if not value.isdecimal():
        raise ConfigError(
            f"{name} is {value}; expected a number, as srun sets it. To train in one process, unset "
            "SLURM_STEP_NUM_TASKS."
        )
    return int(value)


def _port(environment: Mapping[str, str]) -> int:
    """The same for all tasks of a step, another for steps of the same job."""
    first, count = PORTS
    step = environment.get("SLURM_STEP_ID", "0")
    return first + (_number(environment, "SLURM_JOB_ID") + (int(step) if step.isdecimal() else 0)) % count


def _tasks_here(environment: Mapping[str, str], world: int) -> int:
    """Tasks on this node, from the likes of 4(x2),3 and the node's number."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else world
