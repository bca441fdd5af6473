"""Damage files at random, read them in child processes with little memory and time, and count what comes of it.

`python -m tests.fuzz.readers --count 2000 --seed 0` prints counts as JSON and exits with 1 if a reader ends its
process, hangs, raises what the catalogue does not catch, or writes a file. Damage is truncation, flipped bits,
extremes in binary and text headers, blanks, gzip bombs, and links in circles. Every file follows from seed and number:
`--keep FOLDER` keeps those that were faults.
"""

import argparse
import gzip
import io
import json
import multiprocessing
import os
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image as Pillow

from prevox.data.readers import Reading, read_header, read_image
from prevox.data.readers.dicom import write_series
from prevox.errors import DataError
from tests.unit.data.dicom_files import dataset, save, write_mosaic

MEMORY = 1 << 30  # bytes that a child may take beyond what it has when it starts
SECONDS = 20.0  # for one file; reading one takes milliseconds
READ, HEADER_ONLY, REFUSED = "read", "refused after the header", "refused at the header"
BAD = ("crashed", "hung", "raised something else", "wrote elsewhere")
EXTREMES = (0, 1, -1, 0x7F, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7F800000, 0x7FC00000)
CHOICES = (
    *(Reading(), Reading(colour="grey", complex="magnitude"), Reading(colour="channels", volume=1)),
    Reading(pages=True),
)


def seeds(folder: Path) -> list[Path]:
    """One small sound file (or pair of files) of every kind that is read, and of every odd voxel type."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 900, (12, 10, 8)).astype(np.int16)
    volume = nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
    series = nib.Nifti1Image(rng.integers(0, 900, (8, 7, 6, 3)).astype(np.int16), np.eye(4))
    colour = np.zeros((8, 7, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(volume, folder / "a.nii")
    nib.save(volume, folder / "b.nii.gz")
    nib.save(nib.Nifti2Image(values, np.eye(4)), folder / "c.nii")
    nib.save(series, folder / "d.nii.gz")
    nib.save(nib.Nifti1Image(colour, np.eye(4)), folder / "e.nii")
    nib.save(nib.Nifti1Image(values.astype(np.complex64), np.eye(4)), folder / "f.nii")
    nib.save(nib.Nifti1Pair(values, np.eye(4)), folder / "g.hdr")
    nib.save(nib.AnalyzeImage(values, np.eye(4)), folder / "h.hdr")
    nib.save(nib.MGHImage(values.astype(np.int32), np.eye(4)), folder / "i.mgh")
    nib.save(nib.MGHImage(values.astype(np.int32), np.eye(4)), folder / "j.mgz")
    image = sitk.GetImageFromArray(values)
    for name, packed in (("k.nrrd", True), ("l.nrrd", False), ("m.mha", True), ("n.mha", False)):
        sitk.WriteImage(image, folder / name, useCompression=packed)
    sitk.WriteImage(image, folder / "o.mhd")
    sitk.WriteImage(image, folder / "p.nhdr")
    picture = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
    for name in ("q.png", "r.jpg", "s.tif"):
        Pillow.fromarray(picture).save(folder / name)
    pages = [Pillow.fromarray(page) for page in rng.integers(0, 255, (3, 20, 24), dtype=np.uint8)]
    pages[0].save(folder / "t.tif", save_all=True, append_images=pages[1:])
    made = dataset(values[:, :, 0])
    save(folder / "u.dcm", made)
    made.compress("1.2.840.10008.1.2.5")  # RLE
    save(folder / "v.dcm", made)
    write_mosaic(folder / "w.dcm", np.ascontiguousarray(values[:, :, :5]))
    return [path for path in sorted(folder.iterdir()) if path.suffix not in (".img", ".raw")]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three kinds of damage, one after the other."""
    for _ in range(rng.integers(1, 4)):
        content = DAMAGES[rng.integers(len(DAMAGES))](content, rng)
    return content


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(0, len(content) + 1)]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9) if changed else 0):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _extreme(content: bytes, rng: np.random.Generator) -> bytes:
    """A number of 2 or 4 bytes within the first 400 becomes an extreme."""
    changed, size = bytearray(content), int(rng.choice([2, 4]))
    if len(changed) < 16:
        return content
    at = int(rng.integers(0, min(len(changed), 400) // 2 - 2)) * 2
    value = int(EXTREMES[rng.integers(len(EXTREMES))]) % (1 << 8 * size)
    struct.pack_into(f"{'<>'[rng.integers(2)]}{'H' if size == 2 else 'I'}", changed, at, value)
    return bytes(changed)


def _number(content: bytes, rng: np.random.Generator) -> bytes:
    """A number in the text of a header becomes another: giant sizes, zeros, words, paths."""
    head, rest = content[:2000], content[2000:]
    digits = [at for at in range(len(head)) if head[at : at + 1].isdigit() and not head[at - 1 : at].isalnum()]
    if not digits:
        return _extreme(content, rng)
    at = digits[rng.integers(len(digits))]
    stop = at
    while head[stop : stop + 1].isdigit():
        stop += 1
    words = [b"0", b"-1", b"1e9", b"nan", b"999999999", b"99999999999999999999", b"../../../etc/passwd", b"%s%n", b""]
    return head[:at] + words[rng.integers(len(words))] + head[stop:] + rest


def _longer(content: bytes, rng: np.random.Generator) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 4000)))


