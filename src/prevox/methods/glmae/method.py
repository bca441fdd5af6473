"""GL-MAE, global-local masked autoencoder.

Zhuang, Luo, Chen, "Advancing volumetric medical image segmentation via global-local masked autoencoder",
arXiv:2306.08913.

Masked local and global views of an image go through one encoder and one decoder, which predicts the hidden patches
(equations 1–4). A momentum encoder sees the global views unmasked (5); the projected class tokens of the masked views
are to say the same as those of the unmasked ones (6–10).

Readings and deviations, each with its reason on the methods page `glmae`:

- Equation 5 is m ← μ m + (1 − μ) s with μ from 0.996 to 1; as printed, μ near 1 would make the teacher the student.
- Equations 3 and 4 are the mean over views of the mean squared error of masked patches; as printed they are divided by
  the number of patches as well and would vanish beside consistency. `reconstruct: all` takes all patches.
- Equation 7 has a temperature of 0.1 for the student and 0.04 for the teacher, whose outputs are centred (DINO) and
  scaled to unit length; `literal` is the equation as printed: one temperature (0.1), no centring.
- Head, decoder and momentum are not in the paper; its versions differ in the mask ratio (0.6 here).
- Where a view reaches beyond its image (scale None), the input is 0 and padded voxels do not count.

Shape suffixes: B images, V views of one size (view v of image b is row b · count + v), C channels, D H W voxels (D is
absent in 2D), L patches, M those whose reconstruction counts, P values of a patch, N tokens, K outputs of the head, S
and T views of an image.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prevox.config.data import ViewsConfig
from prevox.config.models import ViTConfig
from prevox.console import warn
from prevox.errors import ConfigError
from prevox.masking.tokens import TokenMask, kept_tokens, random_token_mask
from prevox.methods.glmae.config import GLOBAL_TERMS, LOCAL_TERMS, GLMAEConfig
from prevox.methods.glmae.losses import consistency_loss, effective_rank, reconstruction_loss, teacher_momentum
from prevox.methods.glmae.teacher import ProjectionHead, Teacher
from prevox.methods.mae.pictures import reconstruction_picture
from prevox.methods.mae.target import explained_share, masked_patches, normalise_patches, views_patches
from prevox.models.mae_decoder import MAEDecoder, Tokens
from prevox.models.vit import Cut, ViT, vit_settings
from prevox.task import Batch, ModelSpec, Picture, Pretrained, PretrainMethod, StepContext, StepOutput, ViewGroup, Views

KINDS = ("global", "local")


def build(settings: GLMAEConfig, model: ViTConfig, views: ViewsConfig, channels: int) -> "GlobalLocalAutoencoder":
    """Build the method from its settings.

    Args:
        settings: Of the method; its counts and scales are those of the two kinds of views.
        model: Of the encoder.
        views: `size` is that of the local views and the encoder's native one; `axes` and `augment` hold for both kinds.
        channels: Channels of the images.

    Raises:
        ConfigError: If the backbone is not a vision transformer with a class token, the patch does not divide both
            sizes, or the mask ratio leaves no token visible or none masked.
    """
    if not isinstance(model, ViTConfig):
        raise ConfigError(f"method glmae: found model {type(model).__name__}; expected vit. Give --model.name vit.")
    weights = {term: getattr(settings, term) for term in dict.fromkeys((*LOCAL_TERMS, *GLOBAL_TERMS))}
    consistent = weights["global_consistency"] > 0 or weights["local_consistency"] > 0
    if consistent and not model.class_token:
        raise ConfigError(
            "method glmae: model.class_token is false, and the consistency terms compare class tokens. Set it to true, "
            "or method.global_consistency and method.local_consistency to 0."
        )
    _say_what_is_ignored(settings, views)
    keywords = vit_settings(model, views.size, channels)
    _check_global_size(settings.global_size, model.patch, views.size)
    encoder = ViT(**keywords)
    decoder = head = teacher = None
    if weights["local_reconstruction"] > 0 or weights["global_reconstruction"] > 0:
        decoder = MAEDecoder.behind(
            encoder, settings.decoder_width, settings.decoder_depth, settings.decoder_heads, model.positions
        )
    if consistent:
        head = ProjectionHead(encoder.width, settings.head_hidden, settings.head_outputs)
        temperature = settings.student_temperature if settings.literal else settings.teacher_temperature
        centring = settings.centring and not settings.literal
        teacher = Teacher(encoder, head, temperature, centring, settings.centre_momentum)
    groups = {
        "global": ViewGroup(
            settings.global_size,
            settings.global_count,
            augment=views.augment,
            scale=settings.global_scale,
            axes=views.axes,
        ),
        "local": ViewGroup(
            views.size, settings.local_count, augment=views.augment, scale=settings.local_scale, axes=views.axes
        ),
    }
    return GlobalLocalAutoencoder(
        encoder,
        decoder,
        head,
        teacher,
        spec=ModelSpec("vit", keywords),
        views=groups,
        weights=weights,
        mask_ratio=settings.mask_ratio,
        reconstruct=settings.reconstruct,
        target=settings.target,
        student_temperature=settings.student_temperature,
        momentum=settings.momentum,
    )


def _say_what_is_ignored(settings: GLMAEConfig, views: ViewsConfig) -> None:
    if views.foreground > 0:
        warn("views.foreground is ignored: pre-training does not look at labels")
    if views.scale is not None:
        warn("views.scale is ignored: method glmae takes method.local_scale and method.global_scale")
    if views.count > 1:
        warn("views.count is ignored: method glmae takes method.local_count and method.global_count")
    if settings.literal:
        warn("method.literal: teacher_temperature and centring are ignored; this form can collapse")


def _check_global_size(size: tuple[int, ...], patch: tuple[int, ...], local: tuple[int, ...]) -> None:
    if len(size) != len(local):
        raise ConfigError(
            f"method.global_size has {len(size)} numbers ({list(size)}) and views.size has {len(local)} "
            f"({list(local)}). Give both three (z y x) for volumes, or both two (y x) for images and slices."
        )
    for axis, n, p in zip("zyx"[-len(size) :], size, patch, strict=True):
        if n % p:
            fitting = [str(m) for m in (n // p * p, n // p * p + p) if m > 0]
            raise ConfigError(
                f"method.global_size is {n} along {axis}, which model.patch {p} does not divide. "
                f"The nearest sizes that fit are {' and '.join(fitting)}."
            )


@dataclass
class _Cut:
    """One kind's views, cut into patches and masked; `generator` draws whatever else is random in them."""

    patches_VLP: Tensor
    valid_VLP: Tensor | None  # None where nothing is padded
    grid: tuple[int, ...]
    mask: TokenMask
    generator: torch.Generator


