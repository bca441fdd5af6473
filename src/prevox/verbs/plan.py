"""`prevox plan`: the paper's dynamic baseline, a configuration planned from the catalogue as nnU-Net plans.

Wald et al. (S3D, arXiv:2410.23132) train two networks from scratch beside the pre-trained ones: one with spacing, view
and network of the pre-training, "No (Fixed)", one with those that nnU-Net picks for the data, "No (Dyn.)". All that is
not planned is taken over from the shipped recipes, so that the two can be trained alike.
"""

import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from prevox.config.base import load_recipe, merge, write_yaml
from prevox.config.data import PlanConfig
from prevox.console import console, warn
from prevox.data.catalogue import read_catalogue, wanted
from prevox.data.geometry import canonical_axes
from prevox.data.plan import ANISOTROPY, Fingerprint, Plan, Room, TooSmallError, make_plan
from prevox.errors import ConfigError, DataError, RunError
from prevox.models.resenc.settings import PRESETS, WIDEST
from prevox.output import replacing, writable_folder

SCHEMA = 1
MARK = "Written by `prevox plan`"
# Elements of all maps of one view, for a batch of two. M, L and XL: nnU-Net's reference values for 8, 24 and 40 GB of
# GPU memory in mixed precision. S: a view of about 50³ voxels. On two cores time is scarce, not memory: three views of
# 40 × 56 × 40, 32 M elements together, take 1 s a step (2.5 beside other work), two of 64³ 3.3 s (9).
ELEMENTS = {"S": 16e6, "M": 680e6, "L": 2.1e9, "XL": 3.6e9}
RECIPES = {"S": "resenc-s-cpu", "M": "resenc-l", "L": "resenc-l", "XL": "resenc-l"}
_OF_PRETRAINING = ("transfer", "decoder_first")  # keys of those recipes that mean nothing from scratch
_SCRATCH = {"optim": {"lr": 1e-2}, "schedule": {"warmup": 0.0}}  # nnU-Net's


@dataclass(frozen=True)
class PlanResult:
    """What `plan` leaves behind.

    Args:
        path: The recipe.
        numbers: JSON file beside it, with the fingerprint and everything that was planned.
        plan: The same in Python.
        prepare: Command that makes the store for it.
    """

    path: Path
    numbers: Path
    plan: Plan
    prepare: str


def plan(config: PlanConfig) -> PlanResult:
    """Plan spacing, view, network and batch from the geometry of the catalogue's images; write and print them.

    An older plan of the same name is replaced.

    Raises:
        DataError: If the catalogue cannot be read or is empty, holds slices, images with different numbers of channels,
            or images too small for a U-Net.
        ConfigError: If `out` is no YAML file.
        RunError: If `out` cannot be written, or holds something that `plan` did not write.
    """
    numbers = config.out.with_suffix(".json")
    _check_out(config.out, numbers)
    table = wanted(config.catalogue, read_catalogue(config.catalogue), "Catalogue with other --rules.")
    rows = _images(config.catalogue, table)
    found = fingerprint(config.catalogue, rows)
    try:
        made = make_plan(found, room(config.size))
    except TooSmallError:
        raise _too_small(config.catalogue, rows, found) from None
    spacing = " ".join(f"{s:.10g}" for s in made.spacing)
    store = config.out.with_name(f"{config.out.stem}-store")
    prepare = f"prevox prepare --catalogue {_quoted(config.catalogue)} --spacing {spacing} --out {_quoted(store)}"
    run = _quoted(Path("runs") / config.out.stem)
    finetune = f"prevox finetune --recipe {_quoted(config.out)} --store {_quoted(store)} --out {run}"
    labelled = " labelled" if rows["label_path"].notna().all() else ""
    header = (
        f"{MARK}: nnU-Net's rules for the geometry of {len(rows)}{labelled} images.\n\n  {prepare}\n  {finetune}\n\n"
        f"ResEnc-{config.size}. The numbers behind it are in {numbers.name}. What is not planned is as in the recipe\n"
        f"{RECIPES[config.size]}, but from scratch: no ramps, learning rate 0.01."
    )
    with replacing(config.out) as partial:
        write_yaml(partial, recipe(made, config.size), header)
    with replacing(numbers) as partial:
        partial.write_text(json.dumps(_numbers(config, found, made, prepare), indent=1) + "\n", encoding="utf-8")
    console.print(_table(config.size, len(table), rows, made))
    if any("no_geometry" in flags for flags in rows["flags"]):
        warn("some images say nothing of their geometry (no_geometry); the plan takes what is assumed for them")
    for line in (f"{config.out} and {numbers.name} written; now:", f"  {prepare}", f"  {finetune}"):
        console.print(line, markup=False, soft_wrap=True)
    return PlanResult(config.out, numbers, made, prepare)


