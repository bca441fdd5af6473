import pytest

from prevox.config.base import recipe_names
from prevox.config.tools import ListConfig
from prevox.methods.registry import METHODS
from prevox.models.registry import MODELS
from prevox.verbs.tools import list_all

pytestmark = pytest.mark.unit


def test_list_names_everything_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    list_all(ListConfig())
    text = capsys.readouterr().out
    for name in (*METHODS, *MODELS, *recipe_names("pretrain"), *recipe_names("finetune"), "msd", "nnunet", "folder"):
        assert name in text