def _blank(content: bytes, rng: np.random.Generator) -> bytes:
    """A piece becomes zeros, or random bytes."""
    start = int(rng.integers(0, len(content) + 1))
    size = int(rng.integers(1, 200))
    piece = bytes(size) if rng.integers(2) else rng.bytes(size)
    return content[:start] + piece + content[start + size :]


DAMAGES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (_cut, _flip, _extreme, _number, _longer, _blank)


def write_case(number: int, seed: int, sound: list[Path], folder: Path) -> tuple[Path, Reading]:
    """Write the damaged file of this number into an empty folder, and say how it is to be read."""
    rng = np.random.default_rng([seed, number])
    source = sound[rng.integers(len(sound))]
    for beside in source.parent.glob(f"{source.stem}.*"):
        shutil.copy(beside, folder)
    path, content = folder / source.name, source.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    kind = rng.integers(20)
    if kind == 0:  # a gzip bomb: 300 MB of zeros after a sound header
        start = gzip.decompress(content) if packed else content
        path.write_bytes(_bomb(start))
    elif kind == 1:  # a link to itself, to nothing, or to a folder
        path.unlink()
        path.symlink_to([path, folder / "gone", folder][rng.integers(3)])
    elif packed and rng.integers(4):  # damaged within, so that decompressing does not fail first
        path.write_bytes(gzip.compress(damaged(gzip.decompress(content), rng), 1))
    else:
        path.write_bytes(damaged(content, rng))
    if path.suffix == ".dcm":  # what is read is a list of such files
        write_series(folder / "list.series", [(path, None)], "refuse", "00")
        path = folder / "list.series"
    return path, CHOICES[rng.integers(len(CHOICES))]


def _bomb(start: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(300):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def outcome(path: Path, reading: Reading) -> str:
    """Read a file as the catalogue does; whatever is raised that it does not catch is a fault."""
    try:
        header = read_header(path, reading)
    except (DataError, OSError, MemoryError):
        return REFUSED
    try:
        image = read_image(path, reading)
    except (DataError, OSError, MemoryError):
        return HEADER_ONLY
    assert image.array_CIJK.shape == (header.channels, *header.shape_ijk), "header and voxels disagree"
    return READ


def _child(connection: Connection, work: Callable[[Path, Reading], str]) -> None:
    """Read the files that come in until none does, within `MEMORY`; what libraries print is not shown."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    while (task := _next(connection)) is not None:
        try:
            connection.send((work(*task), ""))
        except BaseException as error:  # whatever it is, it is counted
            connection.send(("raised something else", f"{type(error).__name__}: {error}"))


def _next(connection: Connection) -> tuple[Path, Reading] | None:
    """The next file; None where there is none, or nobody who asks is left."""
    try:
        task: tuple[Path, Reading] | None = connection.recv()
    except EOFError:
        return None
    return task


class Reader:
    """A child process that reads files; another one where it dies or hangs.

    Args:
        work: What it does with a file.
        seconds: For one file.
    """

    def __init__(self, work: Callable[[Path, Reading], str] = outcome, seconds: float = SECONDS) -> None:
        self.work, self.seconds = work, seconds
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["prevox.data.readers.dicom", "SimpleITK", "nibabel"])
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_child, args=(other, self.work))
        self.process.start()
        other.close()

    def read(self, path: Path, reading: Reading) -> tuple[str, str]:
        """The outcome and, of a fault, what it says."""
        try:
            self.connection.send((path, reading))
            if self.connection.poll(self.seconds):
                found: tuple[str, str] = self.connection.recv()
                return found
            result = ("hung", f"more than {self.seconds} s")
        except (EOFError, OSError):
            self.process.join(self.seconds)
            result = ("crashed", f"exit code {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self._start()
        return result

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


def fuzz(count: int, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Read `count` damaged files; counts of outcomes, the share that got past the header, and each fault."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "sound").mkdir()
        sound = seeds(root / "sound")
        reader = Reader()
        for number in range(count):
            folder = root / "case"
            folder.mkdir()
            path, reading = write_case(number, seed, sound, folder)
            before = listing(root)
            kind, words = reader.read(path, reading)
            if listing(root) != before:
                kind, words = "wrote elsewhere", "files changed"
            counts[kind] += 1
            if kind in BAD:
                faults.append(f"{number} ({path.name}): {kind}: {words}")
                if keep is not None:
                    shutil.copytree(folder, keep / str(number), symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
        reader.close()
    past = (counts[READ] + counts[HEADER_ONLY]) / max(count, 1)
    return {
        "files": count,
        "seed": seed,
        "outcomes": dict(sorted(counts.items())),
        "past_header": round(past, 3),
        "faults": faults,
        "seconds": round(time.perf_counter() - began, 1),
    }


def listing(root: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of everything below a folder: readers write nothing at all."""
    found = [(path, path.lstat()) for path in root.rglob("*")]
    return sorted((str(path), state.st_size, state.st_mtime_ns) for path, state in found)


def command(words: str, fuzz: Callable[[int, int, Path | None], dict[str, Any]], count: int) -> int:
    """Fuzz from the command line; print the counts. 1 if there was a fault, else 0."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    result = fuzz(options.count, options.seed, options.keep)
    print(json.dumps(result, indent=2))
    return int(bool(result["faults"]))


if __name__ == "__main__":
    sys.exit(command(__doc__ or "", fuzz, 2000))
