"""From a bench file to its cells: every combination resolved to settings, named, and given a hash. Touches no data.

A cell is one fine-tuning that is scored. Its folder's name says what it is, and ends in a hash of the settings that it
is made from (recipe included), those of its pre-training and of the dataset: if one of them changes, so does the cell.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from prevox.benching.cells import Cell, Pretraining, Settings, Trial
from prevox.benching.fair import check_fair, check_unseen
from prevox.config.base import Config, load_recipe, merge, over_recipe, section
from prevox.config.bench import BenchFile, DatasetConfig, MethodConfig, Overrides
from prevox.config.runs import finetune_schema, pretrain_schema
from prevox.errors import ConfigError

OWN = ("store", "out", "resume", "dry_run", "split", "pretrained", "scratch", "encoder", "labels", "label_seed")
KEPT = ("picture_every", "checkpoint_every", "keep_every", "log_every")
UNIMPORTANT = ("device", "reads_ahead", "checkpoint_activations", *KEPT)  # of train: they change no result


def plan(bench: BenchFile) -> list[Cell]:
    """All cells in the order in which they are run: a whole round of arms for the first seed and fold, then the next.

    Raises:
        ConfigError: If a method, network, recipe or setting does not exist or fit, or arms would be treated unequally.
    """
    cells: dict[str, Cell] = {}
    finetuned = [name for name, dataset in bench.datasets.items() if dataset.role == "finetune"]
    folds = [None] if bench.folds is None else list(range(bench.folds))
    for seed, fold, dataset, labels in product(bench.seeds, folds, finetuned, bench.labels):
        for point in _points(bench):
            compared = [_cell(bench, dataset, *arm, labels, point, seed, fold) for arm in arms(bench)]
            check_fair([cell for cell in compared if cell.absent is None])
            cells |= {cell.name: cell for cell in compared if cell.name not in cells}
    check_unseen(bench, list(cells.values()))
    names = dict.fromkeys(cell.arm for cell in cells.values())
    if bench.baseline is not None and bench.baseline not in names:
        raise ConfigError(f"baseline: '{bench.baseline}' is no arm; expected one of {', '.join(names)}.")
    return list(cells.values())


def arms(bench: BenchFile) -> list[tuple[str, str]]:
    """Methods with the backbones that they fit."""
    return [(name, on) for name, method in bench.methods.items() for on in method.backbones or bench.backbones]


def trials(bench: BenchFile, cell: Cell) -> list[Trial]:
    """The trials that choose a cell's learning rate; the same for all seeds. Empty where there is nothing to choose."""
    if len(cell.rates) < 2:
        return []
    found = []
    seed = {"seed": bench.seeds[0]}
    for lr in cell.rates:
        train = {key: value for key, value in cell.settings["train"].items() if key != "epochs"}
        length = {**train, **seed, "steps": bench.trial_steps}
        split = {**cell.settings["split"], "inner": True}
        settings = {**cell.settings, "train": length, "split": split, "label_seed": bench.seeds[0]}
        settings["optim"] = {**section(settings, "optim"), "lr": lr}
        words = [*_words(cell), f"lr-{lr:g}"]
        given = {**settings, "train": _important(length)}
        made_of = [_made_of(cell.dataset, bench), cell.pretraining and cell.pretraining.name, cell.labels, given]
        found.append(Trial(_name(words, made_of), cell, lr, settings))
    return found


def dataset_folder(name: str, dataset: DatasetConfig) -> str:
    """Folder of a dataset's catalogue and store."""
    return _name([name], _preparation(dataset))


def _points(bench: BenchFile) -> Iterator[dict[str, tuple[str, Overrides]]]:
    """Every combination of the axes' values: axis → name of the value, and its settings."""
    for values in product(*(axis.items() for axis in bench.vary.values())):
        yield dict(zip(bench.vary, values, strict=True))


def _cell(
    bench: BenchFile,
    dataset: str,
    method_name: str,
    backbone_name: str,
    labels: int | float | str,
    point: Mapping[str, tuple[str, Overrides]],
    seed: int,
    fold: int | None,
) -> Cell:
    method, backbone = bench.methods[method_name], bench.backbones[backbone_name]
    touched = {axis: value for axis, value in point.items() if _touches(bench, axis, method)}
    words = [dataset, method_name, backbone_name, f"labels-{labels}"]
    words += [f"{axis}-{value}" for axis, (value, _) in touched.items()]
    folded = [] if fold is None else [f"fold-{fold}"]
    common: dict[str, Any] = {
        "dataset": dataset,
        "method": method_name,
        "backbone": backbone_name,
        "labels": labels,
        "point": {axis: value for axis, (value, _) in touched.items()},
        "seed": seed,
        "fold": fold,
    }
    absent = method.absent or backbone.absent
    if absent is not None:
        name = _name([*words, *folded, f"seed-{seed}"], absent)
        return Cell(name=name, settings={}, pretraining=None, rates=(), absent=absent, **common)
    own = Overrides(finetune=bench.datasets[dataset].finetune)
    overrides = [backbone, own, method, *(value for _, value in touched.values())]
    pretraining = None
    if method.pretrain is not None:
        pretraining = _pretraining(bench, dataset, method_name, backbone_name, overrides, touched, fold)
    where = f"cell {'.'.join(words)}, finetune"
    settings = _resolved("finetune", [override.finetune for override in overrides], where)
    settings["split"] = _split(bench, dataset, fold)
    settings["train"] = {**section(settings, "train"), "seed": seed}
    settings["label_seed"] = seed
    if pretraining is None:
        settings["encoder"] = backbone.model
        where = f"{where} (encoder: backbones.{backbone_name}.model)"
    rates = method.rates or backbone.rates or bench.rates
    if rates and any("lr" in section(o.finetune, "optim") for o in overrides):
        raise ConfigError(f"{where}: optim.lr is given, and rates {list(rates)} too. Take one out.")
    if len(rates) > 1 and bench.trial_steps is None:
        raise ConfigError(f"{where}: rates {list(rates)} need trial_steps, the length of a trial.")
    if len(rates) == 1:
        settings["optim"] = {**section(settings, "optim"), "lr": rates[0]}
    start = {} if pretraining is None else {"pretrained": "pretrained"}
    network = str(backbone.model.get("name", "vit")) if pretraining is None else "vit"
    checked = finetune_schema(network).parse({**settings, **start, "store": "store", "out": "out"}, where)
    made_of = [_made_of(dataset, bench), pretraining and pretraining.name, labels, _given(checked)]
    made_of += [list(rates), bench.trial_steps, bench.seeds[0]] if len(rates) > 1 else []
    name = _name([*words, *folded, f"seed-{seed}"], made_of)
    return Cell(name=name, settings=settings, pretraining=pretraining, rates=rates, absent=None, **common)


