"""Settings of `catalogue` and `prepare` that belong together."""

import pytest

from prevox.config.data import CatalogueConfig, PrepareConfig
from prevox.errors import ConfigError

pytestmark = pytest.mark.unit


def parse(**settings):
    return PrepareConfig.parse({"catalogue": "c.parquet", "out": "store", **settings})


@pytest.mark.parametrize(
    "dask",
    [
        {"scheduler": "tcp://node1:8786"},
        {"scheduler": "tls://[2001:db8::1]:8786"},
        {"scheduler": "folder/scheduler.json"},
        {"jobs": 3},
        {"jobs": 3, "cores": 8, "memory": "32GB", "walltime": "1-12:00:00", "queue": "cpu,long", "account": "lab"},
    ],
)
def test_clusters_that_can_be_meant(dask):
    assert parse(engine="dask", dask=dask).plain()["dask"].items() >= dask.items()
    assert CatalogueConfig.parse({"paths": ["scans"], "engine": "dask", "dask": dask}).engine == "dask"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "dask"}, "engine dask needs --dask.scheduler"),
        ({"dask": {"scheduler": "tcp://a:1"}}, "no effect without --engine dask"),
        ({"engine": "dask", "dask": {"scheduler": "tcp://a:1", "jobs": 2}}, "not both"),
        ({"engine": "dask", "dask": {"cores": 2, "queue": "x"}}, "cores and queue describe jobs"),
        ({"engine": "dask", "dask": {"scheduler": "http://a:1"}}, "'dask.scheduler' is 'http://a:1'. expected tcp://"),
        ({"engine": "dask", "dask": {"scheduler": "tcp://a"}}, "'dask.scheduler' is 'tcp://a'. expected tcp://"),
        ({"engine": "dask", "dask": {"jobs": 1, "memory": "32"}}, "'dask.memory' is '32'. expected a number"),
        ({"engine": "dask", "dask": {"jobs": 1, "walltime": "soon"}}, "expected a time as SLURM writes it"),
        ({"engine": "dask", "dask": {"jobs": 1, "account": "a\n#SBATCH -x"}}, "expected a name that SLURM knows"),
        ({"engine": "dask", "dask": {"jobs": -1}}, "'dask.jobs' is -1"),
        ({"engine": "dask", "dask": {"worker": 1}}, "unknown key 'dask.worker'"),
    ],
)  # fmt: skip
def test_clusters_that_cannot_be_meant(settings, said):
    with pytest.raises(ConfigError) as error:
        parse(**settings)
    assert said in str(error.value)