def room(size: str) -> Room:
    """Widths, depths and memory of a preset; it never gets wider than its own last stage."""
    preset = PRESETS[size]
    return Room(preset.width, min(preset.width * 2 ** (preset.stages - 1), WIDEST), preset.blocks, ELEMENTS[size])


def fingerprint(catalogue: Path, rows: pd.DataFrame) -> Fingerprint:
    """Geometry of the images along z y x (as `prepare` turns them), their channels, and the classes of their labels.

    Args:
        catalogue: File that messages name.
        rows: Rows of a catalogue.

    Raises:
        DataError: If there are slices among the images, or numbers of channels differ.
    """
    shapes = rows[["shape_i", "shape_j", "shape_k"]].to_numpy(int)
    slices = [str(image) for image, shape in zip(rows["image"], shapes, strict=True) if 1 in shape]
    if slices:
        few = ", ".join(slices[:3])
        raise DataError(
            catalogue,
            found=f"slices (2D) in {len(slices)} of {len(rows)} images ({few}{', ...' * (len(slices) > 3)})",
            expected="volumes (3D) only",
            remedy="Plans are for 3D networks. Catalogue the volumes by themselves.",
        )
    counts = rows["channels"].value_counts()
    if len(counts) > 1:
        told = ", ".join(f"{channels} (images: {n})" for channels, n in counts.items())
        odd = rows.loc[rows["channels"] == counts.index[-1], "image"].iloc[0]
        raise DataError(
            catalogue,
            found=f"different numbers of channels: {told}; the rarest in {odd}",
            expected="one number for all images",
            remedy="A network takes one number of channels. Catalogue each kind by itself.",
        )
    spacings = rows[["spacing_i", "spacing_j", "spacing_k"]].to_numpy(float)
    orders = [
        canonical_axes(np.reshape(a, (4, 4)), tuple(s))[0] for a, s in zip(rows["affine"], shapes.tolist(), strict=True)
    ]
    turned = [(spacings[n, list(order)], shapes[n, list(order)]) for n, order in enumerate(orders)]
    classes = {int(value) for values in rows["label_values"] for value in (values or ()) if value > 0}
    return Fingerprint(
        spacings=tuple(tuple(spacing.tolist()) for spacing, _ in turned),
        shapes=tuple(tuple(shape.tolist()) for _, shape in turned),
        channels=int(counts.index[0]),
        classes=1 + max(1, len(classes)),
    )


def recipe(made: Plan, size: str) -> dict[str, Any]:
    """Settings of `prevox finetune` for a plan: the shipped recipe's, trained from scratch as nnU-Net does."""
    base = {key: value for key, value in load_recipe("finetune", RECIPES[size]).items() if key not in _OF_PRETRAINING}
    encoder = {
        "name": "resenc",
        "size": size,
        "stages": len(made.strides),
        "features": made.features,
        "blocks": made.blocks,
        "strides": ["x".join(map(str, stride)) for stride in made.strides],
        "kernels": ["x".join(map(str, kernel)) for kernel in made.kernels],
    }
    views: dict[str, Any] = {"size": list(made.patch), "foreground": 0.33}
    if max(made.patch) > ANISOTROPY * min(made.patch):
        views["augment"] = {"rotation": 0}  # it would turn flat views out of their plane; nnU-Net's stays within
    planned = {"encoder": encoder, "views": views, "train": {"batch": made.batch}}
    return merge({"encoder": {}, **merge(base, _SCRATCH)}, planned)