def _pretraining(
    bench: BenchFile,
    dataset: str,
    method: str,
    backbone: str,
    overrides: list[Overrides],
    touched: Mapping[str, tuple[str, Overrides]],
    fold: int | None,
) -> Pretraining:
    given = [override.pretrain_on for override in overrides if override.pretrain_on is not None]
    source = given[-1] if given else bench.pretrain_on or dataset
    changing = [f"{axis}-{value}" for axis, (value, by) in touched.items() if by.pretrain or by.pretrain_on]
    where = f"pre-training {'.'.join([source, method, backbone, *changing])}"
    parts = [override.pretrain or {} for override in overrides]
    settings = _resolved("pretrain", parts, where)
    over: Settings = {}
    for part in parts:
        over = merge(over, section(part, "model"))
    settings["model"] = merge(bench.backbones[backbone].model, over)  # not the recipe's: the one that scratch has
    own = source == dataset  # then the held-out subjects stay unseen
    settings["split"] = _split(bench, source, fold if own else None)
    if own and settings.get("use") == "all":
        raise ConfigError(
            f"{where}: 'use' is all, so it would learn from the images of {dataset} that are held out. Set pretrain: "
            "{use: train}, or pretrain_on: another dataset."
        )
    names = {part: section(settings, part).get("name") for part in ("method", "model")}
    schema = pretrain_schema(**{part: str(name) for part, name in names.items() if name})
    checked = schema.parse({**settings, "store": "store", "out": "out"}, where)
    # named by what it is, not by the arm: arms that fine-tune in different ways share it
    words = [source, *(str(getattr(getattr(checked, part), "name", "")) for part in names), *changing]
    words += [f"fold-{fold}"] if own and fold is not None else []
    return Pretraining(_name(words, [_made_of(source, bench), _given(checked)]), source, settings)


def _resolved(verb: str, parts: list[Settings], where: str) -> Settings:
    """Settings of later parts over earlier ones, over the recipe that the last of them names."""
    over: Settings = {}
    for part in parts:
        over = merge(over_recipe(over, part), part) if over else dict(part)
    taken = sorted(set(over) & set(OWN))
    if taken:
        raise ConfigError(f"{where}: '{taken[0]}' is the bench's own (by dataset, backbone, labels, seeds, folds).")
    recipe = over.pop("recipe", None)
    return over_recipe(load_recipe(verb, str(recipe)), over) if recipe else over


def _split(bench: BenchFile, dataset: str, fold: int | None) -> Settings:
    split = bench.datasets[dataset].split.model_dump(exclude_unset=True)
    if fold is None:
        return split
    if "column" in split:
        raise ConfigError(f"datasets.{dataset}.split: the column '{split['column']}' divides already. Leave out folds.")
    return {key: value for key, value in split.items() if key != "validation"} | {"folds": bench.folds, "fold": fold}


def _touches(bench: BenchFile, axis: str, method: MethodConfig) -> bool:
    """Whether any value of an axis changes a method; from scratch, nothing of a pre-training does."""
    values = bench.vary[axis].values()
    pretrains = method.pretrain is not None
    return any(value.finetune or (pretrains and (value.pretrain or value.pretrain_on)) for value in values)


def _words(cell: Cell) -> list[str]:
    """What a cell is, without its seed."""
    point = [f"{axis}-{value}" for axis, value in cell.point.items()]
    fold = [] if cell.fold is None else [f"fold-{cell.fold}"]
    return [cell.dataset, cell.method, cell.backbone, f"labels-{cell.labels}", *point, *fold]


def _made_of(dataset: str, bench: BenchFile) -> list[Any]:
    return [dataset, _preparation(bench.datasets[dataset])]


def _preparation(dataset: DatasetConfig) -> Settings:
    return dataset.model_dump(mode="json", include={"table", "group", "spacing", "crop"})


def _given(config: Config) -> Settings:
    """What was given, as the schema reads it; without what does not change the result."""
    own = {"store", "out", "pretrained", "recipe", "probe"}
    given = config.model_dump(mode="json", exclude_unset=True, exclude=own)
    given["train"] = _important(given["train"])
    return given


def _important(train: Settings) -> Settings:
    return {key: value for key, value in train.items() if key not in UNIMPORTANT}


def _name(words: list[str], made_of: Any) -> str:
    text = json.dumps(made_of, sort_keys=True, default=str)
    return f"{'.'.join(words)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
