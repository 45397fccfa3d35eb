"""Pretext tasks by transformation: tell in which order a clip's parts are, whether it is reversed, and how fast it is.

What rotation is to pictures (Gidaris et al. 2018): labels that a transformation gives for nothing.
"""

from __future__ import annotations

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import nn

from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.models.views import change_speed, clips_of, reorder, with_clips
from speechssl.objectives.common import PretrainingObjective, encoder_features, pool, spread
from speechssl.rng import generator as make_generator
from speechssl.types import Batch, LossOutput, Term, to_device

ORDERS = list(permutations(range(3)))
SPEEDS = (0.8, 1.0, 1.25)
FADE_S = 0.005


class PretextObjective(PretrainingObjective):
    """Cross-entropy of the order of segments (6), the direction (2) and the speed (3) of each clip."""

    def __init__(self, encoder: EncoderConfig, *, sample_rate: int, feature_gradient_scale: float):
        """Args:
        sample_rate: of the audio, samples a second.
        feature_gradient_scale: factor on the gradient into the feature encoder; 0 leaves it as it begins.
        """
        super().__init__()
        self.field, self.fade = encoder.receptive_field, round(FADE_S * sample_rate)
        self.feature_gradient_scale = feature_gradient_scale
        sizes = {"order": len(ORDERS), "direction": 2, "speed": len(SPEEDS)}
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.hidden_size, size) for name, size in sizes.items()})

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return: clips."""
        return {name: len(frame_lengths) for name in self.heads}

    def transform(self, batch: Batch) -> tuple[Batch, dict[str, torch.Tensor]]:
        """The altered batch, and what was done to each clip: int64 [B] by task."""
        clips, done = [], {name: [] for name in self.heads}
        for clip, seed in zip(clips_of(batch), batch.seeds, strict=True):
            generator = make_generator(seed, "pretext")
            choice = {
                name: int(torch.randint(head.out_features, (), generator=generator))
                for name, head in self.heads.items()
            }
            heard = reorder(clip, list(ORDERS[choice["order"]]), self.fade)
            heard = change_speed(heard.flip(0) if choice["direction"] else heard, SPEEDS[choice["speed"]])
            # What is too short for a frame by now is followed by silence.
            clips.append(F.pad(heard, (0, max(self.field - len(heard), 0))))
            for name, number in choice.items():
                done[name].append(number)
        return with_clips(batch, clips), {name: torch.tensor(numbers) for name, numbers in done.items()}

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """Loss of a batch in nats, summed over clips, for each task."""
        altered, done = self.transform(batch)
        features, frame_lengths = encoder_features(encoder, altered, self.feature_gradient_scale)
        output = encoder.contextualize(encoder.feature_norm(features), frame_lengths, generator=generator)
        pooled, count = pool(output), len(frame_lengths)
        terms, metrics, gap = {}, {}, 0.0
        for name, head in self.heads.items():
            logits, wanted = head(pooled).float(), to_device(done[name], pooled.device)
            terms[name] = Term(F.cross_entropy(logits, wanted, reduction="sum"), count)
            metrics[f"accuracy_{name}"] = ((logits.argmax(1) == wanted).sum(), count)
            with torch.no_grad():
                # The logit of what was done less the mean of the others.
                own = logits.gather(1, wanted[:, None]).squeeze(1)
                gap = gap + (own - (logits.sum(1) - own) / (logits.shape[1] - 1)).sum() / len(self.heads)
        if self.watching:
            metrics |= spread(output.packed[-1]) | {"energy_gap": (gap, count)}
        return LossOutput(terms, metrics)
