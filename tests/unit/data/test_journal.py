"""The journal of a catalogue: rows come back as they were written, whatever has torn it, and are not kept in memory."""

import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from tests.unit.data.test_catalogue import pairs, run

from prevox.config.data import CatalogueConfig
from prevox.data.journal import Journal, Rows, Thumbnails, read_line
from prevox.errors import RunError

pytestmark = pytest.mark.unit


def journal(tmp_path: Path, shard: str | None = None) -> Journal:
    return Journal(CatalogueConfig(paths=(tmp_path,), out=tmp_path / "c.parquet", shard=shard))


def row(number: int, picture: str = "aGk=") -> dict:
    return {"image": f"ä_{number}", "affine": [1.5, number], "label_path": None, "thumbnail": picture}


def fill(tmp_path: Path, numbers, shard: str | None = None, picture: str = "aGk=") -> dict[int, object]:
    writer = journal(tmp_path, shard)
    lines = {n: writer.add(f"key{n}", f"stamp{n}" if n % 2 else None, row(n, picture)) for n in numbers}
    writer.close()
    return lines


def without_picture(number: int) -> dict:
    return {name: value for name, value in row(number).items() if name != "thumbnail"}


def test_rows_come_back_in_order(tmp_path):
    lines = fill(tmp_path, [4, 1, 3])
    rows = Rows(lines)
    assert rows.positions == [1, 3, 4]
    assert list(rows) == [without_picture(n) for n in (1, 3, 4)]
    assert list(rows) == list(rows)  # may be gone through again
    assert read_line(lines[3]) == row(3)
    known = journal(tmp_path).known
    assert {key: found.stamp for key, found in known.items()} == {"key4": None, "key1": "stamp1", "key3": "stamp3"}
    assert {key: found.line for key, found in known.items()} == {f"key{n}": lines[n] for n in lines}


def test_pictures_are_read_when_they_are_asked_for(tmp_path):
    lines = fill(tmp_path, range(3), picture="cGljdHVyZQ==")
    pictures = Thumbnails({f"i{n}": line for n, line in lines.items()})
    assert (len(pictures), list(pictures), pictures["i1"]) == (3, ["i0", "i1", "i2"], "cGljdHVyZQ==")
    assert pictures.get("other") is None


@pytest.mark.parametrize("lost", [1, 3, 6, 20, 60, 80])  # bytes: the line's end, the picture, the row, the key
def test_a_torn_line_costs_itself(tmp_path, lost):
    fill(tmp_path, [0, 1])
    path = tmp_path / "c.rows.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    assert list(journal(tmp_path).known) == ["key0"]
    lines = fill(tmp_path, [2])  # after half a line
    known = journal(tmp_path).known
    assert known["key2"].line == lines[2]
    assert read_line(known["key2"].line) == row(2)
    assert read_line(known["key0"].line) == row(0)
    assert "key1" not in known or read_line(known["key1"].line) == row(1)  # the end alone was lost, and came after all


@pytest.mark.parametrize(
    "text", ["[1]", "{}", "[]", '[{"key": 1}]', "nö", '[{"key":"k","stamp":null,"row":{}},"a]', ""]
)
def test_lines_of_another_origin_are_passed_over(tmp_path, text):
    fill(tmp_path, [0])
    with (tmp_path / "c.rows.jsonl").open("a") as file:
        file.write(text + "\n")
    assert list(journal(tmp_path).known) == ["key0"]


def test_parts_are_gathered_in_one_file_in_order(tmp_path):
    lines = fill(tmp_path, [0, 3], "1/2") | fill(tmp_path, [1, 2], "2/2")
    reader = journal(tmp_path)
    lines[4] = reader.add("key4", None, row(4))
    reader.close()
    del lines[2]  # an image that is gone
    places = reader.compact(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["c.rows.jsonl"]
    assert list(Rows(places)) == [without_picture(n) for n in (0, 1, 3, 4)]
    text = (tmp_path / "c.rows.jsonl").read_text().splitlines()
    assert [json.loads(line)[0]["key"] for line in text] == ["key0", "key1", "key3", "key4"]
    before = (tmp_path / "c.rows.jsonl").stat().st_mtime_ns
    again = journal(tmp_path)
    assert again.compact(places) is places  # nothing to do
    assert (tmp_path / "c.rows.jsonl").stat().st_mtime_ns == before


def test_a_journal_that_another_run_replaces_is_said(tmp_path):
    lines = fill(tmp_path, [0, 1])
    (tmp_path / "c.rows.jsonl").write_text("[]\n" * 200)
    with pytest.raises(RunError, match=r"c\.rows\.jsonl: was changed or removed by another run.*Repeat"):
        list(Rows(lines))
    (tmp_path / "c.rows.jsonl").unlink()
    with pytest.raises(RunError, match=r"c\.rows\.jsonl: was changed or removed by another run.*Repeat"):
        list(Rows(lines))


def test_a_line_in_the_place_of_another_is_told_by_its_key(tmp_path):
    lines = fill(tmp_path, [1, 3])
    path = tmp_path / "c.rows.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    assert len(first) == len(second)
    path.write_bytes(second + first)
    with pytest.raises(RunError, match="another run"):
        list(Rows(lines))


def test_no_room_to_gather_keeps_what_is_there(tmp_path, monkeypatch):
    lines = fill(tmp_path, [0, 3], "1/2") | fill(tmp_path, [1, 2], "2/2")

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    places = journal(tmp_path).compact(lines)
    assert list(Rows(places)) == [without_picture(n) for n in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.rows.1-of-2.jsonl", "c.rows.2-of-2.jsonl"]


def test_a_journal_of_another_version_is_said(tmp_path, capsys):
    text = '{"key":"k","stamp":null,"row":{}}\n'
    (tmp_path / "c.rows.jsonl").write_text(3 * text)
    assert journal(tmp_path).known == {}
    said = " ".join("".join(capsys.readouterr()).split())
    assert "3 of its lines are torn or of another version of Prevox: read again" in said


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    """400 pictures of 50 kB are 20 MB; reading, gathering and going through the rows takes a tenth of it at most."""
    fill(tmp_path, range(400), "1/1", picture="A" * 50_000)
    assert (tmp_path / "c.rows.1-of-1.jsonl").stat().st_size > 20e6
    tracemalloc.start()
    try:
        reader = journal(tmp_path)
        places = reader.compact({n: reader.known[f"key{n}"].line for n in range(400)})
        images = [row["image"] for row in Rows(places)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(images) == 400
    assert peak < 2e6


def test_files_that_were_only_touched_keep_their_pictures(tmp_path):
    root = pairs(tmp_path / "scans", 2)
    before = dict(run(tmp_path, root).thumbnails)
    assert set(before) == {"case_00", "case_01"}
    assert all(len(picture) > 100 for picture in before.values())
    os.utime(root / "images" / "case_00.nii.gz", ns=(10**18, 10**18))
    assert dict(run(tmp_path, root).thumbnails) == before
