"""The page beside a catalogue in a real browser: opened from disk, filtered by mouse and by keyboard, on a phone."""

import os
from pathlib import Path

import pytest

from prevox.config.data import CatalogueConfig
from prevox.verbs.catalogue import catalogue
from tests.e2e.browser import Browser
from tests.unit.data.scans_of_rules import CASES, PLAIN, one_off, save

pytestmark = pytest.mark.e2e
PICTURES = os.environ.get("PREVOX_TEST_PICTURES")
EVIL = "<b onclick=alert(1)>&'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven scans: two near copies (one excluded), an empty, short, clipped and tilted one, one of a hostile name."""
    root = tmp_path_factory.mktemp("catalogued")
    save(root / "s", PLAIN, name="one_t1w.nii")
    save(root / "s", one_off(PLAIN), name="two_t1w.nii")
    for rule in ("near_empty", "field_of_view", "clipped", "sheared"):
        CASES[rule][0](root / rule)
        (root / rule / "images" / "a.nii").rename(root / "s" / "images" / f"{rule}.nii")
    save(root / "s", PLAIN[::-1].copy(), name=f"{EVIL}.nii")
    rules = {"exclude": ("near_duplicate",)}
    catalogue(CatalogueConfig.parse({"paths": [root / "s"], "out": root / "c.parquet", "rules": rules}))
    return root / "c.html"


def names(browser: Browser) -> list[str]:
    """Names of the images that can be seen."""
    cards = "[...document.querySelectorAll('.gallery > li')].filter((card) => card.checkVisibility())"
    return sorted(browser.js(f"{cards}.map((card) => card.querySelector('.name').firstChild.textContent.trim())"))


def test_opens_from_disk_without_network_and_without_complaint(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert [address for address in browser.requests if not address.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.complaints == []
    assert len(names(browser)) == 7
    assert EVIL in names(browser)
    assert browser.js("[...document.images].every((image) => image.complete && image.naturalHeight === 64)")
    assert browser.js("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"


def test_filters_by_rule_and_name(browser: Browser, page: Path) -> None:
    browser.open(page)

    def choose(value: str) -> list[str]:
        browser.js(
            f"(() => {{ const m = document.getElementById('rule'); m.value = {value!r};"
            "m.dispatchEvent(new Event('change')); })()"
        )
        return names(browser)

    assert choose("clipped") == ["clipped"]
    assert browser.js("document.getElementById('shown').textContent") == "1 of 7 images"
    assert choose("near_duplicate") == ["one_t1w", "two_t1w"]
    assert choose("!") == ["two_t1w"]
    assert choose("-") == []
    assert len(choose("*")) == 7
    choose("")
    browser.type("#name", "T1W two")
    assert names(browser) == ["two_t1w"]


def test_a_rule_of_the_table_leads_to_its_images(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("[data-rule=sheared]")
    assert names(browser) == ["sheared"]
    assert browser.js("location.hash") == "#images"


def test_works_by_keyboard_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    for _ in range(40):
        browser.key("Tab")
        if browser.js("document.activeElement.dataset.rule") == "clipped":
            break
    else:
        pytest.fail("the rule is not reached by Tab")
    browser.key("Enter")
    assert names(browser) == ["clipped"]
    browser.js("document.getElementById('rule').focus()")
    browser.key("Home")  # all images
    assert len(names(browser)) == 7


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"), (320, "light")]
)
def test_fits_every_screen(browser: Browser, page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    browser.open(page, width=width, scheme=scheme)
    browser.settle()
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.screenshot(Path(PICTURES or tmp_path) / f"catalogue-{width}-{scheme}.png").stat().st_size > 20_000
    background = browser.js("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(253, 253, 251)" if scheme == "light" else "rgb(21, 23, 26)")
    sizes = browser.js(
        "[...document.querySelectorAll('#rule, #name, #theme')].map((e) => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 30  # for fingers
