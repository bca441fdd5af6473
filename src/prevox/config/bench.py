"""Settings of `bench`, and of the file it reads: what is compared, written down before it is run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from tyro.conf import Positional

from prevox.config.base import Config, load_recipe
from prevox.config.data import SplitConfig
from prevox.config.runs import Metric

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Rate = Annotated[float, Field(gt=0)]
Settings = dict[str, Any]  # of `pretrain` or `finetune`, nested as in their recipes


class BenchConfig(Config):
    """Run what a bench file compares: pre-train once, fine-tune many, skip what is done, end in a comparison."""

    file: Positional[str]
    """A shipped bench (`prevox list`) or a YAML file."""
    data: tuple[str, ...] = ()
    """Where the file's datasets lie, as NAME=PATH; the paths of one name are one dataset."""
    out: Path = Path("bench")
    """Folder for everything; what is finished there is not done again."""
    budget: bool = False
    """Print every cell with its state and its estimated time (from a dry run of each kind), and stop."""


class DatasetConfig(Config):
    """A dataset, and how it is catalogued, prepared and divided. Where it lies is given by --data."""

    role: Literal["finetune", "pretrain", "test"] = "finetune"
    """What it is for: fine-tuning and scoring (and pre-training on its training subjects); only pre-training; only
    testing what was fine-tuned elsewhere."""
    table: str | None = None
    """CSV file to join (as `catalogue --table`), relative to the dataset's first path."""
    group: str | None = None
    """Column of the table that says which cases belong to one subject."""
    spacing: Literal["none", "median"] | tuple[Annotated[float, Field(gt=0)], ...] = "none"
    """As `prepare --spacing`."""
    crop: Literal["nonzero", "none"] = "nonzero"
    """As `prepare --crop`."""
    split: SplitConfig = SplitConfig()
    """Which subjects are held out; takes the place of the split in recipes, so that all arms have the same one."""
    finetune: Settings = Field(default={})
    """Settings of `prevox finetune` that all arms have on this dataset, over those of the backbone."""

    @model_validator(mode="after")
    def _one_division(self) -> "DatasetConfig":
        own = {"inner", "folds", "fold"} & self.split.model_fields_set
        if own:
            raise ValueError(f"split: {min(own)} is the bench's own; for a cross-validation give folds beside datasets")
        return self


class Overrides(Config):
    """Settings that something adds."""

    pretrain: Settings | None = None
    """Settings of `prevox pretrain`, with `recipe` to begin with."""
    finetune: Settings = Field(default={})
    """Settings of `prevox finetune`, with `recipe` to begin with."""
    pretrain_on: Name | None = None
    """Dataset to pre-train on; none takes the training subjects of the one that is fine-tuned on."""


class ArmConfig(Overrides):
    """What methods and backbones share."""

    rates: tuple[Rate, ...] = ()
    """Learning rates of fine-tuning to try on an inner split of the training subjects; none takes the recipe's."""
    absent: str | None = None
    """Why it cannot be run: what Prevox lacks. Its cells are planned and named, not run."""


class BackboneConfig(ArmConfig):
    """A network and the settings that all methods on it share."""

    model: Settings = Field(default={})
    """The network as in `pretrain --model`; pre-trained and new networks of a backbone are the same."""


class MethodConfig(ArmConfig):
    """A pre-training method, or training from scratch where `pretrain` is not given."""

    backbones: tuple[Name, ...] | None = None
    """Backbones that it fits; none takes all."""


