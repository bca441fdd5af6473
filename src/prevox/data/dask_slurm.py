"""Jobs of SLURM as the workers of a Dask cluster, through dask-jobqueue and its configuration."""

import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any

from prevox.config.data import DaskConfig
from prevox.console import console, warn
from prevox.errors import ConfigError, RunError

_LOOK = 30.0  # seconds between questions to SLURM
_ANSWER = 20.0  # seconds for an answer


class SlurmJobs(AbstractContextManager["SlurmJobs"]):
    """A scheduler in this process, and jobs that are its workers; they end with the context.

    Scheduler and workers trust only who has the key that is made for them: a Dask scheduler runs what it is sent, and
    the network of a cluster is everybody's.

    Args:
        config: Number and size of the jobs.

    Attributes:
        cluster: dask-jobqueue's.

    Raises:
        ConfigError: If neither the settings nor dask-jobqueue's file say how large a job is.
        RunError: If there is no SLURM here, or it refuses a job.
    """

    def __init__(self, config: DaskConfig) -> None:
        if shutil.which("sbatch") is None:
            raise RunError(
                "--dask.jobs: found no sbatch on this machine. Call this where jobs can be submitted, or start a "
                "cluster by yourself and name it with --dask.scheduler."
            )
        self.cluster = slurm_cluster(config)
        self._looked = time.monotonic()
        try:
            for _ in range(config.jobs):
                self.cluster.worker_spec.update(self.cluster.new_worker_spec())
            # as `scale` does, which only writes into the log what sbatch refuses
            self.cluster.sync(self.cluster._correct_state)
        except RuntimeError as error:
            with suppress(AssertionError):  # that a job which never was has not ended
                self.cluster.close()
            raise RunError(f"--dask.jobs: SLURM refuses the jobs: {' '.join(str(error).split())[:500]}") from None
        except BaseException:
            self.cluster.close()
            raise
        console.print(f"waiting for one of {config.jobs} SLURM jobs to start: {', '.join(self._ids())}", soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the jobs and the scheduler."""
        self.cluster.close()

    def wait(self) -> None:
        """Say whether there is anything to wait for; SLURM is asked now and then.

        Raises:
            RunError: If no job waits or runs any more.
        """
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        ids = self._ids()
        command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(ids)}"]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER)
        except (OSError, subprocess.TimeoutExpired) as error:
            warn(f"squeue says nothing of the SLURM jobs {', '.join(ids)} ({type(error).__name__}); waiting on")
            return
        # it forgets jobs some time after their end
        unknown = asked.returncode != 0 and "Invalid job id" in asked.stderr
        if unknown or (asked.returncode == 0 and not asked.stdout.split()):
            raise RunError(
                f"SLURM jobs {', '.join(ids)} have ended and no worker is left: their time was over, or they could not "
                "start (look at their output, slurm-ID.out unless set otherwise). What is finished stays: the same "
                "call goes on where it was."
            )

    def _ids(self) -> list[str]:
        return [str(job.job_id) for job in self.cluster.workers.values()]


@contextmanager
def _own_ctrl_c() -> Iterator[None]:
    """Keep what Ctrl-C does: who imports dask-jobqueue leaves by it with exit code 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def slurm_cluster(config: DaskConfig) -> Any:
    """dask-jobqueue's cluster, without jobs yet.

    Raises:
        ConfigError: If neither the settings nor dask-jobqueue's file say how large a job is.
    """
    import dask

    with _own_ctrl_c():
        from dask_jobqueue import SLURMCluster
    given = {name: getattr(config, name) for name in ("cores", "memory", "walltime", "queue", "account")}
    given = {name: value for name, value in given.items() if value is not None}
    own = "jobqueue.slurm."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names in the user's file that were renamed, and of a busy port
            return SLURMCluster(
                # one worker a job, whose cases have all of its memory: they run in processes of their own anyhow
                processes=dask.config.get(own + "processes", None) or 1,
                # the worker's key, readable for the user only, must be on a disk that all machines see
                shared_temp_directory=dask.config.get(own + "shared-temp-directory", None) or "~",
                scheduler_options={
                    "dashboard": False,
                    "dashboard_address": ":0",
                    **dask.config.get(own + "scheduler-options", {}),
                },
                security=True,
                silence_logs="critical",
                **given,
            )
    except ValueError as error:
        if "cores and memory" not in str(error):
            raise ConfigError(f"--dask.jobs: {' '.join(str(error).split())[:300]}") from None
        raise ConfigError(
            "--dask.jobs: --dask.cores and --dask.memory are needed, or cores and memory in dask-jobqueue's own file "
            "(jobqueue: {slurm: {cores: 8, memory: 32GB}} in ~/.config/dask/jobqueue.yaml)."
        ) from None
