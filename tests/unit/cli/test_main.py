import pytest

from prevox.cli import main as cli
from prevox.cli.main import VERBS, main, settings_from
from prevox.cli.parse import peek
from prevox.config.base import load_recipe

pytestmark = pytest.mark.unit


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    return caught.value.code


def test_help_lists_every_verb(capsys) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb}" in text for verb in VERBS)


def test_no_verb_and_unknown_verb(capsys) -> None:
    assert exit_code() == 2
    assert exit_code("pretrian") == 2
    assert "Did you mean 'pretrain'?" in capsys.readouterr().err


def test_version(capsys) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("prevox 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys) -> None:
    assert exit_code(verb, "--help") == 0
    assert f"prevox {verb}" in capsys.readouterr().out


def test_wrong_flag_names_the_nearest(capsys) -> None:
    assert exit_code("pretrain", "--store", "s", "--out", "o", "--method.mask-ration", "0.5") == 2
    captured = capsys.readouterr()
    assert "--method.mask-ratio" in captured.out + captured.err


def test_wrong_value_is_judged_by_the_schema(capsys) -> None:
    words = ["pretrain", "--store", "s", "--out", "o", "--train.steps", "3", "--method.mask-ratio", "3"]
    assert exit_code(*words) == 2
    assert "'method.mask_ratio' is 3.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "--catalogue", "c", "--out", "s", "--spacing", "0", "1", "1"], "'spacing"),
        (["pretrain", "--store", "s", "--out", "o", "--train.steps", "0"], "'train.steps' is 0"),
        (["pretrain", "--store", "s", "--out", "o", "--train.steps", "1", "--views.size", "8"], "two numbers"),
    ],
)
def test_numbers_out_of_range_meet_the_schemas_words(words: list[str], message: str, capsys) -> None:
    assert exit_code(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "FieldInfo" not in error
    assert "pydantic.dev" not in error


def test_flags_win_over_the_recipe_and_the_recipe_over_the_schema() -> None:
    recipe = load_recipe("pretrain", "selfmedmae-btcv")
    words = ["--store", "s", "--out", "o", "--recipe", "selfmedmae-btcv", "--method.mask-ratio", "0.5"]
    settings = settings_from("pretrain", words)
    assert settings["method"]["mask_ratio"] == 0.5
    assert settings["train"]["epochs"] == recipe["train"]["epochs"]
    assert list(settings["views"]["size"]) == recipe["views"]["size"]


def test_steps_replace_the_epochs_of_a_recipe() -> None:
    words = ["--store", "s", "--out", "o", "--recipe", "selfmedmae-btcv", "--train.steps", "7"]
    settings = settings_from("pretrain", words)
    assert (settings["train"]["steps"], settings["train"]["epochs"]) == (7, None)


def test_optional_parts_stay_none_until_touched() -> None:
    words = ["--store", "s", "--out", "o"]
    assert settings_from("finetune", words)["encoder"] is None
    touched = settings_from("finetune", [*words, "--encoder.size", "T", "--encoder.patch", "8", "8", "8"])
    assert touched["encoder"] == {"size": "T", "patch": (8, 8, 8)}


def test_unknown_method_names_the_known_ones(capsys) -> None:
    assert exit_code("pretrain", "--store", "s", "--out", "o", "--method.name", "maee") == 2
    assert "Did you mean 'mae'?" in capsys.readouterr().err


def test_exit_code_of_the_result_is_the_commands(monkeypatch) -> None:
    class Result:
        exit_code = 1

    monkeypatch.setattr(cli, "run", lambda verb, settings: Result())
    assert exit_code("list") == 1


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--a.b-c", "1"], "1"), (["--a.b_c=2"], "2"), (["--other", "1"], None), (["--a.b-c"], None)],
)
def test_peek(words: list[str], value: str | None) -> None:
    assert peek(words, "a.b_c") == value


def test_python_functions_have_the_verbs_names() -> None:
    import prevox

    assert set(VERBS) <= set(dir(prevox))
    assert prevox.pretrain.__name__ == "pretrain"
    with pytest.raises(AttributeError):
        _ = prevox.no_such_verb
