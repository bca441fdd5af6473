"""Cases on a Dask cluster come out as on one machine, whatever happens to its workers."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import distributed
import psutil
import pytest
from tests.unit.data.dask_cases import cluster_dies, here, note_process, nothing
from tests.unit.data.test_pack import picture, save
from tests.unit.data.test_runner import die_once, hang, note, work

from prevox.config.data import CatalogueConfig, DaskConfig, PrepareConfig
from prevox.data import dask_cluster, dask_connect, dask_engine, dask_probe, dask_worker
from prevox.data.catalogue import catalogue
from prevox.data.dask_cluster import Cluster, Member
from prevox.data.dask_engine import DaskEngine, _Run, open_engine, sample
from prevox.data.dask_probe import Shared, problem_of
from prevox.data.dask_worker import Children, Found, NoAnswer, Work, probe, versions
from prevox.data.memory import Budget
from prevox.data.prepare import prepare
from prevox.data.runner import run_cases
from prevox.errors import ConfigError, RunError

pytestmark = pytest.mark.unit


def started(workers=2, threads=1, **settings):
    """A cluster on this machine, by default in this process."""
    quiet = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL, "host": "127.0.0.1", "protocol": "tcp://"}
    settings = {"processes": False, **quiet, **settings}
    return distributed.LocalCluster(n_workers=workers, threads_per_worker=threads, **settings)


@pytest.fixture(scope="module")
def address():
    with started() as cluster:
        yield cluster.scheduler_address


def outcomes(address, function, cases, workers=0, shared=Shared([]), **settings):  # noqa: B008 - it is frozen
    engine = DaskEngine(lambda: Cluster(DaskConfig(scheduler=address), shared))
    try:
        return list(run_cases(function, cases, workers, lambda case: f"case-{case}", engine=engine, **settings))
    finally:
        engine.close()


def intervals(folder):
    ends = [(float(path.read_text()), float(path.with_suffix(".end").read_text())) for path in folder.glob("*.start")]
    return sorted(ends)


def most_at_once(spans):
    return max(sum(start <= time < end for start, end in spans) for time, _ in spans)


def until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_results_failures_and_deaths_are_those_of_one_machine(address):
    cases = ["a", "raise", "data", "die", "b", "unpicklable", "c"]
    found = dict(outcomes(address, work, cases))
    local = dict(run_cases(work, cases, 2, lambda case: f"case-{case}"))
    assert set(found) == set(cases)
    assert [found[case] for case in "abc"] == ["a!", "b!", "c!"]
    for case in ("raise", "data", "die", "unpicklable"):
        assert (found[case].reason, found[case].kind) == (local[case].reason, local[case].kind)
    assert "died twice on it (SIGKILL" in found["die"].reason


def test_a_result_may_be_none_and_cases_none_at_all(address):
    assert outcomes(address, nothing, ["a"]) == [("a", None)]
    assert outcomes("tcp://127.0.0.1:1", nothing, []) == []  # and no cluster is reached for


def test_a_case_whose_process_died_once_is_run_again(address, tmp_path):
    cases = [str(tmp_path / "one"), str(tmp_path / "two")]
    (tmp_path / "two").touch()
    assert dict(outcomes(address, die_once, cases)) == dict.fromkeys(cases, "second try")


def test_a_case_that_hangs_is_stopped_and_named(address):
    began = time.monotonic()
    found = dict(outcomes(address, hang, ["a", "hang", "b"], timeout=3))
    assert time.monotonic() - began < 60
    assert (found["a"], found["b"]) == ("a!", "b!")
    assert found["hang"].reason.startswith("case-hang: not finished after 3 s, stopped")
    assert found["hang"].kind == "TimeoutError"


def test_each_case_runs_in_a_child_where_the_caller_stands_and_children_are_kept(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [outcome for _, outcome in outcomes(address, here, [1, 2, 3, 4])]
    assert {place for place, _, _ in found} == {str(tmp_path / "here")}
    assert {parent for _, _, parent in found} == {os.getpid()}  # whose threads the workers are
    assert len({process for _, process, _ in found} - {os.getpid()}) <= 2


@pytest.mark.parametrize(("workers", "most"), [(0, 2), (1, 1)])
def test_no_more_cases_at_once_than_threads_or_workers(address, tmp_path, workers, most):
    outcomes(address, partial(note, folder=tmp_path), list(range(6)), workers)
    assert len(intervals(tmp_path)) == 6
    assert most_at_once(intervals(tmp_path)) == most


def test_cases_are_handed_out_as_results_are_taken(address, tmp_path):
    engine = DaskEngine(lambda: Cluster(DaskConfig(scheduler=address), Shared([])))
    run = run_cases(partial(note, folder=tmp_path), list(range(100)), 0, str, engine=engine)
    next(run)
    time.sleep(1.5)
    assert len(list(tmp_path.glob("*.start"))) == 2
    run.close()
    engine.close()


@pytest.mark.usefixtures("interruptible")
def test_what_runs_is_ended_with_its_run(address, tmp_path):
    def interrupt():
        until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    shared = Shared([], None, (tmp_path / "tidied").touch)
    with pytest.raises(KeyboardInterrupt):
        outcomes(address, partial(note_process, folder=tmp_path), ["a", "b", "c"], shared=shared)
    until(lambda: not any(psutil.pid_exists(int(path.stem)) for path in tmp_path.glob("*.pid")))
    assert (tmp_path / "tidied").exists()


def test_memory_is_shared_by_the_cases_of_a_worker(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_worker, "available_memory", lambda: 10 << 30)
    with started(1, 2, memory_limit=None) as cluster:
        run = partial(outcomes, cluster.scheduler_address, partial(note, folder=tmp_path), ["a", "b", "c"])
        run(memory=lambda case: 5 << 30)
        spans = intervals(tmp_path)
        assert most_at_once(spans) == 1
        assert "case-b needs about 5.6 GB and all cases together may take 8.6 GB" in capsys.readouterr().out
        run(memory=lambda case: 1 << 30)
    assert most_at_once(intervals(tmp_path)) == 2


def test_memory_limit_of_a_worker_counts():
    with started(1, 1, memory_limit="1GiB") as cluster:
        members = Cluster(DaskConfig(scheduler=cluster.scheduler_address), Shared([]))
        members.look()
        assert [member.budget.free for member in members.members.values()] == [1 << 30]
        members.close()


def test_large_cases_go_where_the_memory_is():
    small, large = (Member(name, "", name, 2, Budget(free << 30)) for name, free in (("small", 4), ("large", 10)))

    class Members:
        members = {"small": small, "large": large}  # noqa: RUF012

    sizes = [8, 3, 20]
    run = _Run(Members(), Work("", nothing, None, ""), sizes, 0, str, lambda size: size << 30)
    assert run._member_for(0, False) is large
    assert run._member_for(2, False) is None  # too large for all: it waits until it can have the largest for itself
    assert run._member_for(1, False) is small
    large.budget.release(0)
    assert run._member_for(2, False) is large


def test_a_worker_that_is_killed_costs_nothing_and_a_case_that_kills_two_is_left_out(tmp_path, capsys):
    cases = ["a", "once", "b", "always", "c"]
    with started(2, 1, processes=True) as cluster:
        found = dict(outcomes(cluster.scheduler_address, partial(cluster_dies, folder=tmp_path), cases))
    assert set(found) == set(cases)
    assert {case: found[case] for case in ("a", "b", "c", "once")} == {c: f"{c}!" for c in ("a", "b", "c", "once")}
    reason = found["always"].reason
    assert reason.startswith("case-always: the worker process died twice on it (the Dask worker tcp://127.0.0.1:")
    assert found["always"].kind == "WorkerDiedError"
    assert "has gone while it had case-once" in capsys.readouterr().out


def test_workers_that_come_late_are_used_and_none_at_all_is_an_error(monkeypatch):
    with started(0) as cluster:
        threading.Timer(1.5, lambda: cluster.scale(1)).start()
        assert outcomes(cluster.scheduler_address, work, ["a"]) == [("a", "a!")]
        monkeypatch.setattr(dask_cluster, "_PATIENCE", 1.0)
        cluster.scale(0)
        with pytest.raises(RunError, match=r"no worker that can be used since 1 s\. Start some with `dask worker`"):
            outcomes(cluster.scheduler_address, work, ["a"])


def test_no_scheduler(monkeypatch, tmp_path):
    monkeypatch.setattr(dask_connect, "CONNECT", 0.5)
    with pytest.raises(RunError, match=r"127\.0\.0\.1:1: no Dask scheduler answers"):
        outcomes("tcp://127.0.0.1:1", work, ["a"])
    with pytest.raises(RunError, match=r"no Dask scheduler answers \(Dask's configuration names no certificates\)"):
        outcomes("tls://127.0.0.1:1", work, ["a"])
    with pytest.raises(ConfigError, match=r"s\.json: found no such file; expected tcp://HOST:PORT"):
        outcomes(str(tmp_path / "s.json"), work, ["a"])
    (tmp_path / "s.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"s\.json: found no file of a Dask scheduler"):
        outcomes(str(tmp_path / "s.json"), work, ["a"])


def test_dask_is_an_extra(monkeypatch):
    monkeypatch.setattr(dask_connect, "find_spec", lambda name: None)
    config = PrepareConfig.parse(
        {"catalogue": "c.parquet", "out": "x", "engine": "dask", "dask": {"scheduler": "tcp://a:1"}}
    )
    with pytest.raises(ConfigError, match=r"pip install 'prevox\[dask\]'"), open_engine(config, []):
        pass


def test_dask_is_not_imported_unless_asked_for():
    code = "import sys, prevox.data.prepare, prevox.data.catalogue; print({'dask', 'distributed'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_other_versions_and_folders_are_refused(address, monkeypatch, tmp_path):
    monkeypatch.setattr(dask_probe, "versions", lambda: versions() | {"numpy": "1.0"})
    with pytest.raises(RunError, match=r"Dask worker tcp.*: found numpy .*; expected 1\.0, as here\. Start `dask wor"):
        outcomes(address, work, ["a"])
    monkeypatch.setattr(dask_probe, "versions", versions)
    (tmp_path / "out").mkdir()
    (tmp_path / "scan.nii").touch()
    assert outcomes(address, work, ["a"], shared=Shared([(tmp_path / "scan.nii", "scan")], tmp_path / "out")) == [
        ("a", "a!")
    ]
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(RunError, match=r"it sees no other. Scans and store must be at the same path"):
        outcomes(address, work, ["a"], shared=Shared([(tmp_path / "other.nii", "other")], tmp_path / "out"))


def test_what_a_worker_says_of_its_folders(tmp_path):
    class Limited:
        class memory_manager:  # noqa: N801
            memory_limit = 1000

    token = tmp_path / "token"
    token.write_text("mine")

    def seen(reads, out, token):
        return pickle.loads(probe(pickle.dumps((reads, out, token)), Limited))

    found = seen([(str(tmp_path), "scans")], str(token), "mine")
    assert (found.limit, found.problems, found.versions) == (1000, [], versions())
    assert seen([(str(tmp_path / "none"), "x")], str(token), "mine").problems == ["no x"]
    assert seen([], str(token), "other").problems == [f"another folder {tmp_path}"]
    assert seen([], str(tmp_path / "none" / "token"), "mine").problems == [f"no folder {tmp_path}/none"]
    assert pickle.loads(probe(b"", Limited)).error == "EOFError"  # no worker's log gets what it was asked
    assert "it sees no a; no b. Scans" in problem_of(Found("", "", 0, None, versions(), ["no a", "no b"]))


def test_a_worker_without_prevox_is_refused(tmp_path):
    (tmp_path / "prevox").mkdir()
    (tmp_path / "prevox" / "__init__.py").write_text("raise ModuleNotFoundError('not this one')\n")
    with started(0) as cluster:
        words = ["worker", cluster.scheduler_address, "--no-dashboard", "--no-nanny", "--nthreads", "1"]
        words += ["--local-directory", tmp_path / "local"]
        command = [sys.executable, "-m", "dask", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        other = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=tmp_path)
        try:
            with pytest.raises(RunError, match=r"cannot run this Prevox \(ModuleNotFoundError\('not this one'\)\)"):
                outcomes(cluster.scheduler_address, work, ["a"])
        finally:
            other.kill()
            other.wait()


def test_idle_processes_are_ended(monkeypatch):
    monkeypatch.setattr(dask_worker, "_IDLE", 0.4)
    children = Children(Work("run", here, None, "/nowhere"))
    _, process, _ = children.answer(1)
    assert children.answer(1)[1] == process  # it is kept
    until(lambda: not psutil.pid_exists(process))
    assert children.answer(1)[1] != process
    children.stop()
    assert children.answer(1) == NoAnswer("gone")


def test_rows_that_one_machine_has_read_hold_and_nothing_to_do_needs_no_cluster(tmp_path):
    save(tmp_path / "scans" / "x.png", picture(1))
    settings = {"paths": (tmp_path / "scans",), "out": tmp_path / "c.parquet"}
    catalogue(CatalogueConfig(**settings))
    whole = (tmp_path / "c.parquet").read_bytes()
    catalogue(CatalogueConfig(**settings, engine="dask", dask=DaskConfig(scheduler="tcp://127.0.0.1:1")))
    assert (tmp_path / "c.parquet").read_bytes() == whole


def test_slices_are_packed_as_on_one_machine(address, tmp_path):
    for number in range(5):
        save(tmp_path / "scans" / f"x_{number}.png", picture(number))
    (tmp_path / "scans" / "x_5.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    engine = {"engine": "dask", "dask": DaskConfig(scheduler=address)}
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet", **engine))
    for name, settings in (("local", {"workers": 1}), ("dask", engine)):
        done = prepare(PrepareConfig(catalogue=tmp_path / "c.parquet", out=tmp_path / name, **settings))
        assert (done.prepared, done.failures) == (5, [])
    local, dask = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("local", "dask")
    )
    assert local == dask


def test_sample_is_of_what_exists(tmp_path):
    paths = [tmp_path / f"{number:03d}" for number in range(100)]
    for path in paths[::2]:
        path.touch()
    assert sample([*paths, tmp_path / ("x" * 5000)]) == [(path, str(path)) for path in paths[::10]]


def test_a_small_catalogue_has_as_many_cases_at_once_as_the_cluster_has_threads(address, tmp_path, monkeypatch):
    for number in range(3):
        save(tmp_path / "scans" / f"x_{number}.png", picture(number))
    limits = []

    class Noted(_Run):
        def __init__(self, *settings):
            super().__init__(*settings)
            limits.append(self._limit)

    monkeypatch.setattr(dask_engine, "_Run", Noted)
    engine = {"engine": "dask", "dask": DaskConfig(scheduler=address)}
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet", **engine))
    assert limits == [3]  # not one by one, as in a process that reads them all


def test_a_scheduler_that_does_not_answer_at_once_is_waited_for_aloud(monkeypatch, capsys):
    monkeypatch.setattr(dask_connect, "CONNECT", 2.0)
    with pytest.raises(RunError, match="no Dask scheduler answers"):
        outcomes("tcp://127.0.0.1:1", work, ["a"])
    assert "waiting for the scheduler at tcp://127.0.0.1:1" in capsys.readouterr().out
