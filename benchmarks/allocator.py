"""What it is worth to keep freed memory: steps on a CPU with glibc's own policy, and with `prevox.allocator`.

    python benchmarks/allocator.py                  # about eight minutes

Each policy runs in processes of its own, in turn, as a process cannot go back to glibc's moving threshold. `ours` keeps
freed memory. `peer` is the same step of the same network without it, or MONAI's way as a process without Prevox runs it
(the comparisons where both keep it are in mae_step.py and sliding_window.py). `equal` is the difference of the losses,
of a label map that of its mean. Peaks are the largest resident memory of the whole process, `page_faults` those of one
step.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

import mae_step
import s3d_step
import sliding_window
from harness import Run, compared, show, timed
from prevox.allocator import keep_freed_memory
from prevox.config.models import ResEncConfig, ViTConfig
from prevox.models.registry import build_model
from prevox.models.resenc.settings import resenc_settings
from prevox.models.unetr import UNETR
from prevox.models.vit import vit_settings

SIDE, BATCH, CLASSES, FEATURES, WINDOW = 64, 2, 3, 16, (64, 64, 64)
EMBEDDINGS = ("conv", "perceptron")  # MONAI's ways to embed patches
Step = Callable[[], torch.Tensor]


def noise(batch: int, side: int) -> torch.Tensor:
    return torch.randn(batch, 1, *(side,) * 3, generator=torch.Generator().manual_seed(1))


def segmentation(network: torch.nn.Module) -> Step:
    x = noise(BATCH, SIDE)

    def step() -> torch.Tensor:
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), torch.zeros(BATCH, *x.shape[2:], dtype=torch.long))
        loss.backward()
        return loss.detach()

    return step


def unetr() -> torch.nn.Module:
    vit = build_model("vit", vit_settings(ViTConfig(size="T", patch=(8, 8, 8)), (SIDE,) * 3, 1))
    return UNETR(vit, 1, CLASSES, FEATURES)


def inference() -> Step:
    network, x = unetr().eval(), noise(BATCH, SIDE)

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return network(x).mean()

    return step


def mae(batch: int) -> Step:
    return mae_step.our_step(mae_step.ours(96), noise(batch, 96), nullcontext)


def monai_mae(batch: int) -> Step:
    """The faster of its two ways to embed patches, with the attention that the class has."""
    x, like = noise(batch, 96), mae_step.ours(96)
    steps = [mae_step.monai_step(mae_step.monai(like, 96, way, fused=False), x, nullcontext) for way in EMBEDDINGS]
    return min(steps, key=lambda step: min(timed(step).seconds for _ in range(3)))


def window(arm: Callable[..., Any]) -> Step:
    """A volume through a UNETR by windows; layout and number of windows per pass are the fastest for the arm."""
    small = torch.randn(1, 1, 64, 96, 96)
    choices = sliding_window.choices_of(sliding_window.unetr(2, WINDOW, FEATURES).eval())
    choice = min(choices, key=lambda c: min(timed(lambda: arm(c, small, WINDOW)).seconds for _ in range(2)))
    x = torch.randn(1, 1, 64, 128, 128, generator=torch.Generator().manual_seed(0))
    return lambda: torch.tensor(float(arm(choice, x, WINDOW).mean()))


STEPS: dict[str, Callable[[], Step]] = {
    "MAE step, ViT-B, 96³": lambda: mae(BATCH),
    "S3D step, ResEnc-S, 64³, 75 % masked": lambda: s3d_step.our_step(
        s3d_step.ours("S", SIDE, 0.75), noise(BATCH, SIDE), nullcontext
    ),
    "segmentation step, UNETR with ViT-T, patch 8, 64³": lambda: segmentation(unetr()),
    "segmentation step, ResEnc-S, 64³": lambda: segmentation(
        build_model("resenc", resenc_settings(ResEncConfig(size="S"), (SIDE,) * 3, 1, CLASSES))
    ),
    "inference, UNETR with ViT-T, patch 8, 64³": inference,
    "MAE step, ViT-B, 96³, batch 4": lambda: mae(4),
    "MONAI's MaskedAutoEncoderViT": lambda: monai_mae(4),
    "UNETR, 2 classes, 64 × 128 × 128 voxels by windows of 64³": lambda: window(sliding_window.ours),
    "MONAI's sliding_window_inference": lambda: window(sliding_window.peer),
}
PEERS = {  # whose way is not ours without kept memory, but another package's as it comes
    "MAE step, ViT-B, 96³, batch 4": "MONAI's MaskedAutoEncoderViT",
    "UNETR, 2 classes, 64 × 128 × 128 voxels by windows of 64³": "MONAI's sliding_window_inference",
}


def child(name: str, policy: str, runs: int) -> None:
    """Time a step in this process, and print what was found."""
    if policy == "keep":
        keep_freed_memory()
    torch.manual_seed(0)
    step = STEPS[name]()
    result = float(step())
    step(), step()  # until every tensor has found its place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = [timed(step).seconds for _ in range(runs)]
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"result": result, "seconds": seconds, "peak_mb": used.ru_maxrss / 2**10}
    print(json.dumps({**found, "faults": (used.ru_minflt - before) // runs}))


def compare(name: str, processes: int, runs: int) -> None:
    peer = PEERS.get(name, name)
    arms: dict[tuple[str, str], list[Run]] = {(name, "keep"): [], (peer, "return"): []}
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(processes):
        for arm, all_runs in arms.items():
            call = [sys.executable, __file__, "--child", *arm, "--runs", str(runs)]
            got = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
            last[arm] = got
            all_runs += [Run(None, seconds, got["peak_mb"]) for seconds in got["seconds"]]
    (mine, theirs), (ours, peers) = last.values(), arms.values()
    against = "the same without it" if peer == name else f"{peer} as it comes"
    show(
        compared(
            f"freed memory kept: {name}, against {against}",
            ours,
            peers,
            abs(mine["result"] - theirs["result"]),
            page_faults={"ours": mine["faults"], "peer": theirs["faults"]},
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="names of some steps, as they are printed; none takes all")
    parser.add_argument("--processes", type=int, default=3, help="of each policy")
    parser.add_argument("--runs", type=int, default=5, help="steps in each process")
    parser.add_argument("--child", nargs=2, metavar=("STEP", "POLICY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.runs)
        return
    known = [name for name in STEPS if name not in PEERS.values()]
    if unknown := set(args.steps) - set(known):
        parser.error(f"no step {', '.join(unknown)}; there are: {'; '.join(known)}")
    for name in args.steps or known:
        compare(name, args.processes, args.runs)


if __name__ == "__main__":
    main()
