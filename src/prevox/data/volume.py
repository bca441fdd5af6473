"""One volume of a store: whether it is there as it should be, and how it is written.

It is written under a temporary name and renamed, so a half-written one is never visible.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prevox.data.encode import Case, encode_case, is_file_name
from prevox.data.group import read_attributes, update_attributes, write_image_group
from prevox.data.place import PrepareSettings
from prevox.data.store import image_folder
from prevox.data.temporary import temporary_path
from prevox.errors import PrevoxError, RunError

_CANNOT_WRITE = re.compile(
    r"No space left|ENOSPC|[Qq]uota|EDQUOT|Read-only file|EROFS|Permission denied|EACCES|Not a directory|ENOTDIR"
)


def is_done(out: Path, case: Case, settings: PrepareSettings) -> bool:
    """Whether the image has a group as it is now; what else the catalogue says about it is brought up to date."""
    if not is_file_name(case.image):
        return False
    folder = image_folder(out, case.image)
    attributes = read_attributes(folder)
    if attributes is None or attributes["hash"] != case.hash or attributes["settings"] != settings.plain():
        return False
    if attributes["row"] != case.row:
        update_attributes(folder, {"row": case.row})
    return True


def remove_older(out: Path, case: Case) -> None:
    """Remove an older version of an image that cannot be prepared any more; not what another run has just written."""
    folder = image_folder(out, case.image)
    attributes = read_attributes(folder)
    if attributes is None or attributes["hash"] != case.hash:
        shutil.rmtree(folder, ignore_errors=True)


def prepare_case(case: Case, out: Path, settings: PrepareSettings) -> None:
    """Encode and write one volume; runs in a worker process.

    Raises:
        DataError: If the image or its label cannot be used.
        RunError: If the store cannot be written.
    """
    encoded = encode_case(case, settings)
    folder = image_folder(out, case.image)
    temporary = temporary_path(folder)
    group = temporary / folder.name  # OME-Zarr holds the image's name, so it is written under that
    with writing(out):
        try:
            write_image_group(
                group, encoded.stored_CZYX, encoded.label_ZYX, encoded.affine, encoded.attributes, encoded.seed
            )
            shutil.rmtree(folder, ignore_errors=True)  # an older version of the same image
            try:
                group.rename(folder)
            except OSError:
                if not is_done(out, case, settings):  # else another run on this store was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a message that names the folder."""
    try:
        yield
    except (OSError, ValueError) as error:  # tensorstore reports the system's errors as ValueError
        if isinstance(error, PrevoxError) or not _CANNOT_WRITE.search(str(error)):
            raise
        raise RunError(
            f"{folder}: cannot be written ({' '.join(str(error).split())[:300]}). What is finished stays. "
            "Free space or give another --out, and run `prevox prepare` again: it goes on where it was."
        ) from error
