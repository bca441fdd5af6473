"""One console for everything Prevox says, so that progress bars and tables do not overwrite each other."""

import sys

from rich.console import Console
from rich.markup import escape

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=False)


def warn(message: str) -> None:
    """Print one warning line; used where a setting is ignored or a result needs care."""
    console.print(f"[yellow]warning:[/yellow] {escape(message)}", markup=True)
