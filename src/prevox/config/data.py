"""Settings of `catalogue` and `prepare`, and of how images are cut, normalised, augmented and split for training."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from tyro.conf import Positional

from prevox.config.base import Config, Fraction
from prevox.config.rules import RulesConfig


def _written(pattern: str, how: str) -> AfterValidator:
    """Accepts text of one form."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {how}")
        return text

    return AfterValidator(check)


Scheduler = Annotated[str, _written(r"(tcp|tls)://.+:\d+|(?!\w*://).+", "tcp://HOST:PORT, tls://HOST:PORT or a file")]
# these go into lines of a job's script
Memory = Annotated[str, _written(r"\d+(\.\d+)?[kMGT]i?B", "a number and its unit, such as 32GB")]
Walltime = Annotated[
    str, _written(r"(\d+-)?\d+(:\d\d){0,2}", "a time as SLURM writes it, such as 04:00:00 or 1-12:00:00")
]
SlurmName = Annotated[str, _written(r"[\w.,@+-]+", "a name that SLURM knows")]


class DicomConfig(Config):
    """How DICOM is catalogued; ids are salted hashes, and paths are kept in NAME.series/ beside --out only."""

    tilt: Literal["refuse", "resample"] = "refuse"
    """Series with a gantry tilt: leave them out, or move their slices to right angles by linear interpolation."""
    slices: Annotated[int, Field(ge=1)] = 1
    """Fewest slices of an image; others are left out. 3 leaves volumes only: networks do not train on stores that hold
    single slices or radiographs as well."""
    salt: Path | None = None
    """File with the secret that goes into the hashes; one is drawn if it is missing. None: NAME.salt beside --out. The
    same salt gives the same ids."""
    identifiers: bool = False
    """Write PatientID, study, series and the folder's name readably instead of hashes. For data without patients' names
    in them only."""


class DaskConfig(Config):
    """The cluster of --engine dask: one whose scheduler runs already, or one whose workers are jobs of SLURM."""

    scheduler: Scheduler | None = None
    """Where the scheduler is: tcp://HOST:PORT, tls://HOST:PORT, or the file that `dask scheduler --scheduler-file` has
    written. Certificates are those of Dask's own configuration."""
    jobs: Annotated[int, Field(ge=0)] = 0
    """Jobs to submit to SLURM, each a worker; they end with the call. What the next five leave out, and anything else,
    dask-jobqueue takes from its own file (~/.config/dask/jobqueue.yaml)."""
    cores: Annotated[int, Field(ge=1)] | None = None
    """Cores of a job; as many cases run in it at once as its memory allows."""
    memory: Memory | None = None
    """Memory of a job, such as 32GB."""
    walltime: Walltime | None = None
    """Time of a job, as SLURM writes it, such as 04:00:00."""
    queue: SlurmName | None = None
    """SLURM's partition."""
    account: SlurmName | None = None
    """SLURM's account."""

    @model_validator(mode="after")
    def _one_cluster(self) -> Self:
        if self.scheduler is not None and self.jobs:
            raise ValueError("give scheduler (a cluster that runs) or jobs (one that SLURM starts), not both")
        of_jobs = [name for name in ("cores", "memory", "walltime", "queue", "account") if getattr(self, name)]
        if of_jobs and not self.jobs:
            raise ValueError(f"{' and '.join(of_jobs)} describe jobs of SLURM, so --dask.jobs is needed: how many")
        return self


