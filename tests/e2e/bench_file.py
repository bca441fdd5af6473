"""A bench small enough for a test: two arms on phantoms, each fine-tuning a few steps long."""

from pathlib import Path
from typing import Any

import yaml

VIEW = {"views": {"size": [16, 16, 16]}}
MODEL = {"name": "vit", "size": "T", "patch": [8, 8, 8], "depth": 1}
METHOD = {"name": "mae", "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 3}


def content(**over: Any) -> dict[str, Any]:
    """The file's content."""
    mae = {"backbones": ["vit"], "pretrain": {"method": METHOD, **VIEW, "train": {"steps": 2, "batch": 2}}}
    finetune = {**VIEW, "decoder": {"features": 4}, "train": {"steps": 2, "batch": 1}, "optim": {"lr": 1e-3}}
    return {
        "datasets": {"phantoms": {"spacing": [4, 4, 4]}},
        "methods": {"scratch": {}, "mae": mae},
        "backbones": {"vit": {"model": MODEL, "finetune": finetune}},
        **over,
    }


def write(path: Path, **over: Any) -> Path:
    """Write a bench file."""
    path.write_text(yaml.safe_dump(content(**over), sort_keys=False))
    return path
