"""The page beside a catalogue: what is on it, what is chosen, that it is safe, complete and bounded."""

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.data.scans_of_rules import PLAIN, ZEROS, mask, noise, one_off, save
from tests.unit.reporting.test_html import Balance

from prevox.config.data import CatalogueConfig
from prevox.data.rules import RULES
from prevox.reporting.catalogue_page import MEANING, MOST_IMAGES, choose, write_catalogue_page
from prevox.verbs.catalogue import catalogue

pytestmark = pytest.mark.unit
EVIL = "x<img src=q onerror=alert(1)>&\"'"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scans (a copy, an empty one, one with a hostile name) and a file that is none."""
    root = tmp_path_factory.mktemp("page")
    save(root / "s", PLAIN, name="a_t1w.nii")
    save(root / "s", one_off(PLAIN), name="b_t1w.nii")
    save(root / "s", ZEROS, name="empty.nii")
    save(root / "s", noise((20, 60, 60)), name=f"{EVIL}.nii")
    save(root / "s", mask(1), name="labels/a_t1w.nii")
    (root / "s" / "images" / "broken.nii").write_bytes(b"<b>no scan</b>")
    rules = {"exclude": ("near_duplicate", "constant")}
    result = catalogue(CatalogueConfig.parse({"paths": [root / "s"], "out": root / "c.parquet", "rules": rules}))
    assert result.exit_code == 1
    return root / "c.html"


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return written.read_text(encoding="utf-8")


def test_every_rule_is_explained() -> None:
    assert list(MEANING) == list(RULES)


def test_page_is_well_formed_and_complete(text: str) -> None:
    parser = Balance()
    parser.feed(text)
    assert (parser.faults, parser.open) == ([], [])
    without = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert re.findall(r"(?:https?:)?//[a-z0-9][\w.-]+", without) == []
    assert all(ref.startswith(("#", "data:image/")) for ref in re.findall(r'(?:src|href)="([^"]*)"', text))


def test_names_from_data_are_escaped(text: str) -> None:
    assert EVIL not in text
    assert "x&lt;img src=q onerror=alert(1)&gt;&amp;&#34;&#39;" in text
    assert text.count("<script") == 1
    assert "&lt;b&gt;no scan" not in text.replace("broken", "") or "<b>no scan" not in text


def test_counts_and_reasons_are_there(text: str) -> None:
    words = " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(script|style).*?</\1>", "", text)).split())
    assert "4 images of 4 subjects in s." in words
    assert "4 images with flags; 2 excluded from what follows." in words
    assert "The MR sequence of 2 images is known: T1 2." in words
    assert "1 image could not be used at all." in words
    assert "near_duplicate 2 1 correlation below 0.995" in words  # rule, images, excluded, expected
    assert "field_of_view 1 – at least 50 mm filter of S3D" in words
    assert "near_duplicate: 1.0000 with a_t1w" in words
    assert "constant: 0 everywhere" in words
    assert "broken" in words.partition("Left out 1 image")[2]


def test_excluded_images_come_first(text: str) -> None:
    names = re.findall(r'<p class="name">([^ <]+)', text)
    assert names == ["empty", "b_t1w", "x&lt;img", "a_t1w"]  # excluded by a rare rule, excluded, rare flag, others
    assert text.count("data:image/png;base64,") == 4


def rows(flags: list[tuple[str, ...]], excluded: list[bool]) -> pd.DataFrame:
    return pd.DataFrame({"flags": [list(f) for f in flags], "excluded": [["x"] if e else [] for e in excluded]})


@given(
    st.lists(st.tuples(st.sets(st.sampled_from("abcd")).map(tuple), st.booleans()), max_size=120), st.integers(1, 60)
)
def test_choice_is_bounded_distinct_and_fair(images: list[tuple[tuple[str, ...], bool]], most: int) -> None:
    table = rows([f for f, _ in images], [e for _, e in images])
    chosen = choose(table, most)
    assert len(chosen) == len(set(chosen)) == min(most, len(images))
    if len(images) > most >= 20:
        shown = {flag for n in chosen for flag in table["flags"].iloc[n]}
        assert shown == {flag for flags in table["flags"] for flag in flags}  # every rule has a picture


def test_rare_flags_are_not_crowded_out() -> None:
    flags = [("no_label",)] * 5000
    flags[1234], flags[4321] = ("no_label", "clipped"), ("no_label", "nan")
    chosen = choose(rows(flags, [False] * 5000), MOST_IMAGES)
    assert len(chosen) == MOST_IMAGES
    assert chosen[:2] == [1234, 4321]
    unflagged = choose(rows([*flags, *[()] * 5000], [False] * 10000), MOST_IMAGES)
    assert sum(n >= 5000 for n in unflagged) == MOST_IMAGES // 5


def test_size_is_bounded(written: Path, tmp_path: Path) -> None:
    from prevox.data.catalogue import read_catalogue

    table = read_catalogue(written.with_suffix(".parquet"))
    many = pd.concat([table] * 3000, ignore_index=True)
    many["image"] = [f"image_{n}" for n in range(len(many))]
    thumbnails = dict.fromkeys(many["image"], "A" * 12_000)  # larger than any of 192 × 64 pixels
    failures = [(f"bad_{n}", "reason " * 20) for n in range(20_000)]
    config = CatalogueConfig(paths=(tmp_path,))
    write_catalogue_page(tmp_path / "c.html", many, failures, thumbnails, config.rules)
    assert (tmp_path / "c.html").stat().st_size < 6_000_000
    text = (tmp_path / "c.html").read_text()
    assert f"{MOST_IMAGES} of 12000 images are shown" in text
    assert "20000 images could not be used; the first 500 are here" in text
