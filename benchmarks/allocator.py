"""What it is worth to keep freed memory: steps on a CPU with glibc's own policy, and with `prevox.allocator`.

    python benchmarks/allocator.py                  # about four minutes

Each policy runs in processes of its own, in turn, as a process cannot go back to glibc's moving threshold. `ours` keeps
freed memory, `peer` is the same step of the same network without it; `equal` is the difference of the losses. Peaks are
the largest resident memory of the whole process. `page_faults` are those of one step.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch

import mae_step
import s3d_step
from harness import Run, compared, show, timed
from prevox.allocator import keep_freed_memory
from prevox.config.models import ResEncConfig, ViTConfig
from prevox.models.registry import build_model
from prevox.models.resenc.settings import resenc_settings
from prevox.models.unetr import UNETR
from prevox.models.vit import vit_settings

SIDE, BATCH, CLASSES = 64, 2, 3
Step = Callable[[], torch.Tensor]


def images(side: int) -> torch.Tensor:
    return torch.randn(BATCH, 1, *(side,) * 3, generator=torch.Generator().manual_seed(1))


def segmentation(network: torch.nn.Module) -> Step:
    x = images(SIDE)

    def step() -> torch.Tensor:
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), torch.zeros(BATCH, *x.shape[2:], dtype=torch.long))
        loss.backward()
        return loss.detach()

    return step


def unetr() -> torch.nn.Module:
    vit = build_model("vit", vit_settings(ViTConfig(size="T", patch=(8, 8, 8)), (SIDE,) * 3, 1))
    return UNETR(vit, 1, CLASSES, 16)


def inference() -> Step:
    network, x = unetr().eval(), images(SIDE)

    def step() -> torch.Tensor:
        with torch.inference_mode():
            return network(x).mean()

    return step


STEPS: dict[str, Callable[[], Step]] = {
    "MAE step, ViT-B, 96³": lambda: mae_step.our_step(mae_step.ours(96), images(96), nullcontext),
    "S3D step, ResEnc-S, 64³, 75 % masked": lambda: s3d_step.our_step(
        s3d_step.ours("S", SIDE, 0.75), images(SIDE), nullcontext
    ),
    "segmentation step, UNETR with ViT-T, patch 8, 64³": lambda: segmentation(unetr()),
    "segmentation step, ResEnc-S, 64³": lambda: segmentation(
        build_model("resenc", resenc_settings(ResEncConfig(size="S"), (SIDE,) * 3, 1, CLASSES))
    ),
    "inference, UNETR with ViT-T, patch 8, 64³": inference,
}


def child(name: str, policy: str, runs: int) -> None:
    """Time a step in this process, and print what was found."""
    if policy == "keep":
        keep_freed_memory()
    torch.manual_seed(0)
    step = STEPS[name]()
    loss = float(step())
    step(), step()  # until every tensor has found its place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = [timed(step).seconds for _ in range(runs)]
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"loss": loss, "seconds": seconds, "peak_mb": used.ru_maxrss / 2**10}
    print(json.dumps({**found, "faults": (used.ru_minflt - before) // runs}))


def compare(name: str, processes: int, runs: int) -> None:
    found: dict[str, list[Run]] = {"keep": [], "return": []}
    loss, faults = {}, {}
    for _ in range(processes):
        for policy, all_runs in found.items():
            call = [sys.executable, __file__, "--child", name, policy, "--runs", str(runs)]
            got = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
            loss[policy], faults[policy] = got["loss"], got["faults"]
            all_runs += [Run(None, seconds, got["peak_mb"]) for seconds in got["seconds"]]
    equal = abs(loss["keep"] - loss["return"])
    show(compared(f"freed memory kept: {name}", found["keep"], found["return"], equal, page_faults=faults))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=3, help="of each policy")
    parser.add_argument("--runs", type=int, default=5, help="steps in each process")
    parser.add_argument("--child", nargs=2, metavar=("STEP", "POLICY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.runs)
        return
    for name in STEPS:
        compare(name, args.processes, args.runs)


if __name__ == "__main__":
    main()
