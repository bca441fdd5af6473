"""Prevox: pre-train medical-image networks on your own unlabelled scans, fine-tune them, measure what it bought.

Every verb of the command line is a function here with the same argument names:

    >>> import prevox
    >>> prevox.catalogue(paths=["Task04_Hippocampus"], out="catalogue.parquet")      # doctest: +SKIP
    >>> prevox.pretrain(recipe="mae-vit-cpu", store="store", out="runs/mae", train={"steps": 500})  # doctest: +SKIP
"""

from collections.abc import Callable
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Callable[..., Any]:
    """Give each verb as a function, loaded when it is first asked for."""
    from prevox.cli.main import VERBS, run

    if name not in VERBS:
        raise AttributeError(f"module 'prevox' has no attribute '{name}'")

    def verb(**settings: Any) -> Any:
        return run(name, settings)

    verb.__name__ = verb.__qualname__ = name
    verb.__doc__ = f"{VERBS[name].does}. Arguments: the options of `prevox {name} --help`; parts are mappings."
    return verb


def __dir__() -> list[str]:
    from prevox.cli.main import VERBS

    return sorted([*globals(), *VERBS])
