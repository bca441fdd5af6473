"""Folders of a comparison or a report by name."""

from collections.abc import Sequence
from pathlib import Path

from prevox.errors import ConfigError


def named_folders(runs: Sequence[str]) -> dict[str, list[Path]]:
    """The folders of each arm, given as PATH or NAME=PATH.

    Raises:
        ConfigError: If fewer than two names are left.
    """
    given = [_name_and_path(run) for run in runs]
    short = iter(short_names(tuple(_meant(path) for name, path in given if name is None)))
    folders: dict[str, list[Path]] = {}
    for name, path in given:
        folders.setdefault(name or next(short), []).append(path)
    if len(folders) < 2:
        raise ConfigError(
            f"runs: found one run ({next(iter(folders), 'none')}); expected at least two to compare. Give more, as "
            "PATH or NAME=PATH; paths of one name count as one run."
        )
    return folders


def short_names(paths: tuple[Path, ...]) -> list[str]:
    """The folders' own names, with their parents where two are equal."""
    for depth in range(1, 1 + max((len(path.parts) for path in paths), default=0)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, start=1)]


def _name_and_path(run: str) -> tuple[str | None, Path]:
    name, equals, path = run.partition("=")
    if not equals or Path(run).exists():  # a folder's own name may hold an equals sign
        return None, Path(run)
    if not name.strip() or not path:
        raise ConfigError(f"runs: '{run}' has no {'path' if name.strip() else 'name'}; expected PATH or NAME=PATH.")
    return name.strip(), Path(path)


def _meant(path: Path) -> Path:
    """The folder whose name says what was evaluated."""
    path = path.resolve()
    return path.parent if path.name == "evaluation" and len(path.parts) > 1 else path
