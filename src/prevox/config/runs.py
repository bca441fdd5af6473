"""Settings of the verbs that make and use runs: pretrain, finetune, predict, evaluate, compare, report."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from prevox.config.base import Config, StorePlace
from prevox.config.data import NormaliseConfig, SplitConfig, ViewsConfig
from prevox.config.models import UNETRConfig
from prevox.config.train import OptimConfig, ProbeConfig, ScheduleConfig, TrainConfig


def _regions_from_words(value: Any) -> Any:
    """Accept WT=1,2,3 TC=2,3 (the command line's form) beside a mapping."""
    if not isinstance(value, list | tuple):
        return value
    pairs = [str(word).partition("=") for word in value]
    if not all(equals and name and numbers for name, equals, numbers in pairs):
        raise ValueError("write regions as NAME=1,2,3")
    return {name: numbers.split(",") for name, _, numbers in pairs}


Regions = Annotated[dict[str, tuple[int, ...]], BeforeValidator(_regions_from_words)]


Metric = Literal["dice", "hd95", "nsd", "asd", "ravd", "lesion_sensitivity", "lesion_false_positives"]
ClassMetric = Literal["auc", "average_precision", "ece", "brier"]


class RunConfig(Config):
    """What pre-training and fine-tuning share."""

    store: StorePlace
    """Store written by `prevox prepare`: its folder, or the URL of a copy (s3://, gs://, http://, https://)."""
    out: Path
    """Run folder to write."""
    recipe: str | None = None
    """A shipped recipe (`prevox list`) or a YAML file; flags on the command line win over it."""
    resume: bool = False
    """Go on from the last checkpoint in --out (start anew if there is none)."""
    dry_run: bool = False
    """Measure memory and time per step on the real data, print the estimate for the whole run, and stop."""
    split: SplitConfig = SplitConfig()
    """Which subjects are held out."""
    views: ViewsConfig = ViewsConfig()
    """What is cut from each image."""
    optim: OptimConfig = OptimConfig()
    """Optimiser."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the run."""
    train: TrainConfig = TrainConfig()
    """Length, batch, precision, logging, checkpoints."""

    @model_validator(mode="after")
    def _has_a_length(self) -> "RunConfig":
        if self.train.steps is None and self.train.epochs is None:
            raise ValueError("the run has no length: give --train.steps or --train.epochs, or a recipe")
        return self


class PretrainConfig(RunConfig):
    """Pre-train an encoder on unlabelled images."""

    use: Literal["train", "all"] = "train"
    """Images to learn from: the training subjects of the split, or every image of the store."""
    normalise: NormaliseConfig = NormaliseConfig()
    """Intensity normalisation."""
    probe: ProbeConfig = ProbeConfig()
    """Segmentation by the frozen features, measured while they are trained."""
    method: Config
    """The pre-training method and its settings."""
    model: Config
    """The backbone and its settings."""


@cache
def pretrain_schema(method: str = "mae", model: str = "vit") -> type[PretrainConfig]:
    """The schema of `pretrain` with the settings of one method and one backbone in it.

    Raises:
        ConfigError: If either is not registered.
    """
    from prevox.methods.registry import method_entry, resolve
    from prevox.models.registry import model_entry

    method_config = resolve(method_entry(method).config)
    model_config = resolve(model_entry(model).config)
    fields: dict[str, Any] = {
        "method": (method_config, Field(default=method_config(), description=method_config.__doc__)),
        "model": (model_config, Field(default=model_config(), description=model_config.__doc__)),
    }
    return create_model("PretrainConfig", __base__=PretrainConfig, __doc__=PretrainConfig.__doc__, **fields)


class LossConfig(Config):
    """Soft Dice plus cross-entropy, both over labelled voxels only."""

    dice: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Dice term (squared denominator, smoothing 1e-6, background excluded)."""
    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross-entropy term (binary, per region, where --regions is given)."""


class FinetuneConfig(RunConfig):
    """Fine-tune for segmentation, from a pre-training run or from scratch."""

    pretrained: Path | None = None
    """Pre-training run (or one checkpoint folder of it) to take the encoder from; none trains from scratch."""
    scratch: bool = False
    """Take only architecture and normalisation of --pretrained, not its weights: the other arm of a fair comparison."""
    labels: Annotated[int, Field(ge=1)] | None = None
    """Train on this many labelled subjects (nested for a seed: the first n of one random order); none takes all."""
    label_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order from which --labels takes its subjects."""
    regions: Regions | None = None
    """Overlapping regions instead of exclusive classes, outermost first: WT=1,2,3 TC=2,3 ET=3."""
    transfer: Literal["encoder", "encoder_decoder"] = "encoder"
    """What is taken from --pretrained; the decoder comes along only where pre-training had the same one (resenc)."""
    freeze_encoder: bool = False
    """Train the decoder only."""
    decoder_first: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run, at its start, in which the decoder alone is trained, on a linear ramp of its own; then
    everything is trained by the schedule: its ramp, then its decay. The encoder, stem included, is frozen meanwhile."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of encoder block (or stage) i of n is multiplied by this to the power n + 1 - i; the decoder's by
    1. None takes 0.75 for a vision transformer and 1 for a U-Net."""
    encoder: Config | None = None
    """Network for training from scratch; with --pretrained it is the run's own."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest drop-path rate of a vision transformer in fine-tuning."""
    decoder: UNETRConfig | None = None
    """Segmentation decoder of a vision transformer; none takes its defaults. A U-Net has its own."""
    deep_supervision: bool = False
    """Train a U-Net on outputs at all its resolutions but the coarsest, each weighted half as much as the finer one."""
    normalise: NormaliseConfig | None = None
    """Intensity normalisation; none takes the pre-training run's (z-score from scratch)."""
    loss: LossConfig = LossConfig()
    """Segmentation loss."""

    @model_validator(mode="after")
    def _starts_from_something(self) -> "FinetuneConfig":
        if self.pretrained is None and self.encoder is None:
            raise ValueError(
                "give --pretrained RUN, or a network to train from scratch: --encoder.name vit --encoder.size B, or "
                "--encoder.name resenc --encoder.size L"
            )
        if self.pretrained is not None and self.encoder is not None:
            raise ValueError("give --pretrained or --encoder, not both; with --pretrained the encoder is the run's own")
        if self.scratch and self.pretrained is None:
            raise ValueError(
                "--scratch needs --pretrained, whose architecture it takes; without it, training is from scratch anyway"
            )
        if self.freeze_encoder and self.decoder_first:
            raise ValueError("give --freeze_encoder or --decoder_first, not both: one is for good, one for a while")
        if self.decoder_first and self.decoder_first + self.schedule.warmup >= 1:
            raise ValueError(
                f"decoder_first {self.decoder_first:g} and schedule.warmup {self.schedule.warmup:g} are shares of the "
                "run; together they must leave some of it for the decay"
            )
        return self


@cache
def finetune_schema(encoder: str = "vit") -> type[FinetuneConfig]:
    """The schema of `finetune` with the settings of one network in it.

    Raises:
        ConfigError: If it is not registered.
    """
    from prevox.methods.registry import resolve
    from prevox.models.registry import model_entry

    model = resolve(model_entry(encoder).config)
    fields: dict[str, Any] = {"encoder": (model | None, Field(default=None, description=model.__doc__))}
    return create_model("FinetuneConfig", __base__=FinetuneConfig, __doc__=FinetuneConfig.__doc__, **fields)


class PredictConfig(Config):
    """Segment images with a fine-tuned run; masks lie on the input's own grid."""

    run: Path
    """Fine-tuning run (or one checkpoint folder of it)."""
    images: Path
    """Catalogue (parquet), store, folder of scans, or one file."""
    out: Path | None = None
    """Folder for the masks; none takes RUN/predictions."""
    split: Literal["all", "train", "validation"] = "all"
    """Only the images that the run trained on or held out (by id, from its split.json)."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share by which neighbouring windows overlap."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Windows per forward pass."""
    probabilities: bool = False
    """Also write class probabilities (float32, one channel per class); all of them are held in memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""


class EvaluateConfig(Config):
    """Score predictions against references: overlap, distances, volumes and lesions, with intervals over subjects."""

    predictions: Path
    """Folder of masks, or a fine-tuning run (its predictions are scored into RUN/evaluation); for classification a
    table (CSV, TSV, Parquet) of probabilities with one row per case and one column per class."""
    references: Path
    """Catalogue (parquet) with labels, or a folder of masks with the same names; for classification a table of the true
    classes, which a catalogue of pictures is too."""
    out: Path | None = None
    """Folder for scores and summary; none takes evaluation/ beside the predictions."""
    regions: Regions | None = None
    """Named sets of label values to score, NAME=1,2; none takes the run's classes, else every value found."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """Tolerance of NSD in mm."""
    lesions: tuple[str, ...] = ()
    """Classes whose connected components are counted as lesions: how many are found, how many are false positives."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes; 0 takes the number of cores."""


class CompareConfig(Config):
    """Compare evaluated runs on the same cases: paired tests, effect sizes, ranks and how stable they are."""

    runs: Annotated[tuple[Annotated[str, BeforeValidator(str)], ...], Field(min_length=1)]
    """Fine-tuning runs or evaluation folders, of masks or of probabilities, as PATH or NAME=PATH; those of one name are
    one run, scored on several datasets."""
    out: Path
    """Folder for the tables and the page."""
    metric: Metric | ClassMetric | None = None
    """What is compared: a column of the scores of masks, or a metric of probabilities; none takes dice or auc."""
    baseline: str | None = None
    """Name of the run that the others are compared with; none compares every pair."""
    describe: bool = False
    """Compare no pair: scores and curves only; for runs that are no rivals: one method with 10 and with 40 labels."""

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> "CompareConfig":
        if self.describe and self.baseline is not None:
            raise ValueError("found --describe and --baseline; give one: nothing is compared with a baseline there")
        return self


class ReportConfig(Config):
    """Write runs with their evaluations, or a comparison, as one self-contained HTML file."""

    runs: tuple[Path, ...] = ()
    """Run folders, or folders that `prevox evaluate` wrote."""
    comparison: Path | None = None
    """Folder that `prevox compare` wrote, instead of runs. That verb writes its page itself; this one, anew."""
    out: Path | None = None
    """HTML file; none takes report.html in the first run, or in the comparison."""
    title: str | None = None
    """Heading; none takes the names of the runs."""
    figures: Path | None = None
    """Folder for every figure of the page as PDF and SVG, for papers; none writes none."""

    @model_validator(mode="after")
    def _about_something(self) -> "ReportConfig":
        if bool(self.runs) == (self.comparison is not None):
            found = "both" if self.runs else "neither"
            raise ValueError(f"found {found} of --runs and --comparison; give run folders or one comparison")
        return self
