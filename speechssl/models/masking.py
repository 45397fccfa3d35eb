"""Which frames are hidden from the context network, and which frames distract from the true one.

Pure functions of a length and a generator, for one clip each, so that they can be tested and no batch matters.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def sample_distractors(num_masked: int, num_distractors: int, *, generator: torch.Generator) -> Tensor:
    """int64 [M, K]: for each masked frame of a clip, K other masked frames of the clip, uniformly, with replacement.

    Never the frame itself. Needs at least two masked frames. They are on the generator's device.
    """
    device = generator.device
    others = torch.randint(num_masked - 1, (num_masked, num_distractors), generator=generator, device=device)
    return others + (others >= torch.arange(num_masked, device=device)[:, None])
