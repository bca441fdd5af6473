"""Every bench that ships parses and plans; the counts are those of the papers' tables, counted by hand."""

from collections import Counter

import pytest

from prevox.benching.plan import plan, trials
from prevox.config.base import RECIPES, recipe_names
from prevox.config.bench import read_bench
from prevox.methods.registry import METHODS

pytestmark = pytest.mark.unit

# name -> cells that can be run, cells that cannot, pre-trainings behind them
COUNTS = {
    "hippocampus-cpu": (5 * 2 * 2, 0, 3),
    "gl-mae-table1": (3 * 3 * 3, 3 * 7 * 3, 2),  # unetr, glmae, mae3d × 3 datasets × 3 fractions
    "gl-mae-table2": (3 * 2, 1 * 2, 2),  # × linear, end to end
    "gl-mae-table3": (3, 0, 2),
    "gl-mae-table4": (2 * 2 * 2 * (1 + 4), 0, 2 * 4),  # 2 networks × 2 datasets × 2 protocols × (baseline + 4 losses)
    "selfmedmae-table1": (2, 7, 1),
    "selfmedmae-table2": (0, 9, 0),  # classification: nothing can be run
    "selfmedmae-table3-brats": (1 + 7, 1, 7),
    "selfmedmae-table3-btcv": (6, 0, 6),
    "s3d-table2a": (5 * 4, 0, 4),
    "s3d-table2b": (5 * 6, 0, 6),
    "s3d-table3": (5 * 13, 5, 1),  # 14 rows, of which the first is the dynamic baseline
    "s3d-table4": (11 * 2, 11 * 4, 1),
    "s3d-table5": (10 * 3, 10, 2),
    "s3d-table6": (5 * 2 * 5, 0, 1),
    "s3d-table7": (5 * 5, 0, 5),
    "s3d-table8": (5 * 2, 5 * 3, 1),
    "s3d-table9": (2 * 2, 2 * 5, 1),
    "s3d-table10": (5 * 5, 0, 1),  # the sixth length leaves nothing for the decay
    "s3d-table11": (5 * 2, 5 * 2, 1),
    "s3d-table12": (11 * 2, 11 * 2, 1),
}


def test_every_bench_is_counted() -> None:
    assert set(COUNTS) == set(recipe_names("bench"))


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_it_plans(name: str) -> None:
    cells = plan(read_bench(name))
    runnable = [cell for cell in cells if cell.absent is None]
    pretrainings = {cell.pretraining.name for cell in runnable if cell.pretraining}
    assert (len(runnable), len(cells) - len(runnable), len(pretrainings)) == COUNTS[name]
    assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_its_head_says_what_it_is_and_how_to_run_it(name: str) -> None:
    first, _, rest = (RECIPES / "bench" / f"{name}.yaml").read_text().partition("\n")
    assert first.startswith("# ")
    assert first.endswith(".")
    assert f"#   prevox bench {name} " in rest
    head = " ".join(line.removeprefix("# ") for line in rest[: rest.index("\ndatasets:")].splitlines())
    file = read_bench(name)
    if any(cell.absent for cell in plan(file)):
        assert "annot be stated yet" in head
    for dataset in file.datasets if any(not cell.absent for cell in plan(file)) else ():
        assert f"{dataset}=" in head


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_nothing_that_exists_is_called_absent(name: str) -> None:
    absent = {method for method, config in read_bench(name).methods.items() if config.absent}
    assert not absent & set(METHODS)


def test_the_hippocampus_bench_gives_every_arm_two_trials_for_each_number_of_labels() -> None:
    file = read_bench("hippocampus-cpu")
    cells = plan(file)
    counts = Counter(trial.cell.arm for trial in {t.name: t for cell in cells for t in trials(file, cell)}.values())
    assert counts == dict.fromkeys(("scratch.vit", "mae.vit", "glmae.vit", "scratch-fixed.resenc", "s3d.resenc"), 2 * 2)
    assert {cell.settings["train"]["steps"] for cell in cells} == {400}


def test_the_strategies_of_s3d_are_the_papers_rates() -> None:
    cells = {cell.method: cell.settings for cell in plan(read_bench("s3d-table3")) if cell.dataset == "hippocampus"}
    assert cells["no-fixed"]["optim"]["lr"] == 1e-2
    for method, settings in cells.items():
        if method.startswith(("both", "encoder")):
            transfer, ramps, rate = method.split("-", 2)
            assert settings["transfer"] == ("encoder_decoder" if transfer == "both" else "encoder")
            assert settings["optim"]["lr"] == float(rate)
            assert (settings["decoder_first"] > 0) + (settings["schedule"]["warmup"] > 0) == {
                "none": 0,
                "one": 1,
                "two": 2,
            }[ramps]
            assert settings["decoder_first"] * settings["train"]["steps"] in (0, 12_500)  # methods.md 4.3
