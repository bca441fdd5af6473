"""Settings of the training engine, shared by pre-training and fine-tuning."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prevox.config.base import Config, StorePlace


class OptimConfig(Config):
    """The optimiser; norms, biases, tokens and positions are never decayed."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with Nesterov momentum."""
    lr: Annotated[float, Field(gt=0)] = 1.5e-4
    """Peak learning rate, absolute (no hidden scaling by batch size)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled for adamw, L2 for sgd."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """SGD's momentum."""


class ScheduleConfig(Config):
    """Learning rate over the run: linear ramp, then decay; defined on progress, so it stretches with the run."""

    name: Literal["cosine", "poly", "constant"] = "cosine"
    """Decay after the ramp."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run taken by the linear ramp from 0."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Last learning rate as a share of the peak (cosine and poly)."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent of poly."""


class TrainConfig(Config):
    """Length, batch, precision, logging and checkpoints of a run."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps of the run. Give this or epochs."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the images instead of steps."""
    batch: Annotated[int, Field(ge=1)] = 2
    """Images per forward pass and device; each gives views.count views."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward passes per optimiser step."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; weights and optimiser stay fp32."""
    checkpoint_activations: bool = False
    """Keep the input of each transformer block alone and compute the rest again in the backward pass: less memory,
    up to a third more time, the same results. For vision transformers."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm; none switches clipping off."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random; which crop, augmentation and mask is a function of it and the sample's number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    deterministic: bool = False
    """Deterministic kernels on a GPU (slower); the CPU always is."""
    reads_ahead: Annotated[int, Field(ge=1)] = 16
    """Image reads kept in flight; does not change results."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between log lines."""
    picture_every: Annotated[int, Field(ge=1)] = 500
    """Steps between pictures; the last step always draws."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints; the newest two are kept, the last step always saves."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Also keep every checkpoint whose step is a multiple of this, for curves over pre-training length."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self


class ProbeConfig(Config):
    """Segmentation by a linear classifier on frozen features, measured while they are trained (how-to page `probe`).

    Off unless a store is named; the training is the same with and without it.
    """

    store: StorePlace | None = None
    """Labelled store, prepared like the training's, or that itself. Subjects that --split holds out are not used."""
    every: Annotated[int, Field(ge=1)] = 200
    """Steps between two probes; the untrained and the final network are always probed."""
    images: Annotated[int, Field(ge=2)] = 32
    """Images of both halves together: half of the subjects are to fit the classifier on, the others to test it on."""
    voxels: Annotated[int, Field(ge=1)] = 2048
    """Voxels of each image that the classifier is fitted on; it is tested on all voxels of a view."""

    @model_validator(mode="after")
    def _has_a_store(self) -> "ProbeConfig":
        fields = type(self).model_fields
        idle = [name for name, field in fields.items() if getattr(self, name) != field.default]
        if self.store is None and idle:
            raise ValueError(
                f"{', '.join(idle)} without a store: give --probe.store, or leave the probe's settings out"
            )
        return self
