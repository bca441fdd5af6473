"""The momentum encoder with its projection head: what it says, how it follows the student, and when it says nothing.

Shape suffixes: B images, S unmasked global views of an image, V = B · S, N tokens, D their width, K outputs.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from prevox.console import warn
from prevox.methods.glmae.losses import entropy, teacher_distribution
from prevox.models.vit import Cut, ViT

CONSTANT = 0.02  # share of log K below which kl and information count as nothing
WATCH_MOMENTUM = 0.9  # of their moving means
LOOK_EVERY = 50  # updates between looks at the alarm, for which the host waits for the device
LOOK_FROM = 0.1  # progress; before, all views look alike to an honest teacher too


class ProjectionHead(nn.Sequential):
    """Three fully-connected layers with GELU between them (equation 6), without norms.

    Weights start by Xavier's rule and biases from 0, as in the encoder: outputs differ between views from the start.
    """

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)]
        super().__init__(*layers)
        self.outputs = outputs
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)


class Teacher(nn.Module):
    """Moving average of the student, its centre, and the watch over both.

    Means over a step's forward passes and devices are collected first and applied by `update`, so the centre that a
    step sees does not depend on how its images are divided among passes and devices.

    Args:
        encoder: The student's, which is copied.
        head: The student's, which is copied.
        temperature: Of the softmax.
        centring: Whether the centre is subtracted and the difference scaled to unit length.
        centre_momentum: How much of the centre stays at each update.
    """

    centre_K: Tensor
    mean_K: Tensor
    watch_2: Tensor
    pending: Tensor

    def __init__(
        self, encoder: ViT, head: ProjectionHead, temperature: float, centring: bool, centre_momentum: float
    ) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.requires_grad_(False)
        self.temperature, self.centring, self.centre_momentum = temperature, centring, centre_momentum
        self.largest = math.log(outputs := head.outputs)  # entropy of the uniform distribution
        self.register_buffer("centre_K", torch.zeros(outputs))
        # moving means over updates: distribution, divergence, entropy. They start as far from a collapse as can be, so
        # that an alarm takes about 40 updates; over several updates there are several images also where a step has one
        self.register_buffer("mean_K", torch.full((outputs,), 1 / outputs))
        self.register_buffer("watch_2", torch.tensor([self.largest, 0.0]))
        self.register_buffer("pending", torch.zeros(2 * outputs + 2), persistent=False)
        self.passes = self.updates = 0
        self.warned = False

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: the teacher drops no paths."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, patches_VLP: Tensor, grid: Sequence[int], images: int) -> tuple[Tensor, Tensor]:
        """Distributions of unmasked views, without a gradient.

        Args:
            patches_VLP: All patches of each view.
            grid: Patches along each axis.
            images: B; view s of image b is row b · S + s.

        Returns:
            Outputs of the head and their distributions, both (B, S, K) float32.
        """
        class_VD = self.encoder.encode([Cut(patches_VLP, grid)], asked=slice(0, 1))[0][:, 0]
        e_BSK = self.head(class_VD).float().unflatten(0, (images, -1))
        return e_BSK, teacher_distribution(e_BSK, self.centre_K if self.centring else None, self.temperature)

    @torch.no_grad()
    def watch(
        self, e_BSK: Tensor, p_BSK: Tensor, cross_entropy: Tensor, all_reduce: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Collect what the next update needs; give the scalars that show a collapse.

        Args:
            e_BSK: Outputs of `forward`.
            p_BSK: Distributions of `forward`.
            cross_entropy: Mean cross-entropy of the student's distributions against them.
            all_reduce: Mean over devices.
        """
        mean_entropy = entropy(p_BSK).mean()
        kl = cross_entropy.detach() - mean_entropy
        means = [e_BSK.flatten(0, 1).mean(0), p_BSK.flatten(0, 1).mean(0), kl[None], mean_entropy[None]]
        self.pending += all_reduce(torch.cat(means))
        self.passes += 1
        return {
            "teacher_entropy": mean_entropy,
            "kl": kl,
            "information": self.information,
            "collapse": self.collapsed.float(),
        }

    @property
    def information(self) -> Tensor:
        """What the teacher's distributions tell about their views, in nats, over the last updates.

        Entropy of their mean minus their mean entropy: 0 where all are the same (uniform, one output for all, or any
        other constant), at most log K.
        """
        return entropy(self.mean_K) - self.watch_2[1]

    @property
    def collapsed(self) -> Tensor:
        """Whether the student has nothing left to learn from a teacher that says the same of every view.

        Both distributions agree (kl near 0) and do not depend on the view (information near 0): uniform, one output for
        all, or any other constant. Either alone is no collapse: an honest student may agree with its teacher, and a
        teacher may say little of images that look alike.
        """
        return torch.stack([self.watch_2[0], self.information]).max() < CONSTANT * self.largest

    @torch.no_grad()
    def update(self, encoder: ViT, head: ProjectionHead, momentum: float, progress: float) -> None:
        """Follow the student, m ← μ m + (1 − μ) s (equation 5), then move the centre and the watch.

        Fixed positions are a buffer and no parameter, so they are not averaged.
        """
        student: list[Tensor] = [*encoder.parameters(), *head.parameters()]
        teacher: list[Tensor] = [*self.encoder.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - momentum)
        if self.passes:
            outputs_K, mean_K, signs_2 = (self.pending / self.passes).split([len(self.centre_K), len(self.mean_K), 2])
            self.centre_K.lerp_(outputs_K, 1 - self.centre_momentum)
            self.mean_K.lerp_(mean_K, 1 - WATCH_MOMENTUM)
            self.watch_2.lerp_(signs_2, 1 - WATCH_MOMENTUM)
            self.pending.zero_()
            self.passes = 0
        self.updates += 1
        looking = self.updates % LOOK_EVERY == 0 and progress >= LOOK_FROM and not self.warned
        if looking and self.collapsed.item():
            self.warned = True
            warn(
                "method glmae: the projected class tokens have collapsed. Teacher and student give the same "
                "distribution for every view, so the consistency terms teach nothing; see teacher_entropy, kl, "
                "information and rank in the log. Try method.literal false, method.centring true, a lower "
                "method.teacher_temperature, a lower optim.lr or a longer schedule.warmup, in a new run."
            )
