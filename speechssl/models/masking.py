"""Which frames are hidden from the context network, and which frames distract from the true one.

Pure functions of a length and a generator, for one clip each, so that they can be tested and no batch matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.models.lengths import ROWS, missing
from speechssl.types import to_device


def span_mask(
    num_frames: int, *, generator: torch.Generator, start_probability: float, span: int, min_spans: int
) -> Tensor:
    """bool [T]: spans of `span` frames that may overlap (wav2vec 2.0, section 3.1 and appendix A).

    start_probability * T starts on average, at least `min_spans`, drawn without replacement among the places where a
    whole span fits. A clip shorter than one span gets no mask and so has no part in the loss.
    """
    mask = torch.zeros(num_frames, dtype=torch.bool)
    num_places = num_frames - span + 1
    if num_places < 1:
        return mask
    # The fraction is rounded up or down at random, so that short clips get the right number on average.
    rounding = torch.rand((), generator=generator).item()
    num_spans = max(int(start_probability * num_frames + rounding), min_spans)
    num_spans = min(num_spans, num_places, max(num_frames // span, 1))
    starts = torch.randperm(num_places, generator=generator)[:num_spans]
    mask[(starts[:, None] + torch.arange(span)).flatten()] = True
    return mask


def pad_rows(indexes: Tensor) -> Tensor:
    """int64 [M] -> the same and some more, so that products over chosen rows come in few shapes."""
    return F.pad(indexes, (0, missing(len(indexes), ROWS)))


def sample_distractors(
    num_masked: Sequence[int], num_distractors: int, *, generators: Sequence[torch.Generator]
) -> Tensor:
    """int64 [sum of M, K]: for each masked frame of a clip, K other masked frames of the clip, uniformly, with
    replacement; of several clips one after the other, each by its own generator and on its device.

    Never the frame itself. Each clip needs at least two masked frames.
    """
    drawn = [
        torch.randint(masked - 1, (masked, num_distractors), generator=generator, device=generator.device)
        for masked, generator in zip(num_masked, generators, strict=True)
    ]
    others, own = torch.cat(drawn), torch.cat([torch.arange(masked) for masked in num_masked])
    return others + (others >= to_device(own, others.device)[:, None])
