"""Pictures with a table: PNG and JPEG at any depth, and above them one CSV or TSV file with a row for each.

The table is found by its values (file names or their stems), and joined without being asked for. Everything else is as
in a plain folder: `images/` and `labels/` side by side are paired, for one.
"""

from collections.abc import Sequence
from dataclasses import replace
from os.path import commonpath
from pathlib import Path

from prevox.console import warn
from prevox.data.join import listed
from prevox.data.layouts import folder
from prevox.data.layouts.base import Entry, only_pictures
from prevox.errors import DataError


def recognise(root: Path) -> list[Entry] | None:
    """Read the folder if it holds pictures only, and one table describes most of them; else None."""
    files = only_pictures(root)
    if not files:
        return None
    tables = _tables(root, files)
    entries = folder.recognise(root) if tables else None
    table = _describing([entry.image for entry in entries], tables) if entries else None
    return [replace(entry, layout="pictures", table=table) for entry in entries] if entries and table else None


def refuse_unlisted(entries: Sequence[Entry]) -> list[Entry]:
    """Give the pictures that their table does not list this as their problem, so that they are left out by name."""
    known = {
        table: listed([entry.image for entry in entries if entry.table == table], table)
        for table in {entry.table for entry in entries if entry.layout == "pictures"}
        if table is not None
    }
    return [
        entry
        if entry.table not in known or entry.problem is not None or entry.image in known[entry.table]
        else replace(entry, problem=_unlisted(entry, entry.table))
        for entry in entries
    ]


def _unlisted(entry: Entry, table: Path) -> DataError:
    return DataError(
        entry.paths[0],
        found=f"no row in {table}",
        expected="a row for each picture, as the others have",
        remedy="Complete the table, or move the picture elsewhere.",
    )


def _tables(root: Path, files: Sequence[Path]) -> list[Path]:
    """CSV and TSV files in the folders that hold all pictures; beside a folder `images`, too."""
    home = root.parent if root.name.startswith("images") else root
    deepest = Path(commonpath([path.parent for path in files]))
    above = [place for place in [deepest, *deepest.parents] if place.is_relative_to(home)]
    found = [path for place in above for suffix in ("csv", "tsv") for path in place.glob(f"*.{suffix}")]
    return sorted(path for path in found if not path.name.startswith("."))


def _describing(images: Sequence[str], tables: Sequence[Path]) -> Path | None:
    """The only table with a row for each picture; else the only one with a row for any, if it has most of them."""
    counts = {table: len(listed(images, table)) for table in tables}
    for least in (len(images), 1):
        found = [table for table, count in counts.items() if count >= least]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            warn(f"several tables describe these pictures ({names}): none is joined; --table says which is meant")
            return None
        if found and 2 * counts[found[0]] > len(images):
            return found[0]
    return None
