"""`prevox prepare`: reorient, crop, resample and write a catalogue's images as a store.

Each image (or pack of slices) is written under a temporary name and renamed, so a half-written one is never visible. An
image whose content hash and settings are those in the store is left alone: a second run does only what is missing or
changed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.markup import escape

from prevox.allocator import tables_from_system_memory
from prevox.config.data import PrepareConfig
from prevox.console import console, warn
from prevox.data.dask_connect import check_dask
from prevox.data.dask_engine import open_engine
from prevox.data.encode import Case, encode_case, is_file_name, slice_shape
from prevox.data.geometry import canonical_axes, spacing_of
from prevox.data.memory import preparing_bytes
from prevox.data.pack import Packer, packed_images, plan_packs, remove_replaced_packs, update_rows
from prevox.data.place import Prepared, PrepareSettings, prepare_image
from prevox.data.runner import Engine, Failure, run_cases
from prevox.data.store import read_info
from prevox.data.store_files import StoreFiles
from prevox.data.temporary import is_temporary, remove_stale
from prevox.data.volume import is_done, prepare_case, remove_older, writing
from prevox.errors import ConfigError, RunError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PrepareResult", "PrepareSettings", "Prepared", "prepare", "prepare_image"]

T = TypeVar("T")


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare` leaves behind.

    Attributes:
        store: The store's folder.
        prepared: Images written by this run.
        skipped: Images of the catalogue that were there already.
        failures: Image id and reason of each that could not be prepared.
    """

    store: Path
    prepared: int
    skipped: int
    failures: list[tuple[str, str]]

    @property
    def exit_code(self) -> int:
        """1 if an image could not be prepared, else 0."""
        return int(bool(self.failures))


def prepare(config: PrepareConfig) -> PrepareResult:
    """Write the store, or complete one.

    Raises:
        DataError: If the catalogue or the existing store cannot be used.
        ConfigError: If the existing store was prepared with other settings, or the folder holds something else.
        RunError: If the folder cannot be written or the disk is full (what is finished stays); with `strict`, for the
            first image that fails.
    """
    from prevox.data.catalogue import read_catalogue, wanted
    from prevox.data.index import kept_columns, reserve_room
    from prevox.data.prepare_table import print_store

    if config.engine == "dask":
        check_dask(config.dask)  # before there is a folder
    tables_from_system_memory()
    catalogue = read_catalogue(config.catalogue)
    if not config.excluded:
        catalogue = wanted(config.catalogue, catalogue, "--excluded takes them; or catalogue with other --rules.")
    settings = PrepareSettings(_spacing(config, catalogue), config.crop, config.order)
    all_cases = [
        Case(kept_columns(row), str(row["hash"]), slice_shape(row, settings), preparing_bytes(row, settings))
        for row in _rows(catalogue)
    ]
    hashes = {case.image: case.hash for case in all_cases}
    part = _part(all_cases, config.part)
    del catalogue, all_cases  # what is not needed any more makes room
    with writing(config.out):
        _open_folder(config, settings)
        (config.out / "images").mkdir(exist_ok=True)
        _remove_leftovers(config.out)
        cases = _to_do(config.out, part, settings, config.part is None)
    skipped, to_do = len(part) - len(cases), len(cases)
    share = "" if config.shard is None else f", {len(part)} of them in shard {config.shard}"
    console.print(
        f"{len(hashes)} images in {config.catalogue}{share}, {skipped} already in {config.out}",
        markup=False,
        soft_wrap=True,
    )
    del part
    failures: list[tuple[str, str]] = []
    sources = (Path(case.row["root"]) / path for case in cases for path in _files(case.row))
    reserve: Path | None = None
    try:
        if cases and config.part is None:
            reserve = reserve_room(config.out, len(hashes))
        with open_engine(config, sources, config.out, partial(_remove_leftovers, config.out.absolute())) as engine:
            _prepare_all(config, settings, cases, failures, engine)
    finally:
        # also after an interruption, or on a full disk: what is finished can be used
        cases.clear()
        with writing(config.out):
            if reserve is not None:
                reserve.unlink(missing_ok=True)
            _remove_leftovers(config.out)  # of workers that have died or were stopped
            if config.part is None:
                index = _write_tables(config, settings, hashes, failures)
    if config.part is None:
        print_store(config.out, index, failures)
    else:
        console.print(
            f"shard {config.shard}: {to_do - len(failures)} images prepared, {len(failures)} left out. When all "
            f"shards are done, the same call without --shard prepares what is missing and writes the index of "
            f"{config.out}.",
            markup=False,
            soft_wrap=True,
        )
    return PrepareResult(config.out, to_do - len(failures), skipped, failures)


