"""The light decoder against its layers clip by clip, as torch has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from speechssl.models.decoder import Decoder

LENGTHS = [9, 1, 30, 4]
SIZE = 32


def test_frames_are_filled_in_within_each_clip():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    decoder = Decoder(12, SIZE, num_layers=3)
    hidden = torch.rand(sum(LENGTHS), generator=generator) < 0.5
    hidden[0], hidden[9] = False, True  # the clip of one frame is hidden whole
    visible = torch.randn(int((~hidden).sum()), 12, generator=generator, requires_grad=True)
    noise = torch.randn(int(hidden.sum()), SIZE, generator=generator)

    frames = torch.zeros(len(hidden), SIZE)
    frames[~hidden], frames[hidden] = decoder.enter(visible), noise
    clips = []
    for clip in frames.split(LENGTHS):
        x = clip.T[None]
        for layer in decoder.layers:
            x = x + F.gelu(F.layer_norm(layer(x).transpose(1, 2), (SIZE,))).transpose(1, 2)
        clips.append(x[0].T)
    expected = decoder.leave(torch.cat(clips)[hidden])

    found = decoder(visible, hidden, noise, LENGTHS)
    assert len(found) == 64
    found = found[: len(expected)]
    torch.testing.assert_close(found, expected)
    wanted = [visible, *decoder.parameters()]
    gradients = (torch.autograd.grad(x.square().sum(), wanted) for x in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
