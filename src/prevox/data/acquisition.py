"""Which MR sequence an image is by how it was acquired, as a DICOM header or the sidecar of a converter says.

Descriptions and protocol names are looked through for the words of `data.sequence`; only the sequence they mean is
kept. Times decide where there is no such word, and refine what a word says (T2 with a long inversion time is FLAIR).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prevox.data.sequence import TOGETHER, has_words, sequence_of_text

# Times in ms. A short TE is usually below 30 and a long one above 90, a short TR below 500 and a long one above 1500
# (IMAIOS e-MRI, "Signal weighting"); here 80, 800 and 2000, for turbo spin echoes and 3 T. Between, nothing is certain.
# Inversion times: fluid is nulled at 1.5 and 3 T (sooner at lower fields); fat, as in STIR (100 to 300), is not meant.
_SHORT_TE, _LONG_TE, _SHORT_TR, _LONG_TR = (3.0, 30.0), (80.0, 1000.0), (200.0, 800.0), (2000.0, 30_000.0)
_FLUID_TI, _FLUID_TR = (1700.0, 2800.0), (4000.0, 30_000.0)
_T1_FLAIR_TI, _T1_FLAIR_TR = (600.0, 1200.0), (1200.0, 3500.0)
_PREPARED_TI, _PREPARED_TE = (400.0, 1400.0), (0.5, 10.0)  # MPRAGE and its relatives
_STAR_TE, _STAR_TR = (15.0, 80.0), (200.0, 3000.0)
_NOT_MAGNITUDE = {"P", "R", "I", "PHASE", "PHASE MAP", "REAL", "IMAGINARY"}
_WEIGHTED = {"T1", "T1ce", "T1_FLAIR", "T2", "FLAIR", "T2star", "PD"}  # what times can tell apart
# a map or a difference of images is not weighted as its name says; `sub-01` in a description is a subject
_MAP = re.compile(r"(?<![a-z0-9])(maps?|mapping|molli|subtraction|subtracted|sub(?![-_ ]?[a-z]*\d))(?![a-z0-9])")
_NO_AGENT = {"", "no", "n", "none", "n/a", "na", "0", "false"}


@dataclass(frozen=True)
class Acquisition:
    """What is said of an acquisition; empty or None where nothing is.

    Args:
        text: Descriptions, for the words in them.
        kinds: Image type, in capitals.
        scanning: Scanning sequence (SE, GR, IR, EP, RM), in capitals.
        dimension: "2D" or "3D".
        echo: Echo time in ms.
        repetition: Repetition time in ms.
        inversion: Inversion time in ms.
        agent: Name of a contrast agent, of which only counts whether there is one.
    """

    text: str = ""
    kinds: frozenset[str] = frozenset()
    scanning: frozenset[str] = frozenset()
    dimension: str = ""
    echo: float | None = None
    repetition: float | None = None
    inversion: float | None = None
    agent: str = ""


def sequence_of_acquisition(acquisition: Acquisition) -> str | None:
    """The sequence; None where nothing says it, or words and times contradict each other."""
    by_times = _by_times(acquisition)
    if not has_words(acquisition.text):
        return by_times
    by_words = sequence_of_text(acquisition.text)
    if by_words in _WEIGHTED and (_is_map(acquisition) or acquisition.kinds & _NOT_MAGNITUDE):
        return None
    if by_words == "T1" and _has_agent(acquisition):
        by_words = "T1ce"
    if by_words not in _WEIGHTED or by_times in (None, by_words):
        return by_words
    return TOGETHER.get(frozenset({by_words, str(by_times)}))


def sequence_of_sidecar(content: Mapping[str, Any]) -> str | None:
    """The sequence by a JSON sidecar as BIDS and dcm2niix write it, whose times are in seconds."""
    if content.get("Modality", "MR") != "MR":
        return None
    text = " ".join(str(content.get(key, "")) for key in ("SeriesDescription", "ProtocolName"))
    return sequence_of_acquisition(
        Acquisition(
            text,
            _parts(content.get("ImageType"), r"[^\\,;]+"),
            _parts(content.get("ScanningSequence"), r"[A-Za-z]+"),
            str(content.get("MRAcquisitionType", "")),
            _milliseconds(content.get("EchoTime")),
            _milliseconds(content.get("RepetitionTime")),
            _milliseconds(content.get("InversionTime")),
            str(content.get("ContrastBolusIngredient") or ""),
        )
    )


def _parts(value: Any, pattern: str) -> frozenset[str]:
    """The parts of a list, or of a text that joins them as DICOM or BIDS do."""
    text = "\\".join(map(str, value)) if isinstance(value, list) else value
    return frozenset(re.findall(pattern, text.upper())) if isinstance(text, str) else frozenset()


def _milliseconds(value: Any) -> float | None:
    is_time = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1000
    return 1000.0 * value if is_time else None


def _by_times(one: Acquisition) -> str | None:
    """The weighting that echo, repetition and inversion time give; None for all that they do not tell surely."""
    is_magnitude = not one.kinds or ("ORIGINAL" in one.kinds and not one.kinds & _NOT_MAGNITUDE)
    if not is_magnitude or _is_map(one) or one.scanning & {"EP", "RM"}:
        return None
    found = None
    if "SE" in one.scanning and "GR" not in one.scanning:
        found = _of_spin_echo(one)
    elif "GR" in one.scanning and "SE" not in one.scanning:
        found = _of_gradient_echo(one)
    return "T1ce" if found == "T1" and _has_agent(one) else found


def _has_agent(one: Acquisition) -> bool:
    return one.agent.strip().lower() not in _NO_AGENT


def _is_map(one: Acquisition) -> bool:
    """Whether description or image type say so. DERIVED alone does not: reformatted originals carry it as well."""
    return any(_MAP.search(text.lower()) for text in (one.text, *one.kinds))


def _of_spin_echo(one: Acquisition) -> str | None:
    if one.inversion or "IR" in one.scanning:
        if _in(one.inversion, _FLUID_TI) and _in(one.repetition, _FLUID_TR) and _in(one.echo, _LONG_TE):
            return "FLAIR"
        if _in(one.inversion, _T1_FLAIR_TI) and _in(one.repetition, _T1_FLAIR_TR) and _in(one.echo, _SHORT_TE):
            return "T1_FLAIR"
        return None
    if _in(one.repetition, _SHORT_TR) and _in(one.echo, _SHORT_TE):
        return "T1"
    if _in(one.repetition, _LONG_TR):
        return "T2" if _in(one.echo, _LONG_TE) else "PD" if _in(one.echo, _SHORT_TE) else None
    return None


def _of_gradient_echo(one: Acquisition) -> str | None:
    """Prepared by an inversion: T1. Without: T2* in 2D; all else depends on the flip angle, or is an angiography."""
    if one.inversion or "IR" in one.scanning:
        return "T1" if _in(one.inversion, _PREPARED_TI) and _in(one.echo, _PREPARED_TE) else None
    is_star = one.dimension == "2D" and _in(one.repetition, _STAR_TR) and _in(one.echo, _STAR_TE)
    return "T2star" if is_star else None


def _in(value: float | None, limits: tuple[float, float]) -> bool:
    return value is not None and limits[0] <= value <= limits[1]