def _part(cases: list[Case], part: tuple[int, int] | None) -> list[Case]:
    """The cases of one task of a job array; which they are depends on the catalogue only, not on what is done.

    Volumes are dealt out in turn. Slices go in packs, those that one call would make of all of them, neighbours
    together: so the tasks make the same packs, and no two of them write to one.
    """
    if part is None:
        return cases
    number, count = part
    volumes = [case for case in cases if case.slice_CYX is None]
    packs = plan_packs([case for case in cases if case.slice_CYX is not None])
    first, last = (len(packs) * n // count for n in (number, number + 1))
    return [*volumes[number::count], *(case for pack in packs[first:last] for case in pack)]


def _write_tables(
    config: PrepareConfig, settings: PrepareSettings, hashes: Mapping[str, str], failures: list[tuple[str, str]]
) -> "pd.DataFrame":
    """Write what the store says of itself; the index. `hashes` are those of the catalogue's images."""
    from prevox.data.index import write_failures, write_tables

    write_failures(config.out, failures)
    index = write_tables(config.out, hashes, settings.plain(), _user_settings(config))
    remove_replaced_packs(config.out, index)
    return index


def _user_settings(config: PrepareConfig) -> dict[str, Any]:
    given = config.plain()
    return {name: given[name] for name in ("spacing", "crop", "order")}


def _prepare_all(
    config: PrepareConfig,
    settings: PrepareSettings,
    cases: list[Case],
    failures: list[tuple[str, str]],
    engine: Engine | None,
) -> None:
    """Prepare the cases; append image and reason of those that fail.

    Volumes are written by the workers. Slices come back from them, to be written here pack by pack: so a slice that
    cannot be read, or kills its worker, costs itself only.
    """
    volumes = [case for case in cases if case.slice_CYX is None]
    write = partial(prepare_case, out=config.out, settings=settings)
    for _ in _results(config, write, volumes, failures, engine):
        pass
    packer = Packer(config.out, [case for case in cases if case.slice_CYX is not None])
    encode = partial(encode_case, settings=settings)
    for case, encoded in _results(config, encode, packer.cases, failures, engine):
        with writing(config.out):
            packer.add(case, encoded)


def _results(
    config: PrepareConfig,
    work: Callable[[Case], T],
    cases: list[Case],
    failures: list[tuple[str, str]],
    engine: Engine | None,
) -> Iterator[tuple[Case, T | None]]:
    """Run the cases; yield each with its result, or with None if it has failed, and say so."""
    results = run_cases(
        work,
        cases,
        config.workers,
        lambda case: case.image,
        "preparing",
        timeout=config.timeout,
        memory=lambda case: case.memory,
        engine=engine,
    )
    for case, result in results:
        if not isinstance(result, Failure):
            yield case, result
            continue
        if result.kind == RunError.__name__:
            raise RunError(result.reason)
        image, reason = case.image, " ".join(result.reason.split())
        if config.strict:
            failures.append((image, reason))
            raise RunError(f"{image}: {reason} Stopped because of --strict; without it the image is left out.")
        if is_file_name(image):
            remove_older(config.out, case)
        console.print(f"[red]left out:[/red] {escape(image)}: {escape(reason)}")
        failures.append((image, reason))
        yield case, None


def _files(row: dict[str, Any]) -> list[str]:
    """Files of an image and of its label map, below its root."""
    return [*row["paths"], *([row["label_path"]] if row["label_path"] else [])]


def _remove_leftovers(out: Path) -> None:
    for folder in (out, out / "images", out / "packs"):
        remove_stale(folder)


def _rows(catalogue: "pd.DataFrame") -> Iterator[dict[str, Any]]:
    """One row after the other; all at once they would take many times the table."""
    names = list(catalogue.columns)
    for values in zip(*(catalogue[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _spacing(config: PrepareConfig, catalogue: "pd.DataFrame") -> tuple[float, float, float] | None:
    """Target spacing along z y x in mm; None for each image's own."""
    if config.spacing == "none":
        return None
    if config.spacing == "median":
        z, y, x = np.median([_canonical_spacing(row) for row in _rows(catalogue)], axis=0).round(6).tolist()
        return z, y, x
    if len(config.spacing) != 3:
        raise ConfigError(f"--spacing {config.spacing}: {len(config.spacing)} numbers; expected three (z y x), in mm.")
    if silent := sum("no_geometry" in flags for flags in catalogue["flags"]):
        warn(f"{silent} images say nothing of their geometry (no_geometry): --spacing takes what is assumed for them.")
    z, y, x = config.spacing
    return z, y, x


def _canonical_spacing(row: dict[str, Any]) -> list[float]:
    spacing = spacing_of(np.reshape(row["affine"], (4, 4)))
    axes, _ = canonical_axes(np.reshape(row["affine"], (4, 4)), (row["shape_i"], row["shape_j"], row["shape_k"]))
    return [spacing[axis] for axis in axes]


def _open_folder(config: PrepareConfig, settings: PrepareSettings) -> None:
    """Make the folder, or check that it is a store prepared with these settings."""
    import pandas as pd

    from prevox.data.index import store_info, write_info

    out = config.out
    # listed first: where another task of a job array has just made the folder, its store.json came before all else
    others = out.is_dir() and any(not is_temporary(path) for path in out.iterdir())
    if (out / "store.json").is_file():
        old, new = PrepareSettings.from_info(read_info(StoreFiles(out))).plain(), settings.plain()
        for key, value in new.items():
            if old[key] != value:
                raise ConfigError(
                    f"--{key} {value}: the store {out} was prepared with {key} {old[key]}, and images prepared in "
                    f"different ways do not mix. Give another --out, or --{key} as it was."
                )
        return
    if out.is_file():
        raise ConfigError(f"--out {out}: found a file; expected a folder.")
    if others:
        raise ConfigError(f"--out {out}: found a folder with other files; expected a store, or a new or empty folder.")
    out.mkdir(parents=True, exist_ok=True)
    # first of all, so that a run killed here is taken up as well
    write_info(out, store_info(pd.DataFrame(), settings.plain(), _user_settings(config)))


def _to_do(out: Path, cases: list[Case], settings: PrepareSettings, update_packs: bool) -> list[Case]:
    """Cases that are not in the store as they are now; what else the catalogue says of the others is taken over.

    In packs only if `update_packs`: two tasks of a job array must not rewrite the rows of one at the same time.
    """
    by_content = {(case.image, case.hash): case for case in cases}
    packed: set[str] = set()  # two runs may have packed one image each
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for found in packed_images(out):
        case = by_content.get((found.attributes["row"]["image"], found.attributes["hash"]))
        if case is not None and case.image not in packed and found.attributes["settings"] == settings.plain():
            packed.add(case.image)
            if found.attributes["row"] != case.row:
                rows.setdefault(found.pack, {})[found.position] = case.row
    if update_packs:
        update_rows(out, rows)
    return [case for case in cases if case.image not in packed and not is_done(out, case, settings)]
