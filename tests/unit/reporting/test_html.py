import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from prevox.config.runs import ReportConfig
from prevox.errors import RunError
from prevox.reporting import drawing, figures
from prevox.reporting.folders import read_runs
from prevox.reporting.overlays import choose, overlays
from prevox.reporting.report import report
from prevox.reporting.scans import CaseFiles
from prevox.reporting.tables import mean_dice

pytestmark = pytest.mark.unit

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Balance(HTMLParser):
    """Every element that opens must close, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")


def test_page_is_well_formed(page):
    parser = Balance()
    parser.feed(page)
    assert (parser.faults, parser.open) == ([], [])


def test_page_refers_to_nothing_outside_itself(page):
    page = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)  # checked below
    assert re.findall(r"(?:https?:)?//[a-z0-9][\w.-]+", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)) == []
    references = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert references
    assert all(reference.startswith(("#", "data:image/")) for reference in references)
    assert "<link" not in page
    assert "@import" not in page


def test_names_from_data_are_escaped(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script") == 2  # the viewer's data and the page's own script
    assert "A &amp; B" in page


def test_results_stand_with_their_intervals(page):
    assert "seg: mean Dice 0.750 (95 % interval " in page
    assert "3 subjects, 4 cases" in page
    assert "scratch minus seg, case by case: −0.100 (−0.100 to −0.100); the interval excludes 0." in page
    for value in ("0.650", "0.850", "0.750", "3.25", "0.900"):
        assert f'<span class="value">{value}</span> <span class="spread">' in page
    assert "seg is not scored on 1 reference for want of a prediction." in page
    assert "25 min 8 s" in page  # both fine-tunings together


def test_training_transfer_settings_and_command_are_there(page):
    for text in ("Learning rate", "Throughput", "adapted: 1 tensor<", "positions: interpolated", "optim.lr"):
        assert text in page
    assert "prevox finetune --out run" in page
    assert "torch 2.13.0" in page


def test_pictures_are_the_first_and_the_newest(page):
    assert "reconstruction, step 100" in page
    assert "reconstruction, step 300" in page
    assert "step 200" not in page


def test_run_without_anything_but_settings_gives_a_page(empty_run):
    page = report(ReportConfig(runs=(empty_run,)))
    assert page == empty_run / "report.html"
    text = page.read_text()
    assert "Nothing is evaluated yet" in text
    assert "mae on network, 75 % masked" in text
    assert 'id="results"' not in text


def test_scans_that_moved_are_said_and_do_not_stop_the_page(full_run):
    for path in (full_run / "scans").iterdir():
        path.unlink()
    text = report(ReportConfig(runs=(full_run,))).read_text()
    assert text.count("cannot be shown") == 3
    assert "no such file" in text


def test_page_that_cannot_be_written_is_an_error(empty_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        report(ReportConfig(runs=(empty_run,), out=tmp_path / "file" / "report.html"))


def test_best_median_and_worst_case():
    assert choose(pd.Series({"a": 0.1, "b": 0.9, "c": 0.5, "d": np.nan, "e": 0.6, "f": 0.2})) == [
        ("best", "b"),
        ("median", "c"),
        ("worst", "a"),
    ]
    assert choose(pd.Series({"a": 0.1, "b": 0.9})) == [("best", "b"), ("worst", "a")]
    assert choose(pd.Series({"a": 0.1})) == [("best", "a")]
    assert choose(pd.Series(dtype=float)) == []


def test_overlay_shows_the_largest_reference_slice_in_canonical_orientation(full_run):
    (run,) = read_runs((full_run,))
    shown, problems = overlays(run, mean_dice(run))
    assert problems == []
    assert [overlay.rank for overlay in shown] == ["best", "median", "worst"]
    best = shown[0]
    assert best.image == "d"
    assert (best.slice_number, best.slices) == (7, 8)  # file slice 1 of 8, counted from the other end
    assert best.aspect == pytest.approx(1.0)
    label_YX = np.zeros((16, 12))
    label_YX[3:11, 2:8] = 2
    assert np.array_equal(best.reference_YX, label_YX[::-1, ::-1])  # the file runs to the left and to the back
    # class 1: 4 · 6 · 2 voxels of 2 mm³, the prediction lacks half; class 2: 48, the prediction lacks a third
    assert best.volumes == {1: pytest.approx((0.096, 0.048)), 2: pytest.approx((0.096, 0.064))}


def test_overlay_of_a_picture_is_the_picture(tmp_path):
    rows = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    mask = (rows > 20).astype(np.uint8)
    (tmp_path / "predictions").mkdir()
    for name, array in (("picture", rows), ("predictions/mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    mask_file = tmp_path / "predictions" / "mask.png"
    run = SimpleNamespace(name="a", files={"a": CaseFiles(mask_file, mask_file, tmp_path / "picture.png")})
    ((shown,), problems) = overlays(run, pd.Series({"a": 0.5}))
    assert problems == []
    # the report draws rows and columns from the end (anterior up, the subject's right on the left)
    assert (shown.image_YX[::-1, ::-1] == rows).all()
    assert (shown.reference_YX[::-1, ::-1] == mask).all()
    assert (shown.prediction_YX[::-1, ::-1] == mask).all()


def test_long_curves_are_averaged_down():
    x, y = figures.thin(np.arange(6000.0), np.where(np.arange(6000) == 7, np.nan, 2.0))
    assert len(x) <= figures.MAX_POINTS
    assert np.allclose(y, 2.0)


def test_figure_takes_its_ink_from_the_page_and_escapes_names():
    row = {"group": "a<b & $x", "stroke": drawing.run_stroke(0), "mean": 0.8, "low": 0.7, "high": 0.9}
    svg = figures.intervals([row], "Dice").inline()
    assert "currentColor" in svg
    assert "a&lt;b &amp; $x" in svg
    assert drawing.INK not in svg
    assert figures.intervals([{**row, "mean": float("nan")}], "Dice") is None


def test_report_needs_no_torch():
    code = "import sys, prevox.reporting.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_two_of_many_runs_look_the_same():
    strokes = [drawing.run_stroke(number) for number in range(30)]
    assert len(set(strokes)) == 30
    assert {stroke.line for stroke in strokes[:10]} == {"solid"}
    rows = pd.DataFrame({"step": range(5), "loss": np.arange(5.0) + 1})
    plain, dashed = (figures.curve([(strokes[number], rows)], "loss").inline() for number in (0, 10))
    assert plain != dashed
    assert "stroke-dasharray" in dashed


def linear(colour: str) -> np.ndarray:
    """Linear-light RGB of "#rrggbb", by the formula of sRGB."""
    encoded = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def test_colours_of_runs_can_be_read_on_both_pages_and_by_the_colour_blind():
    """Contrast as WCAG defines it; distances in Oklab, as trichromats, protanopes and deuteranopes see the colours.

    Matrices: Machado, Oliveira and Fernandes 2009 (severity 1); B. Ottosson 2020. One twentieth is a clear difference.
    """
    sheet = (Path(drawing.__file__).parent / "templates" / "report.css").read_text()
    pages = set(re.findall(r"--page: (#[0-9a-f]{6})", sheet))
    assert len(pages) == 2
    brightness = np.array([0.2126, 0.7152, 0.0722])
    for page in pages:
        for colour in drawing.RUN_COLOURS:
            dark, light = sorted((linear(page) @ brightness, linear(colour) @ brightness))
            assert (light + 0.05) / (dark + 0.05) >= 3, (page, colour)
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    oklab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    for sight in (np.eye(3), np.array(protan), np.array(deutan)):
        seen = [np.clip(sight @ linear(colour), 0, 1) for colour in drawing.RUN_COLOURS]
        places = [np.array(oklab) @ np.cbrt(np.array(cones) @ colour) for colour in seen]
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(places, 2)) > 0.05


def test_eleventh_run_is_marked_by_another_line(tmp_path, full_run):
    others = []
    for number in range(10):
        (tmp_path / f"other{number}").mkdir()
        (tmp_path / f"other{number}" / "config.yaml").write_text("verb: finetune\n")
        others.append(tmp_path / f"other{number}")
    text = report(ReportConfig(runs=(*others, full_run))).read_text()
    assert 'style="border-top:3px dashed #2f7dd1"></span>seg' in text


def test_section_of_pictures_is_named_by_what_they_show(page, tmp_path, empty_run):
    assert "<h2>Reconstructions</h2>" in page
    (empty_run / "pictures" / "step_00000100" / "reconstruction.png").rename(
        empty_run / "pictures" / "step_00000100" / "segmentation.png"
    )
    text = report(ReportConfig(runs=(empty_run,))).read_text()
    assert "<h2>Segmentations and reconstructions</h2>" in text
    assert 'href="#pictures">Segmentations and reconstructions</a>' in text


def test_tolerances_that_differ_are_told_and_not_compared(full_run, other_run):
    path = other_run / "evaluation" / "summary.json"
    same = report(ReportConfig(runs=(full_run, other_run))).read_text()
    assert same.count("<span>NSD at 1 mm</span>") == 2  # scores and differences
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tolerance_mm": 2.5}))
    text = report(ReportConfig(runs=(full_run, other_run))).read_text()
    assert text.count("<span>NSD at 1 mm (seg), 2.5 mm (scratch)</span>") == 1
    assert text.count("<span>NSD") == 1


def test_failed_cases_are_told(full_run):
    path = full_run / "evaluation" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"failed": ["p", "q"]}))
    assert "seg could not segment 2 cases with a reference" in report(ReportConfig(runs=(full_run,))).read_text()


def test_memory_that_is_not_known_is_left_out(full_run):
    path = full_run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peak_mb": None}))
    assert "GB at most" not in report(ReportConfig(runs=(full_run,))).read_text()


def test_brackets_in_the_pages_path_are_no_markup(empty_run, tmp_path, capsys):
    report(ReportConfig(runs=(empty_run,), out=tmp_path / "q[/y]" / "report.html"))
    assert "q[/y]" in capsys.readouterr().out.replace("\n", "")
