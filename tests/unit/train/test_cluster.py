import pytest

from prevox.errors import ConfigError
from prevox.train.cluster import first_host, torchrun_variables

pytestmark = pytest.mark.unit
# as srun --nodes=3 --ntasks=7 sets them for the sixth task
STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07,09-10]",
    "SLURM_JOB_NODELIST": "gpu[05-10]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
    "SLURM_CPUS_PER_TASK": "8",
    "HOME": "/home/someone",
}


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in STEP.items() if name not in names}


def test_a_task_of_srun_gets_torchruns_variables() -> None:
    assert torchrun_variables(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "24569",  # 20000 + (1234567 + 2) mod 10000
        "OMP_NUM_THREADS": "8",
    }


def test_tasks_on_the_last_node_are_counted_there() -> None:
    assert torchrun_variables(STEP | {"SLURM_NODEID": "2"})["LOCAL_WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # a batch script that calls the command without srun: one process in a job of seven tasks
        {name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NODELIST", "SLURM_PROCID")},
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks=1, or the shell of salloc
        STEP | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},  # torchrun within a task of srun
        STEP | {"LOCAL_RANK": "0"},
    ],
)
def test_nothing_is_mapped_for_a_process_by_itself_or_of_torchrun(environment: dict[str, str]) -> None:
    assert torchrun_variables(environment) == {}


def test_what_the_user_has_set_is_kept() -> None:
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "4"}
    assert not torchrun_variables(STEP | own).keys() & own.keys()


def test_threads_are_left_alone_where_slurm_does_not_say() -> None:
    assert "OMP_NUM_THREADS" not in torchrun_variables(without("SLURM_CPUS_PER_TASK"))


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST"])
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        torchrun_variables(without(name))


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("localhost", "localhost"),
        ("node[001-003,007],gpu5", "node001"),
        ("gpu5,node[001-003]", "gpu5"),
        ("node[7,9]", "node7"),
        ("rack[1-2]n[05-06].site", "rack1n05.site"),
        ("a-b-3,a-b-4", "a-b-3"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", "[1-3", ","])
def test_no_host_is_an_error(nodes: str) -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        first_host(nodes)
