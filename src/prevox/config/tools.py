"""Settings of the verbs that need no scans of the user's: demo, list, doctor."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from prevox.config.base import Config


class DemoConfig(Config):
    """Run the whole chain on generated phantoms: pre-train, fine-tune twice, predict, evaluate, report."""

    out: Path = Path("demo")
    """Folder for everything the demo makes; what is finished there is not done again."""
    images: Annotated[int, Field(ge=10)] = 50
    """Phantoms to generate; a fifth of them is held out for validation."""
    labels: Annotated[int, Field(ge=1)] = 4
    """Labelled phantoms for both fine-tunings."""
    pretrain_steps: Annotated[int, Field(ge=1)] = 300
    """Steps of the pre-training."""
    finetune_steps: Annotated[int, Field(ge=1)] = 220
    """Steps of each fine-tuning."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the phantoms and of the runs."""


class ListConfig(Config):
    """List methods, models, recipes and layouts."""


class DoctorConfig(Config):
    """Report whether this machine is fit, and everything a support person would ask for."""

    folder: Path = Path()
    """Folder whose disk is looked at."""
    store: Path | None = None
    """Also look at this store."""
    run: Path | None = None
    """Also look at this run folder."""
    out: Path | None = None
    """Also write everything to this JSON file."""
