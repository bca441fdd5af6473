"""Jobs of SLURM: settings and dask-jobqueue's own file arrive in the script; what SLURM refuses is said."""

import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest

from prevox.config.data import DaskConfig
from prevox.data import dask_slurm
from prevox.data.dask_slurm import SlurmJobs, slurm_cluster
from prevox.errors import ConfigError, RunError

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", autouse=True)
def defaults(tmp_path_factory):
    """Those of dask-jobqueue are there before a test sets others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        slurm_cluster(DaskConfig(jobs=1, cores=1, memory="1GB")).close()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Keys go here, and nothing leaves this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with dask.config.set({"jobqueue.slurm.interface": "lo"}):
        yield


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def slurm(monkeypatch, folder: Path, **programs: str) -> None:
    for name, script in {"sbatch": "echo Submitted batch job 17", "scancel": "", **programs}.items():
        program(folder, name, script)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_ctrl_c_is_still_an_interruption():
    code = (  # it is set first, for a shell's background jobs ignore it
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from prevox.config.data import DaskConfig\nfrom prevox.data.dask_slurm import slurm_cluster\n"
        "slurm_cluster(DaskConfig(jobs=1, cores=1, memory='1GB')).close()\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_settings_are_in_the_script():
    config = DaskConfig(jobs=1, cores=8, memory="30GiB", walltime="1-12:00:00", queue="cpu,long", account="lab")
    with slurm_cluster(config) as cluster:
        lines = cluster.job_script().splitlines()
    for line in ("-p cpu,long", "-A lab", "--cpus-per-task=8", "--mem=30G", "-t 1-12:00:00"):
        assert f"#SBATCH {line}" in lines
    call = next(line for line in lines if "dask_worker" in line)
    assert "--nthreads 8 --memory-limit 30.00GiB" in call
    assert "--protocol tls://" in call
    assert "--tls-key" in call


def test_what_is_not_given_comes_from_the_file_of_dask_jobqueue():
    own = {"cores": 4, "memory": "8GiB", "processes": 2, "job-extra-directives": ["--nice=7"], "queue": "slow"}
    with dask.config.set({f"jobqueue.slurm.{name}": value for name, value in own.items()}):  # noqa: SIM117
        with slurm_cluster(DaskConfig(jobs=1, queue="fast")) as cluster:
            script = cluster.job_script()
    for line in ("-p fast", "--cpus-per-task=4", "--mem=8G", "--nice=7"):
        assert f"#SBATCH {line}\n" in script
    assert "--nthreads 2 --memory-limit 4.00GiB --nworkers 2" in script


def test_keys_are_for_the_user_only_and_go(tmp_path):
    with slurm_cluster(DaskConfig(jobs=1, cores=1, memory="1GB")):
        keys = list(tmp_path.glob(".dask-jobqueue*"))
        assert len(keys) == 3
        assert {path.stat().st_mode & 0o077 for path in keys} == {0}
    del keys
    assert not list(tmp_path.glob(".dask-jobqueue*"))


def test_size_of_a_job_must_be_known():
    with pytest.raises(ConfigError, match=r"--dask\.cores and --dask\.memory are needed, or cores and memory in"):
        slurm_cluster(DaskConfig(jobs=1, cores=1))


def test_no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="found no sbatch on this machine"):
        SlurmJobs(DaskConfig(jobs=1, cores=1, memory="1GB"))


def test_refused_jobs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    once = "mkdir once 2>/dev/null && echo 17 && exit\necho 'invalid partition specified: moon' >&2; exit 1"
    slurm(monkeypatch, tmp_path, sbatch=once, scancel=f"echo $1 >> {tmp_path}/gone")
    with pytest.raises(RunError, match=r"SLURM refuses the jobs: .*invalid partition specified: moon"):
        SlurmJobs(DaskConfig(jobs=2, cores=1, memory="1GB"))
    assert (tmp_path / "gone").read_text() == "17\n"  # the one that was taken ends


@pytest.mark.parametrize(
    ("squeue", "alive"),
    [
        ("echo 17", True),
        ("true", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", True),
    ],
)
def test_jobs_that_have_ended_are_not_waited_for(monkeypatch, tmp_path, squeue, alive):
    slurm(
        monkeypatch, tmp_path, squeue=f'echo "$@" > {tmp_path}/asked\n{squeue}', scancel=f"echo $1 >> {tmp_path}/gone"
    )
    with SlurmJobs(DaskConfig(jobs=1, cores=1, memory="1GB")) as jobs:
        jobs.wait()
        assert not (tmp_path / "asked").exists()  # SLURM is not asked at once
        monkeypatch.setattr(dask_slurm, "_LOOK", 0.0)
        time.sleep(0.01)
        if alive:
            jobs.wait()
        else:
            with pytest.raises(RunError, match=r"SLURM jobs 17 have ended and no worker is left"):
                jobs.wait()
    assert "--jobs=17" in (tmp_path / "asked").read_text()
    assert (tmp_path / "gone").read_text() == "17\n"


@pytest.mark.parametrize("squeue", ["sleep 60", None])
def test_a_squeue_that_says_nothing_is_no_reason_to_end(monkeypatch, tmp_path, capsys, squeue):
    slurm(monkeypatch, tmp_path, **({} if squeue is None else {"squeue": f"exec {squeue}"}))
    monkeypatch.setattr(dask_slurm, "_LOOK", 0.0)
    monkeypatch.setattr(dask_slurm, "_ANSWER", 0.5)
    with SlurmJobs(DaskConfig(jobs=1, cores=1, memory="1GB")) as jobs:
        time.sleep(0.01)
        began = time.monotonic()
        jobs.wait()
        assert time.monotonic() - began < 10
    assert "squeue says nothing of the SLURM jobs 17" in capsys.readouterr().out
