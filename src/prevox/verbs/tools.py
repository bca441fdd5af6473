"""`prevox list`: what exists."""

from rich.table import Table

from prevox.config.base import RECIPES, read_yaml, recipe_names
from prevox.config.tools import ListConfig
from prevox.console import console
from prevox.data.layouts import LAYOUTS
from prevox.methods.registry import METHODS
from prevox.models.registry import MODELS


def list_all(config: ListConfig) -> None:
    """Print methods, models, recipes and layouts."""
    table = Table(title="what exists", show_lines=False)
    for column in ("kind", "name", "what"):
        table.add_column(column)
    for name, method in METHODS.items():
        table.add_row("method", name, method.summary)
    for name, model in MODELS.items():
        table.add_row("model", name, model.summary)
    for verb in ("pretrain", "finetune", "bench"):
        for name in recipe_names(verb):
            table.add_row(f"{verb} recipe", name, _first_comment(verb, name))
    for name, layout in LAYOUTS.items():
        table.add_row("layout", name, (layout.__doc__ or "").splitlines()[0])
    console.print(table)


def _first_comment(verb: str, recipe: str) -> str:
    path = RECIPES / verb / f"{recipe}.yaml"
    first = path.read_text().splitlines()[0]
    if first.startswith("#"):
        return first.lstrip("# ")
    return ", ".join(read_yaml(path))
