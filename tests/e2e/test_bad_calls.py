"""Settings, stores and runs that do not fit: the call stops before any work, and says what to do instead."""

from pathlib import Path

import pytest

from tests.e2e.bad import FINETUNE, ONE_STEP, PRETRAIN, Shell, says

pytestmark = pytest.mark.e2e


RECIPES = {
    "tabs": b"views:\n\tsize: [16, 16, 16]\n",
    "list": b"- views\n- train\n",
    "nothing": b"",
    "no_text": b"\xff\xfe\x00\x01" * 8,
    "flat": b"views: 16\n",
    "method": b"method: mae\n",
    "length": b"train: 100\n",
    "misspelt": b"method:\n  mask_ration: 0.5\n",
}
# {x} is x in the folder above; PRE is a complete pre-training call, to whose flags later ones are added; TUNE likewise
PRE = ["pretrain", "--store", "{store}", "--out", "{new}", *PRETRAIN, *ONE_STEP]
TUNE = ["finetune", "--store", "{store}", "--out", "{new}", "--pretrained", "{mae}", *FINETUNE, *ONE_STEP]
PREPARE = ["prepare", "--catalogue", "{c.parquet}", "--out", "{new}"]
PREDICT = ["predict", "--run", "{seg}", "--images", "{c.parquet}", "--out", "{new}"]
EVALUATE = ["evaluate", "--predictions", "{seg}", "--references", "{c.parquet}", "--out", "{new}"]
COMPARE = ["compare", "--out", "{new}", "--runs"]
UNWRITABLE = ("cannot be written (Not a directory)", "--out")