class GlobalLocalAutoencoder(PretrainMethod):
    """One encoder and decoder on masked views of two kinds, a momentum encoder on unmasked global ones.

    Args:
        encoder: Embeds visible patches; its native grid is that of the local views.
        decoder: Predicts hidden patches; None where both reconstruction terms are off.
        head: Projects the student's class tokens; None where both consistency terms are off.
        teacher: Momentum encoder with its head; None with `head`.
        spec: From which the encoder can be built again.
        views: What the loader may cut, "global" and "local"; a kind that no term needs is not cut.
        weights: Of the four terms, by name; a term of weight 0 is not computed.
        mask_ratio: Share of each view's patches that is masked.
        reconstruct: "masked" patches only, or "all".
        target: "raw" or "normalised" (each patch standardised by itself).
        student_temperature: Of the student's softmax.
        momentum: Teacher's momentum at the start.

    Raises:
        ConfigError: If the ratio leaves no token visible or none masked.
    """

    def __init__(
        self,
        encoder: ViT,
        decoder: MAEDecoder | None,
        head: ProjectionHead | None,
        teacher: Teacher | None,
        spec: ModelSpec,
        views: dict[str, ViewGroup],
        weights: dict[str, float],
        mask_ratio: float = 0.6,
        reconstruct: Literal["masked", "all"] = "masked",
        target: Literal["raw", "normalised"] = "raw",
        student_temperature: float = 0.1,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head, self.teacher = encoder, decoder, head, teacher
        self.spec = spec
        self.weights = {term: weight for term, weight in weights.items() if weight > 0}
        needed = {"global": GLOBAL_TERMS, "local": LOCAL_TERMS}
        self.views = {kind: views[kind] for kind in KINDS if any(term in self.weights for term in needed[kind])}
        for group in self.views.values():  # refuses an unfit ratio before any data is read
            kept_tokens(math.prod(n // p for n, p in zip(group.size, encoder.patch, strict=True)), mask_ratio)
        self.mask_ratio, self.reconstruct, self.target = mask_ratio, reconstruct, target
        self.student_temperature, self.momentum = student_temperature, momentum

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step: mask both kinds of views, encode all at once, reconstruct, compare with the teacher."""
        # a generator for each kind, so that a term switched off leaves the others as they are
        seeds = torch.randint(2**62, (len(KINDS),), generator=ctx.generator).tolist()
        terms: dict[str, Tensor] = {}
        scalars: dict[str, Tensor] = {}
        pictures: dict[str, Picture] = {}
        cuts = {k: self._cut(batch.views[k], seed) for k, seed in zip(KINDS, seeds, strict=True) if k in self.views}
        tokens = self._encode(cuts)
        class_tokens = {kind: x_VND[:, 0] for kind, x_VND in tokens.items() if f"{kind}_consistency" in self.weights}
        for kind, prediction_VMP in self._decode(cuts, tokens).items():
            terms[f"{kind}_reconstruction"], scalars[f"explained_{kind}"], picture = self._compare(
                cuts[kind], prediction_VMP, ctx.want_pictures
            )
            if picture is not None:
                pictures[f"{kind}_reconstruction"] = picture
        if self.teacher is not None:
            consistency, signs = self._consistency(cuts["global"], class_tokens, len(batch.images), ctx)
            terms |= consistency
            scalars |= signs
        loss = torch.stack([self.weights[term] * value for term, value in terms.items()]).sum()  # (11)
        return StepOutput(loss, {term: value.detach() for term, value in terms.items()} | scalars, pictures)

    def _cut(self, views: Views, seed: int) -> _Cut:
        """Patches of one kind's views, and an independent mask for each view."""
        patches_VLP, valid_VLP = views_patches(views, self.encoder.patch)
        generator = torch.Generator().manual_seed(seed)
        count, length, _ = patches_VLP.shape
        mask = random_token_mask(count, length, self.mask_ratio, generator, patches_VLP.device)
        return _Cut(patches_VLP, valid_VLP, self.encoder.grid_of(views.x_BCDHW), mask, generator)

    def _encode(self, cuts: dict[str, _Cut]) -> dict[str, Tensor]:
        """Equation 1: tokens of the visible patches by kind, without the global views that only the teacher needs."""
        kinds = [kind for kind in cuts if {f"{kind}_reconstruction", f"{kind}_consistency"} & self.weights.keys()]
        chosen = [cuts[kind] for kind in kinds]
        views = [Cut(cut.patches_VLP, cut.grid, cut.mask.visible_BK, cut.generator) for cut in chosen]
        return dict(zip(kinds, self.encoder.encode(views), strict=True))

    def _decode(self, cuts: dict[str, _Cut], tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Equation 2: predicted patches by kind, where a reconstruction counts."""
        kinds = [kind for kind in tokens if f"{kind}_reconstruction" in self.weights]
        if self.decoder is None:
            return {}
        parts = [Tokens(tokens[kind], cuts[kind].mask.order_BL, cuts[kind].grid) for kind in kinds]
        return dict(zip(kinds, self.decoder.decode(parts, self.reconstruct == "all"), strict=True))

    def _compare(self, cut: _Cut, prediction_VMP: Tensor, draw: bool) -> tuple[Tensor, Tensor, Picture | None]:
        """Equation 3 (or 4) for one kind of views: the loss, the explained share, a picture on request."""
        everywhere = self.reconstruct == "all"
        if everywhere:
            original_VMP, valid_VMP = cut.patches_VLP, cut.valid_VLP
        else:
            original_VMP, valid_VMP = masked_patches(cut.patches_VLP, cut.valid_VLP, cut.mask.masked_BM)
        target_VMP, mean, deviation = original_VMP, None, None
        if self.target == "normalised":
            target_VMP, mean, deviation = normalise_patches(original_VMP, valid_VMP)
        loss = reconstruction_loss(prediction_VMP, target_VMP, valid_VMP)
        explained = explained_share(prediction_VMP, target_VMP, valid_VMP)
        if not draw:
            return loss, explained, None
        masked_M = cut.mask.masked_BM[0]
        rows = masked_M if everywhere else slice(None)  # of the first view, those that were hidden
        statistics = None if mean is None or deviation is None else (mean[0][rows], deviation[0][rows])
        picture = reconstruction_picture(
            cut.patches_VLP[0],
            masked_M,
            target_VMP[0][rows],
            prediction_VMP[0][rows],
            statistics,
            cut.grid,
            self.encoder.patch,
        )
        return loss, explained, picture

    def _consistency(
        self, unmasked: _Cut, class_tokens: dict[str, Tensor], images: int, ctx: StepContext
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Equations 6 to 10: terms by name, and the scalars that show a collapse."""
        assert self.teacher is not None
        assert self.head is not None
        e_BSK, p_BSK = self.teacher(unmasked.patches_VLP, unmasked.grid, images)
        terms = {}
        for kind, class_VD in class_tokens.items():
            e_BTK = self.head(class_VD).unflatten(0, (images, -1))
            terms[f"{kind}_consistency"] = consistency_loss(p_BSK, e_BTK, self.student_temperature)
        signs = self.teacher.watch(e_BSK, p_BSK, torch.stack(list(terms.values())).mean(), ctx.all_reduce)
        return terms, signs | {"rank": effective_rank(torch.cat(list(class_tokens.values())).detach())}

    def after_update(self, progress: float, output: StepOutput) -> None:
        """Let the teacher follow the student (equation 5), by a momentum that reaches 1 at the end of the run."""
        if self.teacher is not None:
            assert self.head is not None
            self.teacher.update(self.encoder, self.head, teacher_momentum(progress, self.momentum), progress)

    def pretrained(self) -> Pretrained:
        """The student's encoder; decoder, heads and teacher are auxiliaries that end with pre-training."""
        return Pretrained({name: value.detach() for name, value in self.encoder.state_dict().items()}, self.spec)

    def features(self, x_BCDHW: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The student's last map of unmasked images, with the patch as its stride."""
        return [(self.encoder.forward_features(x_BCDHW)[-1], self.encoder.patch)]
