"""DICOM: every file of a tree by its content, whatever its name; series and phases become images under hashed ids.

Nothing that is returned or printed from here names a patient: ids are salted hashes (`data.pseudonyms`), and the paths
of an image's files are in its .series file alone (`data.readers.dicom`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.markup import escape

from prevox.config.data import DicomConfig
from prevox.console import console
from prevox.data.layouts.base import Entry, folders, is_hidden
from prevox.data.layouts.dicom_stacks import is_whole, stacks_of
from prevox.data.pseudonyms import content_key, keep_private, plain_id, pseudonym, read_salt
from prevox.data.readers import SERIES, suffix_of
from prevox.data.readers.dicom import Files, write_series
from prevox.data.readers.dicom_header import Instance, read_instance
from prevox.data.runner import Failure, run_cases
from prevox.data.temporary import remove_stale
from prevox.errors import DataError, RunError

_AT_ONCE = 200  # files that a process reads at a time
_LONG, _LONG_PART = 60.0, 600.0  # seconds for the header of a file, and for those of a part
_FEW = 2000  # files that are read in this process
_SUFFIX = 8  # digits that tell the files of one series apart
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")


@dataclass
class DicomSource:
    """How DICOM is catalogued.

    Args:
        out: The catalogue; beside it lie the salt and the lists of files.
        config: The user's settings.
        met: What was found that is no image, by kind, so far.
    """

    out: Path
    config: DicomConfig
    met: Counter[str] = field(default_factory=Counter)

    @property
    def folder(self) -> Path:
        """Where the lists of files go."""
        return self.out.with_suffix(SERIES)


def recognise(root: Path, source: DicomSource) -> list[Entry]:
    """Read the headers of all files below a folder (or of one file) and list the images that their series hold.

    Writes a .series file for each. Instances that cannot be images by themselves are entries too, one for each series
    and problem: the reader says what is wrong.

    Raises:
        RunError: If salt or lists cannot be written.
    """
    files = [root] if root.is_file() else _files(root)
    instances = [instance for instance in _instances(files) if instance is not None]
    if not instances:
        return []
    skipped = Counter(instance.kind for instance in instances if instance.kind != "image")
    images = [instance for instance in instances if instance.kind == "image"]
    single = _without_copies(images)
    source.met += skipped
    entries = _entries(root, single, source) if single else []
    copies, others = len(images) - len(single), len(files) - len(instances)
    said = [
        f"{len(images)} of {len(files)} files are images, of {len(_by_series(single))} series in {len(entries)} parts"
    ]
    said += [f"{copies} of them copies"] if copies else []
    said += ["no images: " + ", ".join(f"{n} × {kind}" for kind, n in sorted(skipped.items()))] if skipped else []
    said += [f"no DICOM: {others}"] if others else []
    console.print(escape(f"DICOM: {'; '.join(said)}"), soft_wrap=True)
    return entries


def _files(root: Path) -> list[Path]:
    """All files that are not of another known kind, hidden ones left out."""
    found = (path for folder in folders(root) for path in folder.iterdir())
    return sorted(path for path in found if not suffix_of(path) and path.is_file() and not is_hidden(path, root))


def _instances(files: Sequence[Path]) -> list[Instance | None]:
    """The headers of all files, in several processes where there are many."""
    if len(files) <= _FEW:
        return _read(files)
    parts = [tuple(files[start : start + _AT_ONCE]) for start in range(0, len(files), _AT_ONCE)]
    read: dict[Path, Instance | None] = {}
    for part, result in run_cases(
        _read, parts, 0, lambda part: f"{len(part)} files", "reading headers", timeout=_LONG_PART
    ):
        if not isinstance(result, Failure):
            read.update(zip(part, result, strict=True))
    # of a part that failed, one file may be to blame: each is read alone
    alone = [(path,) for path in files if path not in read]
    broken = "a broken DICOM file (it ended the process that read its header, or took too long)"
    if alone:
        for (path,), result in run_cases(_read, alone, 0, lambda _: "a file", "reading headers alone", timeout=_LONG):
            read[path] = Instance(path, problem=broken) if isinstance(result, Failure) else result[0]
    return [read[path] for path in files]


def _read(files: Iterable[Path]) -> list[Instance | None]:
    return [read_instance(path) for path in files]


def _without_copies(instances: Iterable[Instance]) -> list[Instance]:
    """One file for each instance, a sound one if there is any.

    Files are copies if they lie at one place as well: some anonymisers give all files one SOPInstanceUID.
    """
    same: dict[tuple[str, ...], list[Instance]] = {}
    for instance in instances:
        key = (*_series_of(instance), instance.uid) if instance.uid else (str(instance.path),)
        same.setdefault(key, []).append(instance)
    chosen: list[Instance] = []
    for group in same.values():
        sound: dict[tuple[object, ...], Instance] = {}
        for instance in group:
            if instance.problem is None:
                places = tuple((frame.position, frame.marks.get("number")) for frame in instance.frames)
                sound.setdefault(places, instance)
        chosen += list(sound.values()) or group[:1]
    return sorted(chosen, key=_place_in_series)


def _place_in_series(instance: Instance) -> tuple[tuple[float, str], str, Path]:
    """By what the header says: files may be renamed, and the order gives phases their numbers.

    Where no instance number says anything, the names of the files do.
    """
    number = next(iter(instance.frames[0].marks.get("number", ())), "") if instance.frames else ""
    return (float(number) if number.isdecimal() else 0.0, number), instance.uid if number else "", instance.path


def _series_of(instance: Instance) -> tuple[str, str, str]:
    """Patient, study, series: anonymisers give several one UID. Without UID, a folder is a series, or a broken file."""
    place = instance.path if instance.problem else instance.path.parent
    return instance.patient, instance.study, instance.series or str(place)


def _by_series(instances: Iterable[Instance]) -> dict[tuple[str, str, str], list[Instance]]:
    """The instances of each series in their order; the series in the order of their first files."""
    series: dict[tuple[str, str, str], list[Instance]] = {}
    for instance in instances:
        series.setdefault(_series_of(instance), []).append(instance)
    return dict(sorted(series.items(), key=lambda item: min(instance.path for instance in item[1])))


def _entries(root: Path, instances: Sequence[Instance], source: DicomSource) -> list[Entry]:
    """An entry for each stack and each problem of each series, its list of files written."""
    plain = source.config.identifiers
    salt = read_salt(source.config.salt or source.out.with_suffix(".salt"))

    def named(kind: str, value: str) -> str:
        return plain_id(value) if plain else pseudonym(salt, kind, value)

    collection = plain_id(root.name) if plain else f"dicom-{pseudonym(salt, 'tree', str(root))[:6]}"
    folder, secret = source.folder / collection, content_key(salt)
    entries = []
    try:
        for place in (source.folder, folder):
            place.mkdir(0o700, parents=True, exist_ok=True)
            keep_private(place, 0o700)
        for key, members in _by_series(instances).items():
            found, series = _images(members), key[-1] if plain else "\0".join(key)
            numbered, taken = sum(not is_whole(first) for _, first in found), Counter[str]()
            for files, first in found:
                image = named("series", series)
                if is_whole(first):
                    image += f"-{pseudonym(b'' if plain else salt, 'instance', _name_of(first))[:_SUFFIX]}"
                elif numbered > 1:
                    taken["numbered"] += 1
                    image += f"-{taken['numbered']}"
                taken[image] += 1
                image += f"-{taken[image]}" if taken[image] > 1 else ""
                path = folder / f"{image}{SERIES}"
                write_series(path, files, source.config.tilt, secret)
                entry = Entry(
                    image=image,
                    paths=(path,),
                    label=None,
                    subject=named("patient", first.patient or first.study or series),
                    modality=first.modality if _MODALITY.fullmatch(first.modality) else None,
                    class_names=None,
                    layout="dicom",
                    root=source.out.parent.absolute(),
                    collection=collection,
                    dataset=collection,
                    session=named("study", first.study) if first.study else None,
                    sequence=first.sequence,
                    problem=_too_few(image, files, first, source.config.slices),
                )
                entries.append(replace(entry, paths=(path.absolute(),)))
        written = {entry.paths[0].name for entry in entries}
        for path in folder.glob(f"*{SERIES}"):
            if path.name not in written:
                path.unlink(missing_ok=True)  # another task may have done so
        remove_stale(folder)
    except OSError as error:
        raise RunError(f"{source.folder}: cannot be written ({error.strerror}). Choose another --out.") from None
    return entries


def _name_of(instance: Instance) -> str:
    """What tells an instance from others of its series, whatever its file is called and whichever others are there."""
    return "\0".join([instance.uid, *(f"{name}={values}" for name, values in sorted(instance.frames[0].marks.items()))])


def _too_few(image: str, files: Files, first: Instance, least: int) -> DataError | None:
    """The problem of an image with fewer slices than are wanted; what is no image has a better reason."""
    count = sum(len(frames or ()) for _, frames in files)
    if first.problem is not None or count >= least:
        return None
    return DataError(
        image, found=f"{count} slice{'s' * (count > 1)}", expected=f"at least {least}, as --dicom.slices says"
    )


def _images(members: Sequence[Instance]) -> list[tuple[Files, Instance]]:
    """What one series holds: files and frames of each image, and an instance that speaks for it."""
    sound = [instance for instance in members if instance.problem is None]
    found: list[tuple[Files, Instance]] = []
    for stack in stacks_of(sound):
        frames: dict[Path, list[int]] = {}
        for instance, frame in stack:
            frames.setdefault(instance.path, []).append(frame.number)
        found.append((list(frames.items()), stack[0][0]))
    problems: dict[str, list[Instance]] = {}
    for instance in members:
        if instance.problem is not None:
            problems.setdefault(instance.problem, []).append(instance)
    return found + [([(one.path, None) for one in group], group[0]) for group in problems.values()]
