"""Sort the instances of one DICOM series into stacks: what can be one image each.

A series may mix orientations (localisers), sizes, phases (every place several times) and single pictures.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from prevox.data.readers.dicom_grid import Slice, place_of, same_orientation, same_plane
from prevox.data.readers.dicom_header import Instance

# marks that rise with time, by which frames at one place can be put in order where no mark has the same values at all
_ORDERED = ("temporal", "temporal_id", "delay", "trigger", "acquisition_time", "content_time", "number")
_FEW = 3  # slices that a stack needs


def stacks_of(instances: Sequence[Instance]) -> list[list[Slice]]:
    """The stacks of a series whose instances have no problem of their own, in order of their instances.

    Frames without place are stacks by themselves, file by file, and so is a mosaic: it is a whole volume. Of a series
    in several orientations, those with fewer than three slices are put together: the reader says what is wrong with
    them.
    """
    placed: list[list[Slice]] = []
    stacks: list[list[Slice]] = []
    for instance in instances:
        if is_whole(instance):
            stacks.append([(instance, frame) for frame in instance.frames])
            continue
        for frame in instance.frames:
            _add(placed, (instance, frame))
    heads = [stack[0][1] for stack in placed]
    if any(not same_orientation(head, heads[0]) for head in heads):
        few = [stack for stack in placed if len(stack) < _FEW]
        placed = [stack for stack in placed if len(stack) >= _FEW]
        if few:
            stacks.append([slice for stack in few for slice in stack])
    return stacks + [phase for stack in placed for phase in phases_of(stack)]


def is_whole(instance: Instance) -> bool:
    """Whether a file is an image by itself: a mosaic, or one whose frames have no place."""
    unplaced = any(frame.position is None or frame.orientation is None for frame in instance.frames)
    return instance.problem is None and (unplaced or instance.tiles > 1)


def _add(stacks: list[list[Slice]], slice: Slice) -> None:
    for stack in stacks:
        if same_plane(stack[0], slice):
            stack.append(slice)
            return
    stacks.append([slice])


def phases_of(stack: list[Slice]) -> list[list[Slice]]:
    """Split a stack whose places occur several times by what tells the frames there apart; whole where nothing does.

    First by one mark, then by two, whose values divide the stack into parts without repeated places. Else, where each
    place occurs equally often, by the order of one mark there: trigger times differ a little from slice to slice.
    """
    counts = Counter(place_of(frame) for _, frame in stack)
    most = max(counts.values())
    if most == 1 or len(counts) == 1:
        return [stack]
    names = [name for name in dict.fromkeys(name for _, f in stack for name in f.marks) if _differs(stack, name)]
    for number in (1, 2):
        for chosen in combinations(names, number):
            parts: dict[tuple[tuple[str, ...] | None, ...], list[Slice]] = {}
            for instance, frame in stack:
                parts.setdefault(tuple(frame.marks.get(name) for name in chosen), []).append((instance, frame))
            if len(parts) == most and all(_once(part) for part in parts.values()):
                return list(parts.values())
    if set(counts.values()) == {most}:
        for name in (name for name in _ORDERED if name in names):
            ranked = _ranked(stack, name)
            if ranked is not None:
                return ranked
    return [stack]


def _differs(stack: Sequence[Slice], name: str) -> bool:
    """Whether frames at one place have different values of a mark."""
    seen: dict[tuple[int, ...], set[tuple[str, ...] | None]] = {}
    for _, frame in stack:
        seen.setdefault(place_of(frame), set()).add(frame.marks.get(name))
    return any(len(values) > 1 for values in seen.values())


def _once(part: Sequence[Slice]) -> bool:
    return len({place_of(frame) for _, frame in part}) == len(part)


def _ranked(stack: Sequence[Slice], name: str) -> list[list[Slice]] | None:
    """The frames with the smallest value of a mark at each place, with the second, ...; None if some are equal."""
    at: dict[tuple[int, ...], list[tuple[float, Slice]]] = {}
    try:
        for instance, frame in stack:
            value = float(frame.marks.get(name, ("",))[0])
            at.setdefault(place_of(frame), []).append((value, (instance, frame)))
    except ValueError:
        return None
    if any(len({value for value, _ in found}) < len(found) for found in at.values()):
        return None
    ordered = [sorted(found, key=lambda pair: pair[0]) for found in at.values()]
    return [[slice for _, slice in phase] for phase in zip(*ordered, strict=True)]
