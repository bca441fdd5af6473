"""The report in a real browser: opened from disk, without network, by mouse and by keyboard."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prevox.config.runs import CompareConfig, EvaluateConfig, ReportConfig
from prevox.evaluation.compare import compare
from prevox.evaluation.evaluate import evaluate
from prevox.reporting.report import report
from tests.e2e.browser import Browser
from tests.unit.reporting.compared import make_experiment
from tests.unit.reporting.conftest import HOSTILE, make_empty, make_full, make_other

pytestmark = pytest.mark.e2e
PLANES = ("axial", "coronal", "sagittal")
# where pictures of the pages go for somebody to look at; without it they stay in the test's own folder
PICTURES = os.environ.get("PREVOX_TEST_PICTURES")


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated runs, one case with a hostile name (only the first run's masks are known), a pre-training run."""
    folder = tmp_path_factory.mktemp("runs")
    runs = (make_full(folder), make_other(folder), make_empty(folder))
    return report(ReportConfig(runs=runs, out=folder / "report.html", title="Runs"))


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one experiment; a case has a hostile name."""
    folder = tmp_path_factory.mktemp("comparison")
    compare(CompareConfig(runs=make_experiment(folder), out=folder / "out"))
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def evaluation_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One evaluation of masks whose run is not known."""
    folder = tmp_path_factory.mktemp("evaluation")
    run = make_experiment(folder)[0]
    (run / "config.yaml").unlink()
    (run / "classes.json").unlink()
    return report(ReportConfig(runs=(run,), out=folder / "report.html"))


@pytest.fixture
def opened(browser: Browser, run_page: Path) -> Browser:
    browser.open(run_page)
    browser.wait_for("document.getElementById('viewer').dataset.ready !== undefined")
    browser.settle()
    return browser


def part(name: str) -> str:
    return f'#viewer [data-part="{name}"]'


def pixels(browser: Browser, plane: str = "axial") -> str:
    """What a plane shows; equal texts are equal pictures."""
    browser.settle()
    return str(browser.js(f"document.querySelector('{part(plane)} canvas').toDataURL()"))


def colour(browser: Browser, plane: str, x: float, y: float) -> tuple[int, ...]:
    """Red, green and blue of a plane at a share of its width and height."""
    browser.settle()
    return tuple(
        browser.js(
            f"(() => {{ const c = document.querySelector('{part(plane)} canvas');"
            f"return [...c.getContext('2d').getImageData({x} * c.width, {y} * c.height, 1, 1).data].slice(0, 3); }})()"
        )
    )


def choose(browser: Browser, name: str, value: str) -> None:
    """Set a control and tell the page, as a user's choice does."""
    browser.js(
        f"(() => {{ const e = document.querySelector('{part(name)}'); e.value = {value!r};"
        "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
    )
    browser.settle()


def column(browser: Browser, table: str, number: int) -> list[str]:
    """Texts of the visible rows of a column."""
    rows = f"[...document.querySelectorAll({(table + ' tbody tr')!r})].filter((row) => !row.hidden)"
    return list(browser.js(f"{rows}.map((row) => row.cells[{number}].textContent)"))


def picture(browser: Browser, name: str, tmp_path: Path) -> Path:
    return browser.screenshot(Path(PICTURES or tmp_path) / f"{name}.png")


def test_opens_from_disk_without_network_and_without_complaint(opened: Browser, run_page: Path) -> None:
    assert [address for address in opened.requests if not address.startswith("data:")] == [run_page.resolve().as_uri()]
    assert opened.complaints == []