CALLS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # settings
    "misspelt verb": (["pretrian"], ("no verb 'pretrian'", "Did you mean 'pretrain'?", "Verbs: catalogue")),
    "misspelt flag": (
        [*PRE, "--method.mask-ration", "0.5"],
        ("--method.mask-ration", "Perhaps", "--method.mask-ratio"),
    ),
    "misspelt key": (
        [*PRE, "--recipe", "{misspelt.yaml}"],
        ("misspelt.yaml", "unknown key 'method.mask_ration'", "Did you mean 'method.mask_ratio'?"),
    ),
    "misspelt recipe": ([*PRE, "--recipe", "mae-vit-cp"], ("recipe 'mae-vit-cp'", "Did you mean 'mae-vit-cpu'?")),
    "absent recipe": ([*PRE, "--recipe", "{no.yaml}"], ("no.yaml: cannot be read (No such", "Give an existing")),
    "recipe with tabs": ([*PRE, "--recipe", "{tabs.yaml}"], ("tabs.yaml: not valid YAML", "line 2", "never with tabs")),
    "recipe of a list": (
        [*PRE, "--recipe", "{list.yaml}"],
        ("list.yaml: found a list", "expected keys with", "such as"),
    ),
    "empty recipe": (
        [*PRE, "--recipe", "{nothing.yaml}"],
        ("nothing.yaml: found nothing", "expected keys with", "such"),
    ),
    "binary recipe": ([*PRE, "--recipe", "{no_text.yaml}"], ("no_text.yaml: found bytes", "expected YAML", "Give a")),
    "value for a section": (
        [*PRE, "--recipe", "{flat.yaml}"],
        ("'views' is 16", "expected keys below it", "Write `views"),
    ),
    "name for a section": (
        [*PRE, "--recipe", "{method.yaml}"],
        ("'method' is 'mae'", "expected keys", "Write `method"),
    ),
    "number for a length": ([*PRE, "--recipe", "{length.yaml}"], ("'train' is 100", "expected keys", "Write `train")),
    "method": ([*PRE, "--method.name", "simclr"], ("method 'simclr': not known", "Known methods: mae")),
    "ratio": ([*PRE, "--method.mask-ratio", "3"], ("'method.mask_ratio' is 3.0", "should be less than 1")),
    "heads": ([*PRE, "--method.decoder-heads", "5"], ("decoder_heads 5 must divide decoder_width 24", "change either")),
    "negative spacing": ([*PREPARE, "--spacing", "-1", "1", "1"], ("'spacing' is -1.0", "should be greater than 0")),
    "two spacings": ([*PREPARE, "--spacing", "1", "1"], ("--spacing (1.0, 1.0): 2 numbers", "expected three", "mm")),
    "word for spacing": ([*PREPARE, "--spacing", "fine"], ("--spacing", "'fine'", "'none', 'median'")),
    "overlap": ([*PREDICT, "--overlap", "1"], ("'overlap' is 1.0", "should be less than 1")),
    "no length": (PRE[:-2], ("the run has no length", "give --train.steps or --train.epochs")),
    "no paths": (["catalogue"], ("'paths' has 0 values", "give one at least")),
    # sizes
    "views off the patch": (
        [*PRE, "--views.size", "95", "95", "95", "--model.patch", "16", "16", "16"],
        ("views.size is 95 along z", "model.patch 16", "nearest sizes that fit are 80 and 96"),
    ),
    "views off the run's patch": (
        [*TUNE, "--views.size", "20", "16", "16"],
        ("views.size is 20 along z", "8 does not divide", "are 16 and 24"),
    ),
    "flat views, solid patch": (
        [*PRE, "--views.size", "16", "16"],
        ("model.patch has 3 numbers", "views.size has 2", "Give both"),
    ),
    "patch that UNETR cannot double": (
        [
            "finetune",
            "--store",
            "{store}",
            "--out",
            "{new}",
            *FINETUNE,
            *ONE_STEP,
            "--views.size",
            "24",
            "24",
            "24",
            "--encoder.size",
            "T",
            "--encoder.patch",
            "12",
            "12",
            "12",
        ],
        ("patch (12, 12, 12)", "powers of two", "Use an encoder with patch 2, 4, 8 or 16"),
    ),
    # what there is to learn from
    "labels": ([*TUNE, "--labels", "1000"], ("--labels: found 1000, but only 3", "expected at most 3", "Give fewer")),
    "split column": (
        [*PRE, "--split.column", "fold"],
        ("split column 'fold'", "no such column", "expected one of", "Join"),
    ),
    "split values": (
        [*PRE, "--split.column", "collection"],
        ("split column 'collection'", "values ['scans']", "only train, validation, test", "Name another column"),
    ),
    "region": (
        [*TUNE, "--regions", "a=1,2"],
        ("regions: 'a' names label value(s) 2", "label maps hold 1", "Use values that occur"),
    ),
    # catalogues, stores and runs that are none
    "no catalogue": (
        ["prepare", "--catalogue", "{no.parquet}", "--out", "{new}"],
        ("no.parquet: found no such file", "expected a catalogue", "Write one with"),
    ),
    "folder as catalogue": (
        ["prepare", "--catalogue", "{scans}", "--out", "{new}"],
        ("scans: found a folder", "expected a catalogue", "Write one with"),
    ),
    "no store": (
        [*PRE, "--store", "{nowhere}"],
        ("nowhere: found no such folder", "expected a store", "Give the folder"),
    ),
    "catalogue as store": (
        [*PRE, "--store", "{c.parquet}"],
        ("c.parquet: found a file", "expected a store", "Give the"),
    ),
    "scans as store": ([*PRE, "--store", "{scans}"], ("a folder without store.json", "expected a store", "Give the")),
    "no run": ([*PREDICT, "--run", "{nowhere}"], ("nowhere: does not exist", "Give a run folder of `prevox finetune`")),
    "pre-training as run": (
        [*PREDICT, "--run", "{mae}"],
        ("mae: has no network.json", "no fine-tuning run", "Give a run of `prevox finetune`"),
    ),
    "fine-tuning as pre-training": (
        [*TUNE, "--pretrained", "{seg}"],
        (
            "seg: has neither pretrained.safetensors",
            "a run of `prevox finetune`",
            "Give a run folder of `prevox pretrain`",
        ),
    ),
    "store as pre-training": (
        [*TUNE, "--pretrained", "{store}"],
        ("store: has neither pretrained.safetensors", "Give a run folder of `prevox pretrain`"),
    ),
    "other architecture and pre-training": (
        [*TUNE, "--encoder.size", "S"],
        ("give --pretrained or --encoder, not both", "the encoder is the run's own"),
    ),
    "neither": (
        [word for word in TUNE if word not in ("--pretrained", "{mae}")],
        ("give --pretrained RUN, or a network to train from scratch",),
    ),
    "run that is not empty": (
        [*PRE, "--out", "{mae}"],
        ("mae: is a run already", "Add --resume", "choose another --out"),
    ),
    "folder that is not empty": ([*PRE, "--out", "{scans}"], ("is not empty and not a run", "Choose another --out")),
    "store among other files": (
        [*PREPARE, "--out", "{scans}"],
        ("scans: found a folder with other files", "expected a store, or a new or empty folder"),
    ),
    "run of another verb": (
        [*TUNE, "--out", "{mae}", "--resume"],
        ("mae: is a run of `prevox pretrain`", "`prevox finetune` cannot go on", "Choose another --out"),
    ),
    "run of other settings": (
        [*PRE, "--out", "{mae}", "--resume", "--method.mask-ratio", "0.5", "--model.size", "S"],
        (
            "mae: cannot be resumed",
            "method.mask_ratio: the run has 0.75, this call 0.5",
            "has 'T', this call 'S'",
            "Repeat",
        ),
    ),
    # places that cannot be written: below a file
    "catalogue unwritable": (["catalogue", "{scans}", "--out", "{file}/x/c.parquet"], UNWRITABLE),
    "store unwritable": ([*PREPARE, "--out", "{file}/x"], ("cannot be written ([Errno 20] Not a directory", "--out")),
    "pretrain unwritable": ([*PRE, "--out", "{file}/x"], UNWRITABLE),
    "finetune unwritable": ([*TUNE, "--out", "{file}/x"], UNWRITABLE),
    "predict unwritable": ([*PREDICT, "--out", "{file}/x"], UNWRITABLE),
    "evaluate unwritable": ([*EVALUATE, "--out", "{file}/x"], UNWRITABLE),
    "report unwritable": (["report", "--runs", "{seg}", "--out", "{file}/x/r.html"], UNWRITABLE),
    "file as run folder": (
        [*PRE, "--out", "{file}"],
        ("file: cannot be written (File exists)", "Choose another --out"),
    ),
    "file as store": ([*PREPARE, "--out", "{file}"], ("file: found a file", "expected a folder")),
    # images, predictions, references
    "no images": (
        [*PREDICT, "--images", "{nowhere}"],
        ("nowhere: found no such file or folder", "expected a", "Check"),
    ),
    "masks over images": (
        [*PREDICT, "--images", "{scans}", "--out", "{scans/images}"],
        ("out: ", "images/case_0.nii.gz", "which a mask could replace", "Give --out a folder of its own"),
    ),
    "no predictions": (
        [*EVALUATE, "--predictions", "{mae}"],
        ("mae: the run has no predictions", "Make them with: prevox predict"),
    ),
    "no references": ([*EVALUATE, "--references", "{no.parquet}"], ("no.parquet: found no such", "expected", "Check")),
    "lesions of no class": (
        [*EVALUATE, "--lesions", "tumour"],
        ("lesions: found no class 'tumour'", "expected some of", "Name classes with --regions"),
    ),
    "probabilities against masks": (
        [*EVALUATE, "--predictions", "{misspelt.yaml}", "--references", "{scans}"],
        ("misspelt.yaml: found columns", "expected a row for each case", "'image' or 'case'"),
    ),
    "no run to compare": ([*COMPARE, "{nowhere}", "{seg}"], ("nowhere: no such folder", "Give fine-tuning runs")),
    "one run to compare": ([*COMPARE, "{seg}"], ("found one run (seg)", "expected at least two", "NAME=PATH")),
    "run without scores": (
        [*COMPARE, "{seg}", "{mae}"],
        ("seg: holds no scores", "Make them with: prevox evaluate --predictions"),
    ),
    "metric": ([*COMPARE, "{seg}", "{mae}", "--metric", "iou"], ("--metric", "'iou'", "dice")),
    "no run to report": (["report", "--runs", "{nowhere}"], ("nowhere: no such folder", "Give run folders")),
    "store as run to report": (
        ["report", "--runs", "{store}"],
        ("store: holds neither config.yaml nor scores", "Give the folder"),
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_cannot_work_says_why(what: str, made: Path, shell: Shell, tmp_path: Path) -> None:
    words, parts = CALLS[what]
    for name, content in RECIPES.items():
        (made / f"{name}.yaml").write_bytes(content)
    places = {"{new}": str(tmp_path / "new")}

    def filled(word: str) -> str:
        name = word[1 : word.find("}")] if word.startswith("{") else ""
        return places.get(word) or (f"{made / name}{word[len(name) + 2 :]}" if name else word)

    says(shell(*(filled(word) for word in words), code=2), *parts)
    assert not (tmp_path / "new").exists() or not any(path.is_file() for path in (tmp_path / "new").rglob("*"))
