from pathlib import Path

import pytest

from prevox.config.base import recipe_names
from prevox.config.tools import DoctorConfig, ListConfig
from prevox.methods.registry import METHODS
from prevox.models.registry import MODELS
from prevox.verbs.tools import doctor, list_all

pytestmark = pytest.mark.unit


def test_list_names_everything_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    list_all(ListConfig())
    text = capsys.readouterr().out
    for name in (*METHODS, *MODELS, *recipe_names("pretrain"), *recipe_names("finetune"), "msd", "nnunet", "folder"):
        assert name in text


def test_doctor_reports_versions_memory_disk_and_extras(tmp_path: Path) -> None:
    import torch

    facts = doctor(DoctorConfig(folder=tmp_path))
    assert facts["torch"] == torch.__version__
    assert {"python", "system", "cores", "memory", "disk", "GPU", "matrix rate", "extra wandb"} <= facts.keys()
    assert "MISSING" not in facts.values()


def test_doctor_names_a_folder_that_does_not_exist() -> None:
    from prevox.errors import ConfigError

    with pytest.raises(ConfigError, match="/no/such/folder"):
        doctor(DoctorConfig(folder=Path("/no/such/folder")))