def _labels(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    if isinstance(value, float) and 0 < value <= 1:
        return value
    if isinstance(value, float) and value > 1:
        raise ValueError("A fraction of the labelled training subjects is at most 1; a number of them is whole")
    raise ValueError("Give 'all', a whole number of labelled subjects (10), or a fraction of them (0.25)")


def _points(vary: Any) -> Any:
    """`pretrain.method.mask_ratio: [0.25, 0.75]` as the two settings it stands for, called mask_ratio."""
    if not isinstance(vary, Mapping):
        return vary
    points: dict[str, Any] = {}
    for axis, values in vary.items():
        name = axis
        if isinstance(values, list | tuple):
            part, *keys = str(axis).split(".")
            if part not in ("pretrain", "finetune") or not keys:
                raise ValueError(
                    f"'{axis}' has a list of values, so it must be a setting such as pretrain.method.mask_ratio or "
                    "finetune.train.steps; else give each value a name and its settings"
                )
            name = keys[-1]
            values = {_word(value): {part: _nested(keys, value)} for value in values}
        if name in points:
            raise ValueError(f"two axes are called '{name}'; name one of them, with named values")
        points[name] = values
    return points


def _nested(keys: list[str], value: Any) -> Any:
    return {keys[0]: _nested(keys[1:], value)} if keys else value


def _word(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


Label = Annotated[int | float | str, BeforeValidator(_labels)]
Value = Annotated[str, BeforeValidator(str), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
Axes = Annotated[dict[Name, Annotated[dict[Value, Overrides], Field(min_length=1)]], BeforeValidator(_points)]


class BenchFile(Config):
    """What is compared: every dataset × method × backbone that fits it × label fraction × setting × fold × seed."""

    datasets: Annotated[dict[Name, DatasetConfig], Field(min_length=1)]
    """By name."""
    methods: Annotated[dict[Name, MethodConfig], Field(min_length=1)]
    """By name."""
    backbones: Annotated[dict[Name, BackboneConfig], Field(min_length=1)]
    """By name."""
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] = ("all",)
    """Labelled training subjects: all, a number, or a fraction; nested for a seed."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Of fine-tuning: initial weights, crops, and which subjects are labelled. Pre-training has its own."""
    vary: Axes = Field(default={})
    """Further axes: a setting with a list of values, or a name with named settings (pretrain, finetune)."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation by subject; none takes the one split of the dataset."""
    test_on: dict[Name, tuple[Name, ...]] = Field(default={})
    """Datasets on which what was fine-tuned on the first is scored too; nothing of them is seen before."""
    pretrain_on: Name | None = None
    """Dataset to pre-train on; none takes the training subjects of the one that is fine-tuned on."""
    rates: tuple[Rate, ...] = ()
    """Learning rates to try, where neither method nor backbone names them."""
    trial_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of a learning-rate trial."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("dice",)
    """What is compared in the end, as `compare --metric`."""
    baseline: str | None = None
    """Arm that the others are compared with; none compares every pair."""

    @model_validator(mode="after")
    def _names_exist(self) -> "BenchFile":
        mentioned: dict[str, list[str | None]] = {
            "test_on": [*self.test_on, *(name for names in self.test_on.values() for name in names)],
            "pretrain_on": [self.pretrain_on],
            **{f"methods.{name}.pretrain_on": [method.pretrain_on] for name, method in self.methods.items()},
            **{f"backbones.{name}.pretrain_on": [backbone.pretrain_on] for name, backbone in self.backbones.items()},
            **{
                f"vary.{axis}.{name}.pretrain_on": [value.pretrain_on]
                for axis, values in self.vary.items()
                for name, value in values.items()
            },
        }
        for key, names in mentioned.items():
            for name in names:
                if name is not None and name not in self.datasets:
                    raise ValueError(f"{key} names '{name}', which is no dataset; known: {', '.join(self.datasets)}")
        for name, method in self.methods.items():
            for backbone in method.backbones or ():
                if backbone not in self.backbones:
                    known = ", ".join(self.backbones)
                    raise ValueError(f"methods.{name} names '{backbone}', which is no backbone; known: {known}")
        if all(dataset.role != "finetune" for dataset in self.datasets.values()):
            raise ValueError("no dataset has the role finetune, so there is nothing to compare")
        for trained, tested in self.test_on.items():
            if self.datasets[trained].role != "finetune":
                raise ValueError(f"test_on: nothing is fine-tuned on '{trained}', whose role is not finetune")
            if trained in tested:
                raise ValueError(f"test_on: '{trained}' is tested on itself; its held-out subjects are scored anyway")
        return self


def read_bench(file: str) -> BenchFile:
    """Read a shipped bench by its name, or a YAML file by its path.

    Raises:
        ConfigError: If there is none, or it is not what it must be; each wrong key is named.
    """
    return BenchFile.parse(load_recipe("bench", file), file)