def test_the_page_may_not_reach_the_network_nor_run_foreign_scripts(opened: Browser) -> None:
    assert opened.js("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"
    opened.js(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = true';"
        "document.body.append(s); })()"
    )
    assert opened.js("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)


def test_names_from_data_are_text(opened: Browser) -> None:
    assert HOSTILE in opened.js("document.querySelector('#viewer [data-part=case]').textContent")
    assert HOSTILE in opened.js("document.querySelector('#all-cases').textContent")
    assert opened.js("document.scripts.length") == 2


@pytest.mark.parametrize("plane", PLANES)
def test_slices_scroll_by_slider_keyboard_and_wheel(opened: Browser, plane: str) -> None:
    slider, canvas = f"{part(plane)} input", f"{part(plane)} canvas"
    opened.js(f"document.querySelector('{slider}').focus()")
    opened.key("Home")
    first = pixels(opened, plane)
    opened.key("ArrowUp")
    second = pixels(opened, plane)
    assert opened.js(f"document.querySelector('{slider}').value") == "1"
    assert opened.js(f"document.querySelector('{part(plane)} output').textContent").startswith("2 /")
    assert first != second
    opened.wheel(canvas, 100)  # towards the first slice
    opened.wait_for(f"document.querySelector('{slider}').value === '0'")  # a busy browser handles it later
    assert pixels(opened, plane) == first
    opened.wheel(canvas, -100)
    opened.wait_for(f"document.querySelector('{slider}').value === '1'")
    assert pixels(opened, plane) == second
    opened.key("End")
    last = opened.js(f"document.querySelector('{slider}').max")
    assert opened.js(f"document.querySelector('{slider}').value") == last
    assert pixels(opened, plane) not in (first, second)


def test_the_wheel_scrolls_the_page_until_a_plane_is_chosen(opened: Browser) -> None:
    opened.js("document.activeElement.blur()")
    before = pixels(opened)
    opened.wheel(f"{part('axial')} canvas", 100)
    assert pixels(opened) == before


def test_overlay_is_toggled_by_mouse_and_key_and_follows_the_opacity(opened: Browser) -> None:
    with_overlay = pixels(opened)
    opened.click(part("shown"))
    without = pixels(opened)
    assert without != with_overlay
    opened.key("o")
    assert pixels(opened) == with_overlay
    choose(opened, "opacity", "90")
    strong = pixels(opened)
    assert strong not in (with_overlay, without)
    choose(opened, "opacity", "0")
    assert pixels(opened) == without


def test_planes_show_what_was_predicted_where_it_was_predicted(opened: Browser) -> None:
    """The boxes of `write_predictions`: voxel (i, j, k) of the file lies in a canonical plane at known places.

    The files run to the left, back and down, so what is drawn has i and j in the file's own direction: plane k = 2 is
    axial slice 8 − 2 = 6 of 8. Class 1 fills columns 4 and 5 of 12 in the prediction, 2 to 5 in the reference.
    """
    opened.click(part("crosshair"))
    choose(opened, "opacity", "100")
    choose(opened, "overlay", "prediction")
    opened.js(f"document.querySelector('{part('axial')} input').focus()")
    opened.key("Home")
    for _ in range(5):
        opened.key("ArrowUp")
    assert opened.js(f"document.querySelector('{part('axial')} output').textContent") == "6 / 8"
    one = (0xFF, 0xB0, 0x00)
    inside, missed, outside = (5 / 12, 6 / 16), (3 / 12, 6 / 16), (10 / 12, 6 / 16)
    assert colour(opened, "axial", *inside) == one
    assert colour(opened, "axial", *missed) != one
    choose(opened, "overlay", "reference")
    assert colour(opened, "axial", *inside) == one
    assert colour(opened, "axial", *missed) == one
    red, green, blue = colour(opened, "axial", *outside)
    assert red == green == blue
    choose(opened, "overlay", "disagreement")
    assert colour(opened, "axial", *missed) == (255, 92, 92)
    red, green, blue = colour(opened, "axial", *inside)
    assert red == green == blue


def test_window_changes_the_greys_and_resets(opened: Browser) -> None:
    before = pixels(opened)
    lowest = opened.js(f"document.querySelector('{part('level')}').min")
    choose(opened, "level", lowest)
    assert pixels(opened) != before
    opened.click(part("reset"))
    assert pixels(opened) == before


def test_a_click_moves_the_cross_hair_to_it(opened: Browser) -> None:
    opened.click(f"{part('axial')} canvas", 0.99, 0.01)
    values = [opened.js(f"document.querySelector('{part(plane)} input').value") for plane in ("coronal", "sagittal")]
    assert values == ["0", "11"]  # the first row from the front, the last of 12 columns
    assert opened.js("document.activeElement.parentElement.dataset.part") == "axial"


def test_another_case_is_opened_from_its_picture(opened: Browser) -> None:
    before = pixels(opened)
    button = f"button[data-case={HOSTILE!r}][data-run='seg']"
    opened.click(button)
    opened.wait_for(f"document.getElementById('viewer').dataset.ready === {(HOSTILE + '/seg')!r}")
    assert pixels(opened) != before
    assert "0.600" in opened.js(f"document.querySelector('{part('note')}').textContent")  # mean of 0.5 and 0.7


def test_a_table_sorts_by_mouse_and_keyboard(opened: Browser) -> None:
    table, head = "#all-cases table", "#all-cases thead th:nth-child(4)"
    means = column(opened, table, 3)
    assert means == ["0.600", "0.700", "0.800", "0.900"]
    opened.click(f"{head} button")
    assert opened.js(f"document.querySelector('{head}').ariaSort") == "ascending"
    opened.js(f"document.querySelector('{head} button').focus()")
    opened.key("Enter")
    assert opened.js(f"document.querySelector('{head}').ariaSort") == "descending"
    assert column(opened, table, 3) == means[::-1]
    opened.click("#all-cases thead th:nth-child(1) button")
    assert opened.js(f"document.querySelector('{head}').ariaSort") is None
    assert column(opened, table, 0) == sorted([HOSTILE, "b", "c", "d"])


def test_a_table_filters_by_words_and_menu(opened: Browser) -> None:
    table = "#all-cases table"
    opened.type("#all-cases input[type=search]", "s1")
    assert column(opened, table, 0) == [HOSTILE, "b"]
    assert opened.js("document.querySelector('#all-cases [role=status]').textContent") == "2 of 12 rows"
    opened.js(
        "(() => { const menu = document.querySelector('#all-cases select'); menu.value = '';"
        "menu.dispatchEvent(new Event('change')); })()"
    )
    assert len(column(opened, table, 0)) == 6  # two classes and their mean


def test_every_control_is_reached_by_the_keyboard(opened: Browser) -> None:
    shown = "[...document.querySelectorAll('button, select, input')].filter(e => e.checkVisibility())"
    wanted = set(opened.js(f"{shown}.map((e, at) => at)"))
    assert len(wanted) > 10
    opened.js(f"{shown}.forEach((e, at) => e.mark = at)")
    opened.js("document.activeElement.blur()")
    reached = set()
    for _ in range(3 * len(wanted)):
        opened.key("Tab")
        reached.add(opened.js("document.activeElement.mark"))
    assert wanted <= reached


def test_light_dark_and_the_readers_choice(browser: Browser, run_page: Path) -> None:
    def background() -> str:
        browser.settle()
        return str(browser.js("getComputedStyle(document.body).backgroundColor"))

    browser.open(run_page, scheme="light")
    light = background()
    browser.scheme("dark")
    dark = background()
    assert light != dark
    for expected in (dark, light, dark):  # the button: dark, light, as the system
        browser.click("#theme")
        assert background() == expected
    browser.scheme("light")
    assert background() == light


def test_the_page_of_a_comparison(browser: Browser, comparison_page: Path) -> None:
    browser.open(comparison_page)
    browser.wait_for("document.getElementById('viewer').dataset.ready !== undefined")
    own = [address for address in browser.requests if not address.startswith("data:")]
    assert own == [comparison_page.resolve().as_uri()]
    assert browser.complaints == []
    first = pixels(browser, "axial")
    choose(browser, "run", "2")  # its masks are moved by two voxels
    browser.wait_for("document.getElementById('viewer').dataset.ready.endsWith('/mae-5')")
    assert pixels(browser, "axial") != first
    shown = browser.js("document.querySelector('#viewer [data-part=case]').selectedOptions[0].textContent")
    assert shown == "e (best)"
    # intervals and p-values sort by their first number: -0.07, 0.02, 0.09
    tables = browser.js("[...document.querySelectorAll('#tables h3')].map((head) => head.textContent)")
    place = tables.index("Differences in Dice")
    browser.js(f"document.querySelectorAll('#tables table')[{place}].id = 'differences'")
    browser.click("#differences thead th:nth-child(3) button")
    assert [text.split()[0] for text in column(browser, "#differences", 2)] == ["−0.070", "+0.020", "+0.090"]


def test_the_page_of_an_evaluation(browser: Browser, evaluation_page: Path) -> None:
    browser.open(evaluation_page)
    browser.wait_for("document.getElementById('viewer').dataset.ready !== undefined")
    assert browser.complaints == []
    before = pixels(browser)
    browser.click(part("shown"))
    assert pixels(browser) != before
    heads = browser.js("[...document.querySelectorAll('#all-cases thead th')].map((head) => head.textContent)")
    assert heads == ["Case", "Subject", "Class", "Dice", "HD95 (mm)", "NSD", "Volume error (ml)"]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run_page", "evaluation_page", "comparison_page"])
def test_nothing_is_wider_than_the_window(
    browser: Browser, name: str, width: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(name), width=width)
    browser.wait_for("document.getElementById('viewer').dataset.ready !== undefined")
    browser.settle()
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert picture(browser, f"{name}-{width}", tmp_path).stat().st_size > 0


@pytest.mark.parametrize("name", ["run_page", "comparison_page"])
def test_on_paper_everything_is_there_and_black_on_white(
    browser: Browser, name: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(name), scheme="dark")
    browser.send(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    browser.settle()
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.js("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    hidden = "[...document.querySelectorAll('nav, #theme, .filter, .controls')].every((e) => e.offsetHeight === 0)"
    assert browser.js(hidden)
    assert browser.js(
        "[...document.querySelectorAll('.scroll')].every((e) => getComputedStyle(e).overflow === 'visible')"
    )


@pytest.fixture(scope="module")
def classes_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two classifications, compared and reported; a class and a case have hostile names."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 2, (40, 2))
    names = [HOSTILE, *(f"c{number}" for number in range(1, 40))]
    classes = ["nodule", "<b>mass</b>"]
    pd.DataFrame(truths, columns=classes).assign(image=names).to_csv(folder / "labels.csv", index=False)
    for run, strength in (("weak", 0.5), ("strong", 2.0)):
        p = 1 / (1 + np.exp(-(strength * (2 * truths - 1) + rng.normal(size=truths.shape))))
        pd.DataFrame(p, columns=classes).assign(image=names).to_csv(folder / f"{run}.csv", index=False)
        words = {"predictions": folder / f"{run}.csv", "references": folder / "labels.csv", "out": folder / run}
        evaluate(EvaluateConfig(**words))
    compare(CompareConfig(runs=(str(folder / "weak"), str(folder / "strong")), out=folder / "out"))
    runs = report(ReportConfig(runs=(folder / "weak", folder / "strong"), out=folder / "runs.html"))
    return {"comparison": folder / "out" / "report.html", "runs": runs}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["comparison", "runs"])
def test_the_pages_of_classifications(
    browser: Browser, classes_pages: dict[str, Path], name: str, width: int, tmp_path: Path
) -> None:
    browser.open(classes_pages[name], width=width)
    browser.settle()
    assert [address for address in browser.requests if not address.startswith("data:")] == [
        classes_pages[name].resolve().as_uri()
    ]
    assert browser.complaints == []
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("document.getElementById('viewer')") is None
    assert "<b>mass</b>" in browser.js("document.body.textContent")
    assert browser.js("document.querySelectorAll('main b').length") == 0
    assert browser.js("document.querySelectorAll('svg').length") >= 3
    assert picture(browser, f"classes_{name}-{width}", tmp_path).stat().st_size > 0


def test_probabilities_sort_and_are_filtered_by_truth(browser: Browser, classes_pages: dict[str, Path]) -> None:
    browser.open(classes_pages["comparison"])
    browser.settle()
    table = "#all-cases table"
    browser.click("#all-cases thead th:nth-child(6) button")
    values = [float(text) for text in column(browser, table, 5)]
    assert len(values) == 80
    assert values == sorted(values)
    browser.js(
        "(() => { const menu = document.querySelectorAll('#all-cases select')[1]; menu.value = 'yes';"
        "menu.dispatchEvent(new Event('change')); })()"
    )
    assert set(column(browser, table, 3)) == {"yes"}
