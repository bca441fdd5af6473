import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from prevox.data.progress import rate_of, time_of
from prevox.data.runner import Failure, resolve_workers, run_cases
from prevox.errors import DataError, RunError

pytestmark = pytest.mark.unit


def work(case):
    if case == "raise":
        raise KeyError("no such thing")
    if case == "data":
        raise DataError("scan.nii", found="NaN", expected="numbers")
    if case == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "unpicklable":
        return lambda: None
    return f"{case}!"


def die_once(marker):
    if not os.path.exists(marker):  # noqa: PTH110
        open(marker, "w").close()  # noqa: PTH123
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return "second try"


def hang(case):
    if case == "hang":
        time.sleep(600)
    return f"{case}!"


def note(case, folder):
    (folder / f"{case}.start").write_text(str(time.monotonic()))
    time.sleep(0.3)
    (folder / f"{case}.end").write_text(str(time.monotonic()))


def threads(_):
    return os.environ.get("OPENBLAS_NUM_THREADS")


def test_in_process_returns_results_and_failures_in_order():
    outcomes = list(run_cases(work, ["a", "raise", "data", "b"], 1, str))
    assert [case for case, _ in outcomes] == ["a", "raise", "data", "b"]
    assert outcomes[0][1] == "a!"
    assert outcomes[3][1] == "b!"
    assert outcomes[1][1].reason == "KeyError: 'no such thing'"
    assert outcomes[1][1].kind == "KeyError"
    assert "in work" in outcomes[1][1].traceback
    assert outcomes[2][1].reason == "scan.nii: found NaN; expected numbers."


def test_in_process_is_this_process():
    assert next(run_cases(lambda case: os.getpid(), ["a"], 1, str))[1] == os.getpid()


def test_dying_worker_costs_its_case_only():
    cases = ["a", "die", "raise", "b", "unpicklable", "c"]
    outcomes = dict(run_cases(work, cases, 2, lambda case: f"case-{case}"))
    assert set(outcomes) == set(cases)
    assert [outcomes[case] for case in "abc"] == ["a!", "b!", "c!"]
    assert outcomes["raise"].reason == "KeyError: 'no such thing'"
    assert isinstance(outcomes["unpicklable"], Failure)
    assert "case-die" in outcomes["die"].reason
    assert "died" in outcomes["die"].reason


def test_first_case_that_kills_its_worker_is_no_failure_to_start():
    outcomes = dict(run_cases(work, ["die", "a"], 2, str))
    assert outcomes["a"] == "a!"
    assert "died twice" in outcomes["die"].reason


def test_script_without_main_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from prevox.data.runner import run_cases\nprint(list(run_cases(abs, [1, 2], 2, str)))\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    told = f"prevox.errors.{RunError.__name__}: The worker processes cannot start"
    assert any(line.startswith(told) for line in run.stderr.splitlines())  # a warning of multiprocessing may follow
    assert 'if __name__ == "__main__":' in run.stderr


def test_case_whose_worker_died_once_is_retried(tmp_path):
    cases = [str(tmp_path / "one"), str(tmp_path / "two")]
    (tmp_path / "two").touch()
    assert dict(run_cases(die_once, cases, 2, str)) == dict.fromkeys(cases, "second try")


def test_workers_have_one_thread_each_and_parent_keeps_its_environment(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert [result for _, result in run_cases(threads, [1, 2], 2, str)] == ["1", "1"]
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_no_cases_and_number_of_workers():
    assert list(run_cases(work, [], 4, str)) == []
    assert resolve_workers(3) == 3
    assert resolve_workers(0) >= 1


def test_a_case_that_hangs_is_stopped_and_named():
    began = time.monotonic()
    outcomes = dict(run_cases(hang, ["a", "hang", "b"], 2, lambda case: f"case-{case}", timeout=3))
    assert time.monotonic() - began < 60
    assert (outcomes["a"], outcomes["b"]) == ("a!", "b!")
    assert outcomes["hang"].reason.startswith("case-hang: not finished after 3 s, stopped")
    assert outcomes["hang"].kind == "TimeoutError"


def test_cases_that_do_not_fit_into_memory_together_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("prevox.data.runner.available_memory", lambda: 10 << 30)
    work = partial(note, folder=tmp_path)
    outcomes = dict(run_cases(work, ["a", "b", "c"], 2, str, memory=lambda case: 5 << 30))
    assert outcomes == {"a": None, "b": None, "c": None}
    times = sorted(tuple(float((tmp_path / f"{c}.{end}").read_text()) for end in ("start", "end")) for c in "abc")
    assert times[0][1] <= times[1][0] < times[1][1] <= times[2][0]
    assert "needs about 5.6 GB and all cases together may take 8.6 GB" in capsys.readouterr().out


def test_a_case_beyond_the_memory_runs_alone(monkeypatch):
    monkeypatch.setattr("prevox.data.runner.available_memory", lambda: 1 << 20)
    assert dict(run_cases(hang, ["a", "b"], 2, str, memory=lambda case: 1 << 40)) == {"a": "a!", "b": "b!"}


def test_rate_and_time_are_readable():
    assert [rate_of(1000, 10), rate_of(1, 10), rate_of(1, 3600)] == ["100.0/s", "6.0/min", "1.0/h"]
    assert [time_of(42), time_of(200), time_of(7500)] == ["42 s", "3 min 20 s", "2 h 5 min"]