class WorkConfig(Config):
    """How the cases of `catalogue` and `prepare` are worked on."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Processes; 0 takes the number of cores. 1 works in this process, where a file that crashes its decoder ends
    everything and nothing limits the time. With --engine dask: cases at once; 0 is one for each thread of a worker."""
    timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds after which a case that is not finished is stopped and left out."""
    engine: Literal["local", "dask"] = "local"
    """Where the cases run: in processes of this machine, or on a Dask cluster that sees the same folders (pip install
    'prevox[dask]'). The results are the same."""
    dask: DaskConfig = DaskConfig()
    """The cluster of --engine dask."""
    shard: str | None = None
    """I/N: work on part I of N only, counted from 1, for the tasks of a job array, which may run at the same time. The
    same call without it, after them, does what is missing and writes the table of all."""

    @property
    def part(self) -> tuple[int, int] | None:
        """Number of the shard, from 0, and number of shards."""
        if self.shard is None:
            return None
        number, _, count = self.shard.partition("/")
        return int(number) - 1, int(count)

    @model_validator(mode="after")
    def _shard_exists(self) -> Self:
        numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard or "1/1")
        if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise ValueError(f"shard {self.shard}: expected I/N with I from 1 to N, such as 1/4, 2/4, 3/4 and 4/4")
        return self

    @model_validator(mode="after")
    def _cluster_is_known(self) -> Self:
        if self.engine == "local" and self.dask != DaskConfig():
            raise ValueError("settings of dask have no effect without --engine dask; add it, or leave them out")
        if self.engine == "dask" and self.dask.scheduler is None and not self.dask.jobs:
            raise ValueError(
                "engine dask needs --dask.scheduler (a cluster that runs) or --dask.jobs (SLURM starts one)"
            )
        return self


class ReadingConfig(Config):
    """What becomes of files that are not one real number in each voxel of one volume; the defaults refuse them."""

    volumes: Literal["refuse", "channels", "split"] = "refuse"
    """What the volumes of a 4D file are if no dataset.json names its channels: channels of one image, or images."""
    colour: Literal["refuse", "grey", "channels"] = "refuse"
    """What colours in a volume become: one grey channel, or red, green and blue. Of a PNG, JPEG or TIFF picture refuse
    makes channels, too."""
    complex: Literal["refuse", "magnitude"] = "refuse"
    """What complex voxels become."""
    stack: Literal["no", "folders", "pages"] = "no"
    """Pictures that are slices of a volume: all of one folder, in the order of their names (2 before 10), or the pages
    of one TIFF file."""


class CatalogueConfig(ReadingConfig, WorkConfig):
    """Recognise what lies in folders of scans, print it as a table, write one row per image and a page of pictures."""

    paths: Positional[Annotated[tuple[Path, ...], Field(min_length=1)]]
    """Folders or files: plain, MSD (dataset.json), nnU-Net raw, BIDS, pictures, DICOM; recognised by their content."""
    out: Path = Path("catalogue.parquet")
    """Parquet file to write; the page about it, NAME.html, goes beside it."""
    table: Path | None = None
    """CSV file with one row per case to join (subject, split, age ...); its case column is found by its values. The
    table of a folder of pictures is found by itself."""
    group: str | None = None
    """Column of --table that says which cases belong to one subject; splits never cut through a subject."""
    strict: bool = False
    """Stop at the first unreadable image instead of quarantining it in NAME.failures.csv beside --out."""
    dicom: DicomConfig = DicomConfig()
    """Series, tilt and ids of DICOM."""
    rules: RulesConfig = RulesConfig()
    """Quality rules: thresholds, and which rules exclude an image from what follows."""


class PlanConfig(Config):
    """Plan spacing, view, network and batch from the geometry of the images, as nnU-Net does: the dynamic baseline."""

    catalogue: Path
    """Parquet file written by `prevox catalogue`; its labelled images count, or all where none is labelled."""
    out: Path = Path("plan.yaml")
    """Recipe for `prevox finetune` to write; the numbers behind it go into a JSON file of the same name."""
    size: Literal["S", "M", "L", "XL"] = "L"
    """Network and memory to plan for: S for two CPU cores; M, L, XL for a GPU of 8, 24, 40 GB."""


class PrepareConfig(WorkConfig):
    """Reorient, crop, resample and write images as an OME-Zarr store; a killed run goes on where it was."""

    catalogue: Path
    """Parquet file written by `prevox catalogue`."""
    out: Path
    """Store folder to write or to complete."""
    spacing: Literal["none", "median"] | tuple[Annotated[float, Field(gt=0)], ...] = "none"
    """Target voxel size: none keeps each image's own, median takes the collection's, or three numbers in mm in the
    order z y x (S, A, R)."""
    crop: Literal["nonzero", "none"] = "nonzero"
    """Cut away borders that are zero in every channel."""
    order: Literal[1, 3] = 3
    """Spline order of image resampling. Labels are always resampled linearly, class by class."""
    excluded: bool = False
    """Prepare also the images that the catalogue's rules exclude."""
    strict: bool = False
    """Stop at the first case that fails instead of quarantining it in failures.csv."""


class SplitConfig(Config):
    """How subjects are divided; cases of one subject always stay together."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the subjects that is held out."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the division."""
    column: str | None = None
    """Column of the store's index that already says train, validation or test; then nothing is drawn."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: divide the subjects into this many parts; each is held out in one fold."""
    fold: Annotated[int, Field(ge=0)] = 0
    """With folds: which part is held out, from 0."""
    inner: bool = False
    """Divide the training subjects once more and leave the held-out ones alone: for choosing settings."""

    @model_validator(mode="after")
    def _one_way(self) -> "SplitConfig":
        if self.folds is not None and self.column is not None:
            raise ValueError(f"give folds or column, not both; the column '{self.column}' divides the subjects already")
        if self.fold >= (self.folds or 1):
            raise ValueError(
                f"fold {self.fold} of {self.folds} folds; they are counted from 0" if self.folds else "fold needs folds"
            )
        return self


