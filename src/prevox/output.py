"""Where results go: folders are tried before the work is done, and files appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from prevox.errors import RunError


def writable_folder(path: Path) -> Path:
    """Make a folder and write in it once, so that what cannot be written is known before it is computed.

    Raises:
        RunError: If the folder cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path) as file:
            file.write(b"0")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}). Choose another --out, or free space.") from None
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file name beside `path`; what is written there takes the path's place if the block succeeds.

    Raises:
        RunError: If the file cannot be written; an older one of the name is kept.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}). Choose another --out.") from None
    finally:
        partial.unlink(missing_ok=True)
