"""Where the datasets of a bench lie, and that they are the same scans in every call."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prevox.benching.cells import Cell
from prevox.benching.folder import read_json
from prevox.benching.plan import dataset_folder
from prevox.config.bench import BenchFile
from prevox.errors import ConfigError, RunError


def given_paths(bench: BenchFile, data: tuple[str, ...]) -> dict[str, list[Path]]:
    """Paths of the datasets, absolute, from NAME=PATH.

    Raises:
        ConfigError: If a word is no NAME=PATH, names no dataset, or a path does not exist.
    """
    found: dict[str, list[Path]] = {}
    for word in data:
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise ConfigError(f"data: '{word}' is no NAME=PATH; the names are {', '.join(bench.datasets)}.")
        if name not in bench.datasets:
            raise ConfigError(f"data: '{name}' is no dataset of the file; expected one of {', '.join(bench.datasets)}.")
        if not Path(path).exists():
            raise ConfigError(f"data: {name}={path}: no such folder. Give the folder of the dataset '{name}'.")
        found.setdefault(name, []).append(Path(path).absolute())
    return found


def needed(bench: BenchFile, cells: list[Cell]) -> list[str]:
    """Datasets that runnable cells are trained, pre-trained or tested on."""
    names: dict[str, None] = {}
    for cell in cells:
        if cell.absent is None:
            own = [cell.dataset, *([cell.pretraining.dataset] if cell.pretraining else [])]
            names |= dict.fromkeys([*own, *bench.test_on.get(cell.dataset, ())])
    return list(names)


def fingerprint(paths: list[Path]) -> dict[str, Any]:
    """What a dataset consists of, without opening a scan: names and sizes of its files."""
    return {str(path): sorted(_files(path)) for path in paths}


def check_sources(bench: BenchFile, paths: dict[str, list[Path]], out: Path) -> None:
    """Refuse scans other than those that the bench was begun with.

    Raises:
        RunError: If a path, or a file's name or size below it, has changed.
    """
    for name, given in paths.items():
        path = out / "data" / dataset_folder(name, bench.datasets[name]) / "source.json"
        known = read_json(path)
        if not known:
            continue
        now = json.loads(json.dumps(fingerprint(given)))
        if now.keys() != known.keys():
            raise RunError(
                f"dataset {name}: the bench was begun with {', '.join(known)}, and this call gives {', '.join(now)}. "
                "Give the same --data, or another --out."
            )
        for root in now:
            changed = [row[0] for row in now[root] if row not in known[root]]
            changed += [row[0] for row in known[root] if row[0] not in {new[0] for new in now[root]}]
            if changed:
                raise RunError(
                    f"dataset {name}: {len(changed)} files below {root} are not those that the bench was begun with "
                    f"({changed[0]}, for example). Runs on other scans are not mixed: give another --out."
                )


def _files(path: Path) -> Iterator[list[Any]]:
    if path.is_file():
        yield [path.name, path.stat().st_size]
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            if file.is_file():
                yield [str(file.relative_to(path)), file.stat().st_size]
