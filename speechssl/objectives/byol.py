"""Joint embedding without negatives: BYOL, SimSiam, DirectPred and DirectCopy, with VICReg's terms where wanted.

Two crops of a clip go through encoder and projector; a predictor of one has to give the other's projection, through
which no gradient flows. `teacher=ema` takes that from a slow copy (BYOL, Grill et al. 2020), `teacher=none` from the
student (SimSiam, Chen and He 2021). `predictor=mlp` is learned; `direct` and `copy` are set from the correlation matrix
F of the predictor's input: through its eigenvectors (DirectPred, Tian et al. 2021, arXiv 2102.06810, section 4), or
directly (DirectCopy, Wang et al. 2021, arXiv 2110.04947, where weight decay is what decides which features stay).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.teacher import Teacher
from speechssl.models.views import two_views
from speechssl.objectives.common import (
    PretrainingObjective,
    encode_views,
    gather_rows,
    in_fp32,
    mlp,
    pool,
    spread,
    view_gap,
)
from speechssl.types import Batch, LossOutput, Term

TEACHERS, PREDICTORS = ("ema", "none"), ("mlp", "direct", "copy", "none")


class BYOLObjective(PretrainingObjective):
    """2 - 2 cosine between a predicted and a given projection of the same clip, both ways."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        sample_rate: int,
        crop_s: float,
        noise_snr_db: tuple[float, float],
        teacher: str,
        predictor: str,
        stop_gradient: bool,
        final_size: int,
        correlation_decay: float,
        correlation_eps: float,
        variance_weight: float,
        covariance_weight: float,
        teacher_memory: tuple[float, float],
        teacher_anneal: float,
        feature_gradient_scale: float,
    ):
        """Args:
        sample_rate: of the audio, samples a second.
        crop_s: seconds of a crop; a shorter clip is taken whole.
        noise_snr_db: range of signal to noise of each crop.
        teacher: "ema" or "none".
        predictor: "mlp", "direct", "copy", or "none", which collapses.
        stop_gradient: whether targets are constants; false collapses.
        final_size: of the projection.
        correlation_decay, correlation_eps: rho and epsilon of DirectPred and DirectCopy.
        variance_weight, covariance_weight: of VICReg's terms on the projections (Bardes et al. 2022).
        teacher_memory, teacher_anneal: see `Teacher`.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.feature_gradient_scale = feature_gradient_scale
        for key, value, known in (("teacher", teacher, TEACHERS), ("predictor", predictor, PREDICTORS)):
            if value not in known:
                raise UserError(f"objective.{key} is {value!r}, but must be one of {', '.join(known)}")
        self.crop_length = max(round(crop_s * sample_rate), encoder.receptive_field)
        self.noise_snr_db, self.kind, self.stop_gradient = tuple(noise_snr_db), predictor, stop_gradient
        self.correlation_decay, self.correlation_eps = correlation_decay, correlation_eps
        self.variance_weight, self.covariance_weight = variance_weight, covariance_weight
        size = encoder.hidden_size
        self.projector = mlp(size, 2 * size, final_size)
        self.predictor = mlp(final_size, 2 * size, final_size) if predictor == "mlp" else None
        self.teacher = None
        if teacher == "ema":
            network = nn.ModuleDict({"encoder": Encoder(encoder), "projector": mlp(size, 2 * size, final_size)})
            self.teacher = Teacher(network, memory=teacher_memory, anneal=teacher_anneal)
        if predictor in ("direct", "copy"):
            self.register_buffer("correlation", torch.zeros(final_size, final_size))

    def begin_step(self, step: int, max_steps: int) -> None:
        """Set the teacher's momentum."""
        super().begin_step(step, max_steps)
        if self.teacher is not None:
            self.teacher.begin_step(step, max_steps)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return: two crops a clip."""
        count = 2 * len(frame_lengths)
        weights = {"variance": self.variance_weight, "covariance": self.covariance_weight}
        return {"similarity": count} | {name: count for name, weight in weights.items() if weight}

    def weights(self) -> Tensor:
        """[D, D]: the predictor that the correlation matrix F gives.

        direct: the eigenvectors of F with sqrt(s / max s) + epsilon in place of its eigenvalues s. copy: F over its
        largest eigenvalue, plus epsilon on the diagonal.
        """
        values, vectors = torch.linalg.eigh(self.correlation)
        values = values.clamp_min(0)
        values = values / values.max().clamp_min(torch.finfo(values.dtype).tiny)
        if self.kind == "direct":
            values = values.sqrt()
        return (vectors * (values + self.correlation_eps)) @ vectors.T

    @torch.no_grad()
    def _correlate(self, projections: Tensor) -> None:
        """F <- rho F + (1 - rho) mean of z z^T, over all ranks."""
        every, _ = gather_rows(projections)
        now = every.T @ every / len(every)
        self.correlation.lerp_(now, 1 - self.correlation_decay if self.correlation.any() else 1.0)

    def predict(self, projections: Tensor) -> Tensor:
        """[2 B, D] -> [2 B, D]."""
        if self.kind == "mlp":
            return self.predictor(projections)
        if self.kind == "none":
            return projections
        with in_fp32(projections):
            return projections.float() @ self.weights()

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Loss of a batch, summed over crops."""
        views = two_views(batch, self.crop_length, self.noise_snr_db)
        output = encode_views(encoder, views, gradient_scale=self.feature_gradient_scale, generator=generator)
        projections = self.projector(pool(output))
        if self.training and self.kind in ("direct", "copy"):
            with in_fp32(projections):
                self._correlate(projections.detach().float())
        targets = projections
        if self.teacher is not None:
            if self.training:
                self.teacher.follow(nn.ModuleDict({"encoder": encoder, "projector": self.projector}))
            with torch.no_grad():
                slow = self.teacher.network
                targets = slow["projector"](pool(slow["encoder"](views.waveforms, views.lengths)))
        if self.stop_gradient:
            targets = targets.detach()
        predictions = self.predict(projections)
        count = len(projections)
        others = targets.roll(count // 2, 0)  # the first crops' targets are the second crops'
        cosine = F.cosine_similarity(predictions.float(), others.float(), dim=-1)
        terms = {"similarity": Term((2 - 2 * cosine).sum(), count)}
        with in_fp32(projections):
            terms |= self._decorrelate(projections.float(), count)
        metrics = {}
        if self.watching:
            metrics = spread(output.packed[-1]) | spread(targets, "target_variance")
            metrics |= view_gap(predictions[: count // 2], others[: count // 2])
        return LossOutput(terms, metrics)

    def _decorrelate(self, projections: Tensor, count: int) -> dict[str, Term]:
        """VICReg's variance and covariance terms (equations 1 to 3), where they have a weight."""
        terms = {}
        for start in range(2):
            if not (self.variance_weight or self.covariance_weight):
                break
            every, _ = gather_rows(projections[start * count // 2 : (start + 1) * count // 2])
            centred = every - every.mean(0)
            covariance = centred.T @ centred / max(len(every) - 1, 1)
            spreads = (covariance.diagonal() + 1e-4).sqrt()
            parts = {
                "variance": (F.relu(1 - spreads).mean(), self.variance_weight),
                "covariance": (
                    (covariance.square().sum() - covariance.diagonal().square().sum()) / len(covariance),
                    self.covariance_weight,
                ),
            }
            for name, (value, weight) in parts.items():
                if weight:
                    before = terms[name].sum if name in terms else 0.0
                    terms[name] = Term(before + value * count / 2, count, weight)
        return terms
