"""`--engine dask` on a real cluster of two workers: what it writes is what one machine writes, byte for byte."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from prevox.data.phantom import write_phantoms
from tests.e2e.conftest import prevox
from tests.e2e.test_kill_prepare import contents, finished

pytestmark = pytest.mark.e2e
COUNT = 24
TEMPORARY = re.compile(r"\..+-(\d+)\.tmp")


class Cluster:
    """A scheduler and workers of one thread, each in a process group of its own, as if on machines of their own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", self.file)
        for number in range(2):
            place = folder / f"local-{number}"
            self._start("worker", "--scheduler-file", self.file, "--nthreads", "1", "--local-directory", place)

    @property
    def workers(self) -> list[subprocess.Popen[bytes]]:
        return self.processes[1:]

    def _start(self, *words: object) -> None:
        command = [sys.executable, "-m", "dask", *map(str, words), "--no-dashboard"]
        with (self._folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=self._folder)
        self.processes.append(process)
        while not self.file.exists():
            assert process.poll() is None
            time.sleep(0.02)

    def close(self) -> None:
        for process in reversed(self.processes):
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """As a machine that loses its power: the worker, its nanny, and the processes of its cases."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, their catalogue and their store, made on one machine."""
    root = tmp_path_factory.mktemp("local")
    write_phantoms(root / "scans", COUNT, seed=5, shape=(24, 26, 23))
    prevox("catalogue", root / "scans", "--out", root / "c.parquet")
    prevox(*prepare(root), "--out", root / "store")
    return root


def prepare(root: Path) -> list[object]:
    return ["prepare", "--catalogue", root / "c.parquet", "--spacing", 4, 4, 4]


def writers(store: Path, group: int) -> list[int]:
    """Processes of a process group that are writing images."""
    names = [TEMPORARY.fullmatch(path.name) for path in (store / "images").glob(".*.tmp")]
    return [int(name[1]) for name in names if name and group_of(int(name[1])) == group]


def group_of(process: int) -> int:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return 0


def test_catalogue_and_store_are_those_of_one_machine(local: Path, cluster: Cluster, tmp_path: Path) -> None:
    engine = ["--engine", "dask", "--dask.scheduler", cluster.file]
    said = prevox("catalogue", local / "scans", "--out", tmp_path / "c.parquet", *engine)
    assert "reading: 24/24" in said
    assert f"Dask cluster {cluster.file}: " in said
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "c.parquet"), pd.read_parquet(local / "c.parquet"))
    prevox(*prepare(local), "--out", tmp_path / "store", *engine)
    assert contents(tmp_path / "store") == contents(local / "store")


def test_a_worker_killed_midway_costs_nothing(local: Path, cluster: Cluster, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = [*prepare(local), "--out", store, "--engine", "dask", "--dask.scheduler", cluster.file]
    command = [sys.executable, "-m", "prevox", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    victim = cluster.workers[1]
    while finished(store) < COUNT // 4 or not writers(store, victim.pid):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.0005)
    kill(victim)
    done = finished(store)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert done < COUNT
    assert "has gone while it had phantom_" in said
    assert contents(store) == contents(local / "store")
    assert not [path for path in store.rglob("*") if path.name.startswith(".")]


SLURM = {
    "sbatch": 'cp "$1" job.$$.sh; setsid bash job.$$.sh > job.$$.log 2>&1 & echo "Submitted batch job $!"',
    "squeue": 'for word; do case $word in --jobs=*) echo "${word#--jobs=}" | tr , "\\n";; esac; done',
    "scancel": 'echo "$1" >> ended; kill -TERM -- "-$1"',
}


def test_jobs_of_slurm_are_workers(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's programs are scripts that run a job at once on this machine; all else is real, keys and TLS too."""
    for name, script in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "jobqueue.yaml").write_text("jobqueue: {slurm: {interface: lo, job-extra-directives: [--nice=7]}}\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--engine", "dask", "--dask.jobs", 2, "--dask.cores", 1, "--dask.memory", "2GiB", "--dask.queue", "cpu"]
    said = prevox(*prepare(local), "--out", tmp_path / "store", *words)
    assert "Dask cluster of 2 SLURM jobs" in said
    assert contents(tmp_path / "store") == contents(local / "store")
    scripts = [path.read_text() for path in tmp_path.glob("job.*.sh")]
    assert len(scripts) == 2
    for script in scripts:
        assert "\n#SBATCH -p cpu\n" in script
        assert "\n#SBATCH --nice=7\n" in script
        assert "dask_worker tls://127.0.0.1:" in script
    jobs = sorted((tmp_path / "ended").read_text().split())
    assert jobs == sorted(re.findall(r"\d+", re.search(r"jobs to start: (.*)", said)[1]))  # type: ignore[index]
    for job in map(int, jobs):
        while group_of(job):
            time.sleep(0.05)
    assert not list(tmp_path.glob(".dask-jobqueue*"))


def test_a_scheduler_that_is_lost_ends_the_run_and_the_next_goes_on(local: Path, tmp_path: Path) -> None:
    lost = Cluster(tmp_path)
    words = [*prepare(local), "--out", tmp_path / "store"]
    command = [sys.executable, "-m", "prevox", *map(str, words), "--engine", "dask", "--dask.scheduler", str(lost.file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while finished(tmp_path / "store") < COUNT // 4:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        kill(lost.processes[0])
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        lost.close()
    assert process.returncode == 2, said
    assert "cannot be used any more" in said
    assert "Traceback" not in said
    done = finished(tmp_path / "store")
    assert f"{COUNT} images in {local}/c.parquet, {done} already in" in " ".join(prevox(*words).split())
    assert contents(tmp_path / "store") == contents(local / "store")
