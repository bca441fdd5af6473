"""The user's choices of how files are read, brought to the entries of a catalogue: what `ReadingConfig` says."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from prevox.config.data import ReadingConfig
from prevox.data.layouts import Entry
from prevox.data.readers import Header, Reading, read_header
from prevox.errors import DataError

_THREADS = 8


def chosen(entries: Sequence[Entry], config: ReadingConfig) -> list[Entry]:
    """The entries with how they are read; with `volumes: split` an entry for each volume of a 4D file.

    A volume is called IMAGE_v000 and on, and belongs to the image's subject. A label map of one volume is the label map
    of all; of one with as many volumes, each has its own.
    """
    reading = Reading(colour=config.colour, complex=config.complex, pages=config.stack == "pages")
    channels = config.volumes == "channels"
    entries = [replace(entry, reading=reading, volumes_are_channels=channels) for entry in entries]
    if config.volumes != "split":
        return entries
    with ThreadPoolExecutor(_THREADS) as pool:
        return [part for parts in pool.map(_split, entries) for part in parts]


def _split(entry: Entry) -> list[Entry]:
    """An entry for each volume of the file; the entry itself if it has one only, or its channels are named."""
    if entry.problem is not None or len(entry.paths) > 1:
        return [entry]
    header = _header(entry)
    if header is None or header.colour or header.channels in (1, entry.channels):
        return [entry]
    digits = max(3, len(str(header.channels - 1)))
    return [
        replace(entry, image=f"{entry.image}_v{number:0{digits}}", reading=replace(entry.reading, volume=number))
        for number in range(header.channels)
    ]


def _header(entry: Entry) -> Header | None:
    """None for a file that cannot be used: whoever reads it will say why."""
    try:
        return read_header(entry.paths[0], entry.reading)
    except (DataError, OSError, MemoryError):
        return None