class NormaliseConfig(Config):
    """Intensity normalisation, applied on the device from statistics that the store keeps."""

    name: Literal["zscore", "zscore_nonzero", "window", "percentile"] = "zscore"
    """zscore and zscore_nonzero use the image's own mean and deviation; window maps --window to [0, 1] (CT, HU);
    percentile maps the image's 0.5 and 99.5 percentiles to [0, 1]. Per channel."""
    window: tuple[float, float] | None = None
    """Lower and upper value of window, in the image's units."""

    @model_validator(mode="after")
    def _window_fits(self) -> "NormaliseConfig":
        if (self.name == "window") != (self.window is not None):
            raise ValueError(
                "name 'window' needs --normalise.window LOW HIGH; the other names take none (--normalise.window None)"
            )
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("window must be LOW HIGH with LOW < HIGH")
        return self


class AugmentConfig(Config):
    """Augmentation of whole batches on the device; a probability of 0 switches a transform off."""

    flip: Fraction | tuple[Fraction, ...] = 0.0
    """Probability of mirroring, for each axis by itself: one number for all axes, or one per axis (z y x, or y x)."""
    rotate90: Fraction = 0.0
    """Probability of a rotation by 90, 180 or 270 degrees in a random plane whose two sides are equal."""
    affine: Fraction | tuple[Fraction, Fraction] = 0.0
    """Probability of a trilinear resampling. One number: of rotation and scaling together. Two: of rotation, and of
    scaling, each drawn by itself and both done in one resampling."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation about each axis, in degrees (2D: in the plane)."""
    scaling: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.85, 1.2)
    """Range of the isotropic scale factor; above 1 enlarges."""
    in_plane: bool = False
    """For thick slices: affine rotates about z only and scales y and x only, low_resolution leaves z as it is."""
    intensity_scale: Fraction = 0.0
    """Probability of multiplying intensities by 1 + u, u uniform within ±0.1."""
    intensity_shift: Fraction = 0.0
    """Probability of adding u standard deviations of the view, u uniform within ±0.1."""
    noise: Fraction = 0.0
    """Probability of Gaussian noise with a deviation of up to 0.1 standard deviations of the view."""
    gamma: Fraction = 0.0
    """Probability of a gamma curve, exponent log-uniform within 0.7 to 1.5, range and sign kept."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur, which each channel then draws with 0.5; deviation of 0.5 to 1 voxels, one for
    each channel and axis."""
    brightness: Fraction = 0.0
    """Probability of multiplying each channel by a number of its own from 0.75 to 1.25."""
    contrast: Fraction = 0.0
    """Probability of stretching each channel about its mean by a number of its own from 0.75 to 1.25, cut off at the
    channel's range."""
    low_resolution: Fraction = 0.0
    """Probability of low resolution, which each channel then draws with 0.5: of 0.5 to 1 times as many samples along
    each axis the nearest voxels are kept, and interpolated linearly."""
    gamma_inverted: Fraction = 0.0
    """Probability of gamma_retained on the negated image; both may be drawn, this one comes first."""
    gamma_retained: Fraction = 0.0
    """Probability of a gamma curve for each channel by itself, after which the channel gets its mean and deviation
    back; exponent below or above 1 with equal chance, uniform within 0.7 to 1 or 1 to 1.5."""


class ViewsConfig(Config):
    """What is cut from each image."""

    size: tuple[Annotated[int, Field(ge=1)], ...] = (96, 96, 96)
    """Voxels of a view, in the order z y x; two numbers cut a slice (y x) for 2D networks."""
    count: Annotated[int, Field(ge=1)] = 1
    """Views cut from each image of a batch."""
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] | None = None
    """Smallest and largest side of the box that is cut, as a share of the image's side; the box is resized to size.
    None cuts size voxels at the store's resolution. Pre-training only."""
    axes: Literal["joint", "independent"] = "joint"
    """With scale: one share for all axes of a view, or one for each."""
    foreground: Fraction = 0.0
    """Probability that a view is centred on a labelled voxel (class drawn first); fine-tuning only."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation on the device."""

    @model_validator(mode="after")
    def _two_or_three(self) -> "ViewsConfig":
        if len(self.size) not in (2, 3):
            raise ValueError("size takes two numbers (y x) or three (z y x)")
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise ValueError("scale takes LOW HIGH with LOW <= HIGH")
        if isinstance(self.augment.flip, tuple) and len(self.augment.flip) != len(self.size):
            raise ValueError(f"augment.flip takes one number, or {len(self.size)} for views of {len(self.size)} axes")
        if self.augment.in_plane and len(self.size) == 2:
            raise ValueError("augment.in_plane is for views of three axes; a slice has no other plane. Leave it out")
        return self
