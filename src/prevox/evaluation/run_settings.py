"""The settings of a run as one flat table, those of the pre-training that it starts from included."""

import json
from pathlib import Path
from typing import Any

from prevox.config.base import read_yaml
from prevox.errors import PrevoxError
from prevox.evaluation.curves import PRETRAINING

# where things lie, and what changes no result
OWN = {"verb", "store", "out", "recipe", "resume", "dry_run", "pretrained"}
OWN |= {f"train.{key}" for key in ("device", "reads_ahead", "checkpoint_activations", "log_every", "picture_every")}
OWN |= {"train.checkpoint_every", "train.keep_every"}


def settings_of(run: Path) -> dict[str, Any]:
    """All settings of a fine-tuning run that are not none, by dotted key; {} if the folder is none.

    `labels` is the number of labelled subjects that it was trained on. The settings of its pre-training stand under
    `pretraining.`; of a checkpoint on the way `pretraining.train.steps` is the checkpoint's. Of a pre-training whose
    folder is gone the path alone is known.
    """
    settings = _flat(_config(run))
    if settings.get("verb") != "finetune":
        return {}
    found = {key: value for key, value in settings.items() if key not in OWN}
    subjects = _json(run / "summary.json").get("subjects")
    if subjects is not None:
        found["labels"] = int(subjects)
    if settings.get("pretrained") is not None and not settings.get("scratch"):
        found |= {f"{PRETRAINING}{key}": value for key, value in _pretraining(Path(settings["pretrained"])).items()}
    return found


def _pretraining(path: Path) -> dict[str, Any]:
    step = path.name.removeprefix("step_") if path.parent.name == "checkpoints" else ""
    run = path.parent.parent if step.isdigit() else path
    settings = _flat(_config(run))
    found = {key: value for key, value in settings.items() if key not in OWN or key == "store"}
    found |= {"run": str(run)} if not settings else {}
    steps = int(step) if step.isdigit() else _json(run / "summary.json").get("steps")
    if steps is not None:  # also of a run that was given epochs
        found = {key: value for key, value in found.items() if key not in ("train.steps", "train.epochs")}
        found["train.steps"] = int(steps)
    return found


def _config(run: Path) -> dict[str, Any]:
    try:
        return read_yaml(run / "config.yaml")
    except (PrevoxError, OSError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found
