"""Settings of the verbs that need no scans of the user's: export, demo, list, doctor."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional

from prevox.config.base import Config, StorePlace


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


class ExportConfig(Config):
    """Write a pre-trained network in files that another tool loads unmodified."""

    target: Positional[Literal["nnunet"]]
    """The other tool. nnunet: checkpoint and plans for nnU-Net v2's -pretrained_weights."""
    run: Path
    """Pre-training run of a residual encoder U-Net (or one checkpoint folder of it)."""
    out: Path
    """Folder to write."""
    dataset: Annotated[str, Field(pattern=r"^Dataset\d{3}_\w+$")] | None = None
    """nnU-Net's name of the data set to fine-tune on, such as Dataset004_Hippocampus; none leaves it open."""
    channels: Annotated[int, Field(ge=1)] | None = None
    """Channels of that data set; the stem is repeated and divided by their number. None takes the run's."""
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Voxel size in mm along z y x to resample to; none takes that of the pre-training store."""
    batch: Annotated[int, Field(ge=1)] = 2
    """Batch size in the plans."""


class ListConfig(Config):
    """List methods, models, recipes and layouts."""


class DoctorConfig(Config):
    """Report whether this machine is fit, and everything a support person would ask for."""

    folder: Path = Path()
    """Folder whose disk is looked at."""
    store: StorePlace | None = None
    """Also look at this store."""
    run: Path | None = None
    """Also look at this run folder."""
    out: Path | None = None
    """Also write everything to this JSON file."""
