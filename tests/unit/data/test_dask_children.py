"""Processes for cases on Dask workers: those that cannot start, are killed while idle, or share a machine's memory."""

import os
import pickle
import signal
import threading
from pathlib import Path

import pytest
from tests.unit.data.dask_cases import here, nothing
from tests.unit.data.test_dask import outcomes, started
from tests.unit.data.test_pack import picture, save
from tests.unit.data.test_runner import work

from prevox.config.data import CatalogueConfig, DaskConfig, PrepareConfig
from prevox.data import dask_worker, prepare, worker
from prevox.data.catalogue import catalogue
from prevox.data.dask_cluster import Cluster, Member
from prevox.data.dask_engine import _Run, sample
from prevox.data.dask_probe import Shared
from prevox.data.dask_worker import Children, NoAnswer, Work, stop
from prevox.data.memory import Budget
from prevox.data.temporary import temporary_path
from prevox.errors import ConfigError, RunError

pytestmark = pytest.mark.unit


class Stillborn(worker.Worker):
    """A process that is killed before it has come up."""

    def __init__(self, function):
        super().__init__(function)
        self._process.kill()
        self._process.join()


def stillborn(monkeypatch, numbers):
    """Those of the processes to come that do not come up."""
    count = iter(range(10**6))
    lock = threading.Lock()

    def start(function):
        with lock:
            return (Stillborn if next(count) in numbers else worker.Worker)(function)

    monkeypatch.setattr(dask_worker, "Worker", start)


def test_a_process_that_dies_while_it_starts_costs_nothing(monkeypatch):
    stillborn(monkeypatch, {0})
    with started(1) as cluster:
        assert dict(outcomes(cluster.scheduler_address, work, ["a", "b"])) == {"a": "a!", "b": "b!"}


def test_a_worker_that_cannot_start_processes_is_not_used(monkeypatch, capsys):
    stillborn(monkeypatch, range(10**6))
    with (
        started(1) as cluster,
        pytest.raises(RunError, match=r"No Dask worker can start a process for cases \(SIGKILL"),
    ):
        outcomes(cluster.scheduler_address, work, ["a", "b", "c"])
    assert "is not used any more: a process for cases cannot start there (SIGKILL)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_process_that_does_not_come_up_is_ended(monkeypatch):
    monkeypatch.setattr(dask_worker, "START", 0.0)
    children = Children(Work("run", nothing, None, ""))
    assert children.answer(1) == NoAnswer("no start", "not up after 0 s")
    children.stop()


def test_an_idle_process_that_was_killed_is_not_charged_to_the_next_case():
    children = Children(Work("run", here, None, "/nowhere"))
    _, process, _ = children.answer(1)
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    assert children.answer(1)[1] != process
    children.stop()


def test_a_case_that_cannot_be_sent_leaves_no_process(monkeypatch):
    children = Children(Work("run", nothing, None, ""))
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        children.answer(threading.Lock())
    assert (children._busy, children._idle) == (set(), {})
    children.stop()


def test_threads_that_start_processes_leave_the_environment_as_it_was(monkeypatch):
    for name in worker._THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    inside, go = threading.Event(), threading.Event()

    def first():
        with worker._single_threaded_children():
            inside.set()
            go.wait(10)

    def second():
        with worker._single_threaded_children():
            assert os.environ["OMP_NUM_THREADS"] == "1"

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()  # it waits
    go.set()
    for thread in threads:
        thread.join(10)
    assert not {*worker._THREAD_VARIABLES} & {*os.environ}


def test_workers_of_one_machine_without_a_limit_share_its_memory(monkeypatch):
    monkeypatch.setattr(dask_worker, "available_memory", lambda: 10 << 30)
    with started(2, memory_limit=None) as cluster:
        members = Cluster(DaskConfig(scheduler=cluster.scheduler_address), Shared([]))
        members.look()
        assert [member.budget.free for member in members.members.values()] == [4 << 30] * 2  # of 8
        members.close()


def test_memory_of_a_case_is_asked_once():
    asked = []
    member = Member("a", "", "a", 2, Budget(1 << 30))

    class Members:
        members = {"a": member}  # noqa: RUF012

    run = _Run(Members(), Work("", nothing, None, ""), [1, 2], 0, str, lambda case: asked.append(case) or 1 << 30)
    assert run._member_for(0, False) is member
    assert [run._member_for(1, False) for _ in range(3)] == [None] * 3  # it waits for the first
    assert asked == [1, 2]


def test_what_stop_raises_stays_with_it():
    stop(b"")
    stop(pickle.dumps(("run", here)))  # which wants an argument


def test_leftovers_are_removed_where_the_caller_means(tmp_path, monkeypatch):
    """A worker stands elsewhere than the command, for which `--out` may be relative."""
    save(tmp_path / "scans" / "x.png", picture(1))
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    seen = []
    real = prepare.open_engine

    def note(config, reads, out, tidy):
        seen.append(tidy)
        return real(config, reads, out, tidy)

    monkeypatch.setattr(prepare, "open_engine", note)
    prepare.prepare(PrepareConfig(catalogue=Path("c.parquet"), out=Path("store"), workers=1))
    left = temporary_path(tmp_path / "store" / "images" / "x")
    left = left.with_name(left.name.replace(f"-{os.getpid()}.", "-4194305."))  # beyond all processes
    left.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    pickle.loads(pickle.dumps(seen[0]))()
    assert not left.exists()


def test_prepare_looks_for_the_scheduler_before_it_makes_a_folder(tmp_path):
    save(tmp_path / "scans" / "x.png", picture(1))
    catalogue(CatalogueConfig(paths=(tmp_path / "scans",), out=tmp_path / "c.parquet"))
    engine = {"engine": "dask", "dask": DaskConfig(scheduler="localhost:8786")}
    with pytest.raises(ConfigError, match=r"found no such file \(is tcp://localhost:8786 meant\?\); expected tcp"):
        prepare.prepare(PrepareConfig(catalogue=tmp_path / "c.parquet", out=tmp_path / "store", **engine))
    assert not (tmp_path / "store").exists()


def test_sample_of_a_series_has_its_files_and_does_not_name_them(tmp_path):
    from prevox.data.readers.dicom import write_series

    files = [tmp_path / f"Doe^Jane-{number}.dcm" for number in range(30)]
    for file in files:
        file.touch()
    listed = tmp_path / "one.series"
    write_series(listed, [(file, None) for file in files], "refuse", "00" * 32)
    found = sample([listed])
    assert found[0] == (listed, str(listed))
    assert [path for path, _ in found[1:]] == files[::3]
    assert {name for _, name in found[1:]} == {f"file that {listed} lists"}
