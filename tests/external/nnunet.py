"""An exported network in an unmodified nnU-Net v2: it is loaded, tensor by tensor, and trains an epoch.

    python tests/external/nnunet.py WORK        # WORK: an empty folder; about a quarter of an hour and 6 GB

Makes WORK/env with nnunetv2 from the package index, a toy data set of phantoms, a short pre-training by the command
line of this package, the export, and nnU-Net's own commands; before those it asks nnU-Net's network what it holds after
loading. Not a part of `make test`: it needs a package index and a set of packages of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from prevox.data.phantom import CLASS_NAMES, write_phantoms

DATASET = "Dataset900_Phantoms"
TINY = ["--method.name", "s3d", "--model.name", "resenc", "--model.size", "S", "--views.size", "32", "32", "32"]
CHECK = """
import json, sys, torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
folder = sys.argv[1]
settings = PlansManager(f"{folder}/prevoxPlans.json").get_configuration("3d_fullres")
network = get_network_from_plans(
    settings.network_arch_class_name, settings.network_arch_init_kwargs, settings.network_arch_init_kwargs_req_import,
    1, 3, allow_init=True, deep_supervision=True,
)
before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
load_pretrained_weights(network, f"{folder}/checkpoint_pretrained.pth", verbose=False)
wanted = torch.load(f"{folder}/checkpoint_pretrained.pth", weights_only=True)["network_weights"]
after = network.state_dict()
taken = [name for name in after if ".seg_layers." not in name]
wrong = [name for name in taken if not torch.equal(after[name], wanted[name])]
moved = [name for name in taken if not torch.equal(after[name], before[name])]
assert not wrong, wrong
print(f"{len(taken)} tensors under nnU-Net's names equal the exported ones; loading has changed {len(moved)} of them")
"""


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    python = work / "env" / "bin" / "python"
    if not python.exists():
        venv.create(work / "env", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "nnunetv2"], check=True)
    names = {name: work / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**os.environ, **{name: str(path) for name, path in names.items()}, "nnUNet_n_proc_DA": "0"}
    environment |= {"nnUNet_compile": "f", "PYTHONPATH": ""}

    phantoms = work / "phantoms"
    write_phantoms(phantoms, 6, seed=1, shape=(36, 36, 36))
    raw = names["nnUNet_raw"] / DATASET
    write_raw(phantoms, raw)
    prevox = [sys.executable, "-m", "prevox"]
    made = {name: work / name for name in ("c.parquet", "store", "s3d", "handed")}
    run(*prevox, "catalogue", phantoms, "--out", made["c.parquet"])
    run(*prevox, "prepare", "--catalogue", made["c.parquet"], "--out", made["store"], "--spacing", 3, 3, 3)
    run(*prevox, "pretrain", "--store", made["store"], "--out", made["s3d"], *TINY, "--train.steps", 20)
    run(*prevox, "export", "nnunet", "--run", made["s3d"], "--out", made["handed"], "--dataset", DATASET)

    run(python, "-c", CHECK, made["handed"], environment=environment)
    tools = work / "env" / "bin"
    run(tools / "nnUNetv2_extract_fingerprint", "-d", "900", "-np", 1, environment=environment)
    plans = names["nnUNet_preprocessed"] / DATASET / "prevoxPlans.json"
    shutil.copy(made["handed"] / "prevoxPlans.json", plans)
    shutil.copy(raw / "dataset.json", plans.parent)
    call = ["-d", "900", "-plans_name", "prevoxPlans", "-c", "3d_fullres", "-np", 1]
    run(tools / "nnUNetv2_preprocess", *call, environment=environment)
    words = ["900", "3d_fullres", "0", "-p", "prevoxPlans", "-tr", "nnUNetTrainer_1epoch", "-device", "cpu"]
    words += ["-pretrained_weights", made["handed"] / "checkpoint_pretrained.pth"]
    run(tools / "nnUNetv2_train", *words, environment=environment)
    print("nnU-Net has trained an epoch on the exported weights")


def write_raw(phantoms: Path, raw: Path) -> None:
    """The phantoms, which lie in the Decathlon's layout, as nnU-Net's raw layout."""
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    images = sorted((phantoms / "imagesTr").glob("*.nii.gz"))
    for image in images:
        shutil.copy(image, raw / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copy(phantoms / "labelsTr" / image.name, raw / "labelsTr" / image.name)
    labels = {"background": 0, **{name: int(value) for value, name in CLASS_NAMES.items()}}
    told = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": len(images), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(told))


def run(*words: object, environment: dict[str, str] | None = None) -> None:
    command = [str(word) for word in words]
    print(
        "$", " ".join(Path(command[0]).name if n == 0 else word for n, word in enumerate(command) if "\n" not in word)
    )
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