def _images(catalogue: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The labelled images, which are those that fine-tuning learns from; all where there are none."""
    if table.empty:
        raise DataError(
            catalogue,
            found="no image",
            expected="a catalogue with images",
            remedy="Write one with `prevox catalogue FOLDER`.",
        )
    labelled = table[table["label_path"].notna()]
    return labelled if len(labelled) else table


def _too_small(catalogue: Path, rows: pd.DataFrame, found: Fingerprint) -> DataError:
    smallest = min(range(len(rows)), key=lambda n: math.prod(found.shapes[n]))
    shape = _times(found.shapes[smallest])
    return DataError(
        catalogue,
        found=f"images of {_times(np.median(found.shapes, axis=0))} voxels (median; the smallest, "
        f"{rows['image'].iloc[smallest]}, has {shape})",
        expected="two axes of at least 8 voxels, or one of 12, at the target spacing, so that a U-Net can halve them",
        remedy="Prepare with a smaller --spacing and choose view and network by hand, or leave the small images out.",
    )


def _check_out(out: Path, numbers: Path) -> None:
    """Refuse what would overwrite another file, before anything is read."""
    if out.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--out {out}: must end in .yaml, by which `prevox finetune --recipe` knows a file.")
    for path, mark in ((out, MARK), (numbers, '"prevox_plan"')):
        if path.is_dir():
            raise RunError(f"{path}: is a folder. Choose another --out.")
        if path.is_file() and mark not in path.read_text(encoding="utf-8", errors="replace")[:200]:
            raise RunError(
                f"{path}: found a file that `prevox plan` did not write; expected none, or an older plan, which is "
                "replaced. Choose another --out, or move the file."
            )
    writable_folder(out.parent)


def _numbers(config: PlanConfig, found: Fingerprint, made: Plan, prepare: str) -> dict[str, Any]:
    return {
        "prevox_plan": SCHEMA,
        "catalogue": str(config.catalogue),
        "size": config.size,
        "prepare": prepare,
        "plan": asdict(made) | {"memory": made.memory},
        "budget": ELEMENTS[config.size],
        "fingerprint": asdict(found),
    }


def _table(size: str, images: int, rows: pd.DataFrame, made: Plan) -> Table:
    """The plan with its reasons."""
    table = Table(title=f"plan for ResEnc-{size} (axes z y x)", show_header=False)
    labelled = "the labelled ones" if rows["label_path"].notna().all() else "none is labelled"
    finest, coarsest = min(made.spacing), max(made.spacing)
    room_for = round(ELEMENTS[size] / made.elements * 2)
    why_spacing = "the median of each axis"
    if made.coarse_axis is not None:
        axis = "zyx"[made.coarse_axis]
        why_spacing += f"; along {axis}, over 3 times coarser and with few voxels, the 10th percentile"
    why_view = f"padded to the total stride of {_times(_total(made))}"
    if made.reductions:
        why_view = f"made smaller {made.reductions} times until the maps fit, by the axis longest beside the image's"
    for row in (
        ("images", str(len(rows)), f"of {images} in the catalogue, {labelled}"),
        ("median spacing", f"{_times(made.median_spacing)} mm", ""),
        ("spacing", f"{_times(made.spacing)} mm", why_spacing),
        ("median shape", f"{_times(made.median_shape)} voxels", "after resampling; borders that prepare crops count"),
        ("anisotropy", f"{coarsest / finest:.3g}", "coarsest spacing over finest"),
        ("first view", f"{_times(made.first_patch)} voxels", "a cube in mm of 256³ voxels, within the median image"),
        ("view", f"{_times(made.patch)} voxels", why_view),
        ("stages", str(len(made.strides)), "axes are halved while 4 sites or more are left"),
        ("strides", _listed(made.strides), "an axis rests while its spacing is twice the finest or more"),
        ("kernels", _listed(made.kernels), "1 along such an axis"),
        ("features", ", ".join(map(str, made.features)), f"doubled up to {room(size).widest}"),
        ("blocks", ", ".join(map(str, made.blocks)), "the preset's"),
        ("batch", str(made.batch), f"memory for {room_for}, 5 % of all voxels are {made.largest_batch}; two at least"),
        (
            "maps",
            f"{made.elements / 1e6:.1f} M elements a view",
            f"room for {ELEMENTS[size] / 1e6:.0f} M in each of two",
        ),
        ("memory", f"{made.memory / 1e9:.2g} GB", "of the maps in float32, half in bfloat16; weights on top"),
    ):
        table.add_row(*row)
    return table


def _total(made: Plan) -> list[int]:
    return [math.prod(axis) for axis in zip(*made.strides, strict=True)]


def _listed(stages: list[tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, stage)) for stage in stages)


def _times(numbers: Any) -> str:
    return " × ".join(f"{number:.6g}" for number in numbers)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
