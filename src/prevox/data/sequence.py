"""Which MR sequence an image is, where its layout, its file's name or its header leaves no doubt."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prevox.data.readers import stem_of

# Words, between anything that is neither letter nor digit, as BIDS, BraTS, IXI and converters write them. Not among
# them: `pd`, which is Parkinson's disease as often as proton density.
_WORDS = {
    "T1": ("t1", "t1w", "t1n", "t1weighted", "mprage", "mp2rage"),
    "T1ce": ("t1ce", "t1c", "t1gd"),
    "T1_FLAIR": ("t1flair",),
    "T2": ("t2", "t2w", "t2weighted"),
    "FLAIR": ("flair", "t2flair", "t2f"),
    "T2star": ("t2s", "t2star", "t2starw"),
    "PD": ("pdw", "protondensity"),
    "SWI": ("swi",),
    "MRA": ("mra", "tof", "angio"),
    "DWI": ("dwi", "dti", "dmri"),
    "ADC": ("adc",),
    "ASL": ("asl",),
    "BOLD": ("bold", "fmri"),
}
_MEANING = {word: sequence for sequence, words in _WORDS.items() for word in words}
_CONTRAST = {"ce", "gd", "gad", "gadolinium", "postcontrast"}
_DOUBT = {"post"}  # after contrast agent, or after an operation
TOGETHER = {  # words that refine each other
    frozenset({"T1", "T1ce"}): "T1ce",
    frozenset({"T1", "FLAIR"}): "T1_FLAIR",
    frozenset({"T2", "FLAIR"}): "FLAIR",
    frozenset({"T2", "T2star"}): "T2star",
    frozenset({"DWI", "ADC"}): "ADC",  # a map made from the other
}


def sequence_of_text(text: str) -> str | None:
    """The sequence that a name or a description means; None if it names none, or several that exclude each other."""
    words = _words(text)
    found = frozenset(_MEANING[word] for word in words & _MEANING.keys())
    if len(found) != 1:
        return TOGETHER.get(found)
    (sequence,) = found
    if sequence != "T1":
        return sequence
    return None if words & _DOUBT else "T1ce" if words & _CONTRAST else "T1"


def has_words(text: str) -> bool:
    """Whether a text names any sequence, if only in doubt."""
    return not _words(text).isdisjoint(_MEANING)


def sequence_of(
    modality: str | None, paths: Sequence[Path], description: str, acquired: str | None = None
) -> str | None:
    """The sequence of an image; of one with several channels theirs, joined by commas, if all are known.

    What the layout and the files' names say counts together; the rest is asked only if they say nothing.

    Args:
        modality: Names of the channels joined by commas; None where the layout does not say.
        paths: One file for each channel, or one that holds all.
        description: Free text of the header.
        acquired: What the layout knows from acquisition parameters (`data.acquisition`); asked before `description`.
    """
    channels, names = (modality or "").split(","), [stem_of(path) for path in paths]
    if len(channels) == len(names):
        texts = [f"{channel} {name}" for channel, name in zip(channels, names, strict=True)]
    else:
        texts = channels if modality else names
    if any(map(has_words, texts)):
        return _joined(texts)
    return acquired or sequence_of_text(description)


def _joined(texts: Iterable[str]) -> str | None:
    found = [sequence_of_text(text) for text in texts]
    return None if None in found else ",".join(map(str, found))


def _words(text: str) -> set[str]:
    plain = re.sub(r"dark[-_ ]?fluid", "flair", text.lower().replace("t2*", "t2star"))  # as Siemens calls it
    return set(re.split(r"[^a-z0-9]+", plain))
