"""How far a verb is: a bar on a terminal, a plain line now and then elsewhere, with rate and time left."""

import time
from collections.abc import Iterator
from typing import TypeVar

from prevox.console import console

Item = TypeVar("Item")

_PLAIN_SECONDS = 10.0  # between lines where there is no terminal


def with_progress(items: Iterator[Item], total: int, title: str) -> Iterator[Item]:
    """Pass items on and show how many of them there have been."""
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total, rate="")
            start = time.monotonic()
            for count, item in enumerate(items, 1):
                progress.update(task, advance=1, rate=rate_of(count, time.monotonic() - start))
                yield item
        return
    start = said = time.monotonic()
    for count, item in enumerate(items, 1):
        now = time.monotonic()
        if count < total and now - said > _PLAIN_SECONDS:
            said = now
            left = (now - start) / count * (total - count)
            console.print(f"{title}: {count}/{total}, {rate_of(count, now - start)}, about {time_of(left)} left")
        yield item
    if total:
        seconds = time.monotonic() - start
        console.print(f"{title}: {total}/{total} in {seconds:.1f} s, {rate_of(total, seconds)}")


def rate_of(count: int, seconds: float) -> str:
    """Items per second, minute or hour, whichever leaves a readable number."""
    per_second = count / max(seconds, 1e-3)
    for factor, unit in ((1, "s"), (60, "min")):
        if per_second * factor >= 1:
            return f"{per_second * factor:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def time_of(seconds: float) -> str:
    """A duration in words: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
