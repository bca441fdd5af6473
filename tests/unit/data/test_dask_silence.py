"""A Dask worker that is there and says nothing delays, and costs nothing else."""

import os
import signal
import threading
import time
from functools import partial

import pytest
from tests.unit.data.dask_cases import stops_its_worker, stops_its_worker_for_long
from tests.unit.data.test_dask import outcomes, started, until
from tests.unit.data.test_runner import work

from prevox.config.data import DaskConfig
from prevox.data import dask_cluster, dask_probe
from prevox.data.dask_cluster import Cluster
from prevox.data.dask_probe import Shared
from prevox.errors import RunError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name, seconds in (("_ANSWER", 2.0), ("_FIRST", 1.0), ("_AGAIN", 1.0)):
        monkeypatch.setattr(dask_probe, name, seconds)
    monkeypatch.setattr(dask_cluster, "_STOP", 2.0)


@pytest.fixture
def cluster():
    with started(2, 1, processes=True) as cluster:
        processes = [worker.pid for worker in cluster.workers.values()]
        try:
            yield cluster
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)


def test_a_worker_that_is_silent_from_the_start_is_used_when_it_speaks_again(cluster, capsys):
    silent = cluster.workers[0]
    os.kill(silent.pid, signal.SIGSTOP)
    began = time.monotonic()
    cases = ["a", "b", "c"]
    assert dict(outcomes(cluster.scheduler_address, work, cases)) == {case: f"{case}!" for case in cases}
    assert time.monotonic() - began < 15
    members = Cluster(DaskConfig(scheduler=cluster.scheduler_address), Shared([]))
    said = f"Dask worker {silent.worker_address} is not used for now: it does not answer (no answer within 2 s)"

    def is_said():
        members.look()
        return said in " ".join(capsys.readouterr().out.split())

    until(is_said)
    assert silent.worker_address not in members.members
    os.kill(silent.pid, signal.SIGCONT)

    def is_back():
        members.look()
        return len(members.members) == 2

    until(is_back)
    members.close()


def test_no_worker_but_silent_ones(cluster, monkeypatch):
    monkeypatch.setattr(dask_cluster, "_PATIENCE", 3.0)
    for worker in cluster.workers.values():
        os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(RunError, match=r"no worker that can be used since 3 s\. 2 do not answer\. Start"):
        outcomes(cluster.scheduler_address, work, ["a"])


def test_a_case_of_a_worker_that_falls_silent_runs_elsewhere(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_cluster, "_GRACE", 5.0)
    cases = ["a", "stop", "b"]
    function = partial(stops_its_worker, folder=tmp_path)
    found = dict(outcomes(cluster.scheduler_address, function, cases, timeout=1))
    assert found == {case: f"{case}!" for case in cases}
    assert int((tmp_path / "stopped").read_text()) in [worker.pid for worker in cluster.workers.values()]
    assert "is given up while it had case-stop" in capsys.readouterr().out


def test_ctrl_c_ends_although_a_worker_is_silent(cluster, interruptible, tmp_path):
    times = []

    def interrupt():
        until((tmp_path / "stopped").exists)
        time.sleep(0.5)
        times.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        outcomes(cluster.scheduler_address, partial(stops_its_worker_for_long, folder=tmp_path), ["a", "b"])
    assert time.monotonic() - times[0] < 8
